"""Client for OpenAI or a server with the same API, and chats that answer with one JSON object."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from scvec.base.errors import AuthError, InputError
from scvec.base.settings import ServiceSettings, is_loopback, redact
from scvec.ingest.sources.prices import Budget, count_tokens
from scvec.ingest.sources.retry import PATIENCE, Caller, Kind, ServiceError, parse_retry_after

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Chat", "LlmError", "LlmService", "Reply", "is_reasoning", "prompt_tokens"]

T = TypeVar("T")

OPENAI_URL = "https://api.openai.com/v1"
#: Seconds to wait for a connection, and default seconds to wait for an answer.
CONNECT, READ = 5.0, 45.0
#: Largest size of an answer in bytes. 2,048 vectors of 4,096 numbers as text need about 170 MB.
LARGEST_ANSWER = 2**28
#: Largest number of characters of a server's own text in a message.
QUOTED = 160
_NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "account_deactivated")


class LlmError(ServiceError):
    """A failed call of a model; ``status`` is the HTTP status or 0, and the server may charge the call."""

    def __init__(
        self,
        kind: Kind,
        reason: str,
        *,
        retry_after: float | None = None,
        status: int = 0,
        may_cost: bool = False,
    ) -> None:
        super().__init__(kind, reason, retry_after=retry_after)
        self.status = status
        self.may_cost = may_cost


class LlmService:
    """One server for all tasks of a run; an async context manager, inside which ``client`` exists.

    Parameters
    ----------
    settings
        Key, address and timeout.
    base_url, timeout
        Address with ``/v1``, and seconds to wait for an answer; they override the settings.
    caller
        Retry policy; None for the default.

    Attributes
    ----------
    host
        Host, with port if one is given, for messages and the names of embedding spaces.
    is_openai, is_local
        True if the server is OpenAI's, or is on this machine.
    notes
        Messages for the user.

    Raises
    ------
    AuthError
        The key for OpenAI is missing, or the key has invalid characters.
    InputError
        The address is not valid.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        base_url: str | None = None,
        timeout: float | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.base_url = (base_url or settings.base_url or OPENAI_URL).strip().rstrip("/")
        scheme, name, self.host = _parts(self.base_url)
        self.is_openai = name == "openai.com" or name.endswith(".openai.com")
        self.is_local = is_loopback(name)
        self.timeout = timeout or settings.timeout or READ
        self.notes: list[str] = []
        self._key = settings.api_key
        if self.is_openai and scheme != "https":
            raise InputError(
                "this address would send the key unencrypted",
                self.base_url,
                "write https://",
                code="bad-address",
            )
        if self.is_openai and not self._key:
            fix = "set OPENAI_API_KEY, or api_key under [openai] in the config file"
            raise AuthError("the key for OpenAI is missing", self.host, fix, code="key-missing")
        if not re.fullmatch(r"[!-~]*", self._key.reveal()):
            fix = "copy the key again, without spaces, quotes or line breaks"
            raise AuthError("the key has invalid characters", "OPENAI_API_KEY", fix, code="key-missing")
        if scheme == "http" and self._key and not self.is_local:
            self.notes.append(f"the key is sent unencrypted to {self.host}, because the address is http")
        # The patience must be longer than the timeout of one request.
        self.caller = caller or Caller(self.host, patience=max(PATIENCE, self.timeout + 10))
        self._client: AsyncOpenAI | None = None

    @property
    def client(self) -> AsyncOpenAI:
        """The client; it exists only inside the context."""
        if self._client is None:
            raise RuntimeError("use LlmService as an async context manager")
        return self._client

    async def __aenter__(self) -> LlmService:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        timeout = Timeout(connect=CONNECT, read=self.timeout, write=self.timeout, pool=self.timeout)
        self._client = AsyncOpenAI(
            # The client requires a key; a local server accepts any.
            api_key=self._key.reveal() or "none",
            # An empty text keeps the client from reading an admin key from the environment.
            admin_api_key="",
            base_url=self.base_url,
            max_retries=0,
            timeout=timeout,
            default_headers={"Accept-Encoding": "identity"},
            http_client=DefaultAsyncHttpxClient(
                timeout=timeout,
                # A redirect could send the key and the texts to another host.
                follow_redirects=False,
                # A proxy cannot reach servers on this machine.
                trust_env=not self.is_local,
                event_hooks={"response": [_bound]},
            ),
        )
        if not self.is_openai:
            # The client reads organization and project from the environment; other servers must not get them.
            self._client.organization = self._client.project = None
        return self

    async def __aexit__(self, *exc: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def call(self, request: Callable[[], Awaitable[T]], *, unfit: int = 1) -> T:
        """Return the result of ``request()``, with retries; errors of the client become ServiceError.

        ``unfit`` is the number of attempts for unusable answers. Neither the error nor its context contains a
        key.
        """
        return await self.caller.call(lambda: self._translated(request), unfit=unfit)

    async def send(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send JSON once and return the JSON answer; raise LlmError for an error. Use it in :meth:`call`."""
        return await self._translated(lambda: self._send(path, body))

    async def _send(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer: object = await self.client.post(path, body=dict(body), cast_to=object)
        if isinstance(answer, str):  # the server did not declare the answer as JSON
            answer = json.loads(answer)
        failure: LlmError | None = None
        if not isinstance(answer, dict):
            reason = f"the answer of {self.host} is not a JSON object"
            failure = LlmError("transient", reason, status=200, may_cost=True)
        elif answer.get("error"):
            failure = self._refusal(200, answer["error"], {})
        else:
            return answer
        answer = None  # a traceback must not contain the server's text
        raise failure

    async def _translated(self, request: Callable[[], Awaitable[T]]) -> T:
        import httpx2
        import openai
        import pydantic

        try:
            # The client's timeouts hold for one read, so an answer that arrives byte by byte would pass them.
            async with asyncio.timeout(self.timeout + CONNECT):
                return await request()
        except openai.APIStatusError as error:
            failure = self._refusal(error.status_code, error.body, error.response.headers)
        except (openai.APITimeoutError, TimeoutError):
            reason = f"{self.host} did not answer within {self.timeout:g} s"
            failure = LlmError("transient", reason, may_cost=True)
        except openai.APIConnectionError as error:
            cause = _cause(error)
            reason = f"{self.host} cannot be reached ({cause})"
            # If the connection broke later, the server may have answered and may charge the request.
            failure = LlmError("transient", reason, may_cost=cause not in ("ConnectError", "gaierror"))
        except (json.JSONDecodeError, UnicodeError, RecursionError, pydantic.ValidationError):
            reason = f"the answer of {self.host} cannot be read"
            failure = LlmError("transient", reason, status=200, may_cost=True)
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = f"the call of {self.host} failed ({type(error).__name__})"
            failure = LlmError("transient", reason, may_cost=True)
        # Raised outside the handler, because the library's errors contain the request headers.
        raise failure

    def _refusal(self, status: int, body: object, headers: object) -> LlmError:
        code, words = _words(body)
        said = f": {words}" if words else ""
        kind: Kind = "transient"
        after = None
        # Do not show the server's messages about a key, because they often quote it.
        if code in _NO_QUOTA:
            kind, reason = "quota", f"the account at {self.host} has no quota left"
        elif status in (401, 403) or code == "invalid_api_key":
            what = "the key was refused" if self._key else "a key is needed"
            kind, reason = "auth", f"{self.host}: {what} (HTTP {status})"
        elif 300 <= status < 400:
            kind, reason = "address", f"{self.host} redirects (HTTP {status}); give the final address"
        elif 400 <= status < 500 and status not in (408, 409, 425, 429):
            kind, reason = "rejected", f"{self.host} refused the request (HTTP {status}){said}"
        elif status == 429:
            reason, after = f"{self.host} gets too many requests (HTTP 429)", parse_retry_after(headers)
        else:
            reason, after = f"{self.host} failed (HTTP {status}){said}", parse_retry_after(headers)
        return LlmError(kind, reason, retry_after=after, status=status)


def _parts(url: str) -> tuple[str, str, str]:
    """Return scheme, host name, and host with port."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        parts, name, port = urlsplit(""), "", None
    fix = "write the address as https://HOST/v1, and set the key as OPENAI_API_KEY"
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[a-z0-9.:_%-]+", name):
        raise InputError("the server's address cannot be read", redact(_bare(url)), fix, code="bad-address")
    if parts.username or parts.password or parts.query or parts.fragment:
        # These parts may contain a key, and messages show the address.
        what = "the server's address must not contain a user name, ? or #"
        raise InputError(what, name, fix, code="bad-address")
    host = f"[{name}]" if ":" in name else name
    return parts.scheme, name, host if port is None else f"{host}:{port}"


def _bare(text: str) -> str:
    """Remove user names and queries, which may contain keys, from the addresses in a text."""
    return re.sub(r"(\w+://)[^\s/@]*@", r"\1", re.sub(r"(\w+://[^\s?#]+)[?#]\S*", r"\1", text))


def _words(body: object) -> tuple[str, str]:
    """Return the code and the message of an error's body, safe for showing to a user."""
    if isinstance(body, Mapping):
        inner = body.get("error")
        found: Mapping[Any, Any] = inner if isinstance(inner, Mapping) else body
        code = next((v for k in ("code", "type") if isinstance(v := found.get(k), str) and v), "")
        message = next((v for k in ("message", "detail", "error") if isinstance(v := found.get(k), str)), "")
    else:
        code, message = "", body if isinstance(body, str) and "<" not in body else ""
    # Redact before cutting, because half a key would not be recognised.
    flat = " ".join("".join(c if c.isprintable() else " " for c in redact(_bare(message[:4000]))).split())
    return code[:60], flat if len(flat) <= QUOTED else flat[: QUOTED - 1] + "…"


def _cause(error: Exception) -> str:
    """Return the name of the innermost error's class. Its text may contain an address and is not shown."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return type(cause).__name__


async def _bound(response: Any) -> None:
    """Limit reading of an answer to :data:`LARGEST_ANSWER` bytes."""
    # scvec does not request compression. A compressed answer can grow a thousandfold, so it gets a lower
    # limit.
    encoded = response.headers.get("content-encoding", "identity").lower() != "identity"
    response.stream = _bounded_stream(response.stream, LARGEST_ANSWER // 64 if encoded else LARGEST_ANSWER)


def _bounded_stream(stream: Any, limit: int) -> Any:
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in stream:
                size += len(chunk)
                if size > limit:
                    raise httpx2.ReadError(f"more than {limit:,} bytes")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


Format = Literal["json_schema", "json_object", "text"]
#: Number of tokens that servers add to the messages: roles, separators, the schema.
AROUND = 120


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer, with unchecked content, and its numbers of tokens."""

    content: str
    refusal: str
    finish_reason: str
    model: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class _Manner:
    """Parameters of a request besides the messages."""

    format: Format = "json_schema"
    temperature: bool = True
    limit: str = "max_completion_tokens"


class Chat:
    """One chat model on one server.

    The first request has a JSON schema for the answer and temperature 0. If the server refuses a feature,
    later requests omit it: the schema, then JSON mode, the temperature, or the newer name of the token limit.
    ``notes`` report this.

    Parameters
    ----------
    service
        The server. Enter its context before :meth:`ask`.
    model
        Name of the model.
    schema
        JSON schema of the answer.
    budget
        Budget that pays for answered calls.
    """

    def __init__(self, service: LlmService, model: str, schema: Mapping[str, Any], budget: Budget) -> None:
        self.service, self.model, self.schema, self.budget = service, model, schema, budget
        self.notes: list[str] = []
        self._manner = _Manner()
        # All servers support the older name of the limit; some do not support the newer one.
        if not service.is_openai:
            self._manner = _Manner(limit="max_tokens")
        self._answered = False
        self._renamed = False
        self._refused: LlmError | None = None
        self._first = asyncio.Lock()

    @property
    def format(self) -> Format:
        """Current way of requesting JSON."""
        return self._manner.format

    async def ask(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> Reply:
        """Return the model's answer to messages, of at most ``max_tokens`` tokens.

        ``schema`` replaces the schema of all answers.

        Raises
        ------
        ServiceError
            The call failed. The kind is ``address`` if the server refused even the simplest first request.
        BudgetSpentError
            The call could exceed the cost limit.
        """
        wanted = self.schema if schema is None else schema
        if self._answered:
            return await self._ask(messages, max_tokens, wanted)
        # One task finds out what the server supports; the others wait for it.
        async with self._first:
            if self._refused is not None:
                raise self._refused
            reply = await self._ask(messages, max_tokens, wanted)
            self._answered = True
            return reply

    async def _ask(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, schema: Mapping[str, Any]
    ) -> Reply:
        while True:
            manner = self._manner
            try:
                return await self.service.call(lambda m=manner: self._once(messages, max_tokens, m, schema))  # type: ignore[misc]
            except LlmError as error:
                if error.kind != "rejected":
                    raise
                if self._manner == manner and not self._plainer(error.reason):
                    if self._answered or error.status == 413:
                        raise
                    self._refused = LlmError("address", error.reason, status=error.status)
                    raise self._refused from None

    def _plainer(self, reason: str) -> bool:
        """Remove the refused feature from later requests; return False if there is none to remove."""
        manner, said = self._manner, reason.lower()
        if "temperature" in said and manner.temperature:
            self._manner = dataclasses.replace(manner, temperature=False)
            self.notes.append(f"{self.model} has no temperature setting; answers vary from run to run")
        elif ("max_tokens" in said or "max_completion_tokens" in said) and not self._renamed:
            other = "max_tokens" if manner.limit == "max_completion_tokens" else "max_completion_tokens"
            self._manner, self._renamed = dataclasses.replace(manner, limit=other), True
        elif manner.format == "json_schema":
            self._manner = dataclasses.replace(manner, format="json_object")
            self.notes.append(f"{self.service.host} does not support JSON schemas; JSON mode was used")
        elif manner.format == "json_object":
            self._manner = dataclasses.replace(manner, format="text")
            self.notes.append(f"{self.service.host} has no JSON mode; the prompt asks for JSON")
        else:
            return False
        return True

    async def _once(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int,
        manner: _Manner,
        schema: Mapping[str, Any],
    ) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(m) for m in messages],
            manner.limit: max_tokens,
        }
        if manner.temperature:
            body["temperature"] = 0
        if manner.format == "json_schema":
            wanted = {"name": "answer", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif manner.format == "json_object":
            body["response_format"] = {"type": "json_object"}
        expected = prompt_tokens(messages)
        reserve = self.budget.reserve(expected, max_tokens)
        sent = True
        try:
            answer = await self.service.send("/chat/completions", body)
            reply = _read(answer, self.service.host, expected)
            reserve.settle(reply.tokens_in, reply.tokens_out)
        except LlmError as error:
            sent = error.may_cost
            if error.status == 404:  # the model or the address does not exist, so all calls will fail
                raise LlmError("address", error.reason, status=404) from None
            raise
        finally:
            # This does nothing if the reserve is settled. The server may charge a cancelled call (Ctrl-C).
            reserve.keep() if sent else reserve.release()
        return reply


def is_reasoning(model: str) -> bool:
    """Return whether a model of OpenAI uses hidden reasoning tokens, which are charged."""
    name = model.removeprefix("openai/")
    return name.startswith(("o1", "o3", "o4")) or (name.startswith("gpt-5") and "chat" not in name)


def prompt_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Return an upper bound of the number of tokens of messages."""
    return sum(count_tokens([m["content"] for m in messages])) + AROUND


def _read(answer: Mapping[str, Any], host: str, expected: int) -> Reply:
    """Check a chat completion and return its content."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else 0
    if not isinstance(first, dict) or not isinstance(message, dict) or not isinstance(content, str | None):
        reason = f"the answer of {host} is not a chat completion"
        raise LlmError("transient", reason, status=200, may_cost=True)
    content = content or ""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        content=content,
        refusal=_plain(message.get("refusal")),
        finish_reason=_plain(first.get("finish_reason")),
        model=_plain(answer.get("model")),
        tokens_in=_count(usage.get("prompt_tokens"), expected),
        # If the server gives no count, count the tokens of the content.
        tokens_out=_count(usage.get("completion_tokens"), sum(count_tokens([content]))),
    )


def _count(value: object, otherwise: int) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10_000_000
    return value if good else otherwise  # type: ignore[return-value]


def _plain(value: object, limit: int = 100) -> str:
    text = redact(value[:4000]) if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:limit]
