"""A client for one service: where it may go, how long it waits, what it makes of errors."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import aiohttp
from yarl import URL

from scvec import __version__
from scvec.base.errors import InputError
from scvec.base.settings import ServiceSettings, is_loopback, redact
from scvec.ingest.sources.facts import clean_text
from scvec.ingest.sources.retry import PATIENCE, Caller, RateLimit, ServiceError, parse_retry_after

__all__ = ["HttpClient", "HttpSource", "service_url"]

T = TypeVar("T")

#: Seconds to wait for a connection, and for the next bytes of an answer where nothing else is set.
CONNECT, READ = 5.0, 30.0
#: Seconds that a whole answer may take beyond the wait for its first bytes.
ROOM = 15.0
#: Largest body that is read (bytes).
LARGEST = 64 * 2**20
#: Redirects that are followed, all on one host.
REDIRECTS = 3

_AGAIN = {408, 425, 429}
_MISPLACED = {404, 405, 410, 501}
_WORDS = {
    400: "it does not understand the request",
    404: "there is nothing at this address",
    408: "it gave up waiting",
    413: "the request is too large",
    414: "the request is too long",
    422: "it does not accept the request",
    429: "too many requests",
    500: "it has an error of its own",
    502: "its gateway has an error",
    503: "it is not available",
    504: "its gateway gave up waiting",
}


def service_url(service: str, default: str, given: str = "") -> URL:
    """Return the address of a service: the one that was given, else its own.

    ``http`` is for this machine, and for an address that somebody gave on purpose.

    Raises
    ------
    InputError
        If the address is none.
    """
    fix = f"write it like {default}"
    try:
        url = URL((given or default).strip().rstrip("/"))
        host, _port = url.host, url.port
    except ValueError:
        raise InputError(f"the address of {service} cannot be read", "", fix, code="bad-address") from None
    shown = f"{url.scheme}://{host}" if host else redact(url.path)
    if url.scheme not in ("http", "https") or not host:
        raise InputError(f"the address of {service} must be one of https", shown, fix, code="bad-address")
    if url.user or url.password or url.query_string or url.fragment:
        raise InputError(
            f"the address of {service} must not hold a name, a key or a query",
            shown,
            "put keys into the environment or the config file",
            code="bad-address",
        )
    return url


class HttpClient:
    """Posts forms to one service; use it as an async context manager.

    Every call takes its turn from ``rate`` and goes through ``caller``, and every error of the network or
    the service becomes a :class:`ServiceError` whose message holds neither a key nor a query.

    Parameters
    ----------
    service
        Name for messages.
    url
        Where it is, see :func:`service_url`. Nothing is sent to any other host.
    timeout
        Seconds to wait for the next bytes of an answer; a whole answer may take
        :data:`ROOM` more.
    """

    def __init__(
        self, service: str, url: URL, *, caller: Caller, rate: RateLimit, timeout: float | None = None
    ) -> None:
        self.service = service
        self.url = url
        self.caller = caller
        self.rate = rate
        read = timeout or READ
        self._timeout = aiohttp.ClientTimeout(
            total=read + ROOM, connect=CONNECT, sock_connect=CONNECT, sock_read=read
        )
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of(
        cls,
        service: str,
        default: str,
        settings: ServiceSettings,
        *,
        limit: float,
        base_url: str | None = None,
        per_second: float | None = None,
        pace: float = 1.0,
    ) -> HttpClient:
        """Return the client of a service as it is set.

        Parameters
        ----------
        default
            The service's own address. Its path holds for an address without one, too.
        limit
            Requests a second. The service's own host gets no more, whatever is set; another may get any
            number, and 0 lifts the limit.
        base_url, per_second
            Come before those of the settings.
        pace
            See :class:`Caller`.

        Raises
        ------
        InputError
            If the address is none.
        """
        own = URL(default)
        url = service_url(service, default, base_url or settings.base_url)
        if url.path in ("", "/"):
            url = url.with_path(own.path)
        rate = settings.requests_per_second if per_second is None else per_second
        rate = limit if rate is None else rate
        name = f"{service}-{url.host}-{url.port}"
        if url.host == own.host:
            rate = min(rate or limit, limit)
            # With a key the service counts by the key, without one by the address.
            name = f"{service}-key" if settings.api_key else service
        total = (settings.timeout or READ) + ROOM
        return cls(
            service,
            url,
            caller=Caller(service, patience=max(PATIENCE, total + CONNECT), pace=pace),
            rate=RateLimit(name, rate),
            timeout=settings.timeout,
        )

    async def __aenter__(self) -> HttpClient:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout,
            # Proxies of the environment, except to this machine itself.
            trust_env=not is_loopback(self.url.host or ""),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"scvec/{__version__}", "Accept": "application/json, text/xml;q=0.9"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post_json(
        self,
        path: str,
        form: Mapping[str, str],
        shape: type[T],
        check: Callable[[T], None] = lambda body: None,
    ) -> T:
        """Post a form and return the JSON that comes back, which must be a ``shape`` (dict or list).

        ``check`` raises a :class:`ServiceError` if it is an error all the same; what it raises counts as the
        outcome of the call, and is asked again if it may pass.

        Raises
        ------
        ServiceError
            If all attempts failed.
        """

        async def request() -> T:
            body = self._parsed(await self._post(path, form), shape)
            check(body)
            return body

        return await self.caller.call(request)

    async def post_read(self, path: str, form: Mapping[str, str], read: Callable[[bytes], T]) -> T:
        """Post a form and return what ``read`` makes of the body; it raises as ``check`` does."""

        async def request() -> T:
            return read(await self._post(path, form))

        return await self.caller.call(request)

    async def _post(self, path: str, form: Mapping[str, str]) -> bytes:
        if self._session is None:
            raise RuntimeError("the client is not open")
        url = self.url.joinpath(*path.strip("/").split("/"))
        for _hop in range(REDIRECTS + 1):
            await self.rate.turn()
            moved, body = await self._send(url, form)
            if moved is None:
                return body
            url = self._followed(url, moved)
        raise ServiceError("address", f"{self.service} redirects more than {REDIRECTS} times")

    async def _send(self, url: URL, form: Mapping[str, str]) -> tuple[str | None, bytes]:
        """Return where the service redirects to, or None and the body."""
        if self._session is None:
            raise RuntimeError("the client is not open")
        problem: ServiceError | None = None
        try:
            async with self._session.post(url, data=form, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308):
                    return response.headers.get("Location", ""), b""
                body = await self._read(response)
                if response.status != 200:
                    self._refuse(response.status, response.headers, body)
                return None, body
        except ServiceError:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = self._translated(error)
        # Outside the handler: these errors know the address, its query and the headers that were sent.
        raise problem

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        too_much = ServiceError(
            "rejected", f"{self.service} answered with more than {LARGEST // 2**20} MB at once"
        )
        if (response.content_length or 0) > LARGEST:
            response.close()
            raise too_much
        parts, size = [], 0
        async for part in response.content.iter_chunked(2**16):
            size += len(part)
            if size > LARGEST:
                response.close()
                raise too_much
            parts.append(part)
        return b"".join(parts)

    def _parsed(self, body: bytes, shape: type[T]) -> T:
        try:
            value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, shape):
            return value
        said = _message(value)
        raise ServiceError(
            "transient",
            f"{self.service} answered with an error: {said}"
            if said
            else f"the answer of {self.service} cannot be read",
        )

    def _refuse(self, status: int, headers: Mapping[str, str], body: bytes) -> NoReturn:
        # Only an error text of few words is shown, and of it nothing that looks like a key.
        said = ""
        if len(body) < 2**16:
            try:
                said = _message(json.loads(body))
            except (ValueError, RecursionError):
                said = ""
        words = _WORDS.get(status, "")
        reason = f"{self.service} answered {status}" + (f" ({words})" if words else "")
        if status in (401, 403) or (status == 400 and "key" in said.lower() and "invalid" in said.lower()):
            what = "access" if status == 403 else "the key"
            raise ServiceError("auth", f"{self.service} refuses {what} ({status})")
        if status in _MISPLACED:
            raise ServiceError("address", reason)
        if said:
            reason += f": {said}"
        if status in _AGAIN or status >= 500:
            raise ServiceError("transient", reason, retry_after=parse_retry_after(headers))
        raise ServiceError("rejected", reason)

    def _translated(self, error: BaseException) -> ServiceError:
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return ServiceError("address", f"the proxy on the way to {self.service} refuses ({error.status})")
        if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
            return ServiceError("address", f"the certificate of {self.service} does not hold")
        if isinstance(error, aiohttp.InvalidURL):
            return ServiceError("address", f"the address of {self.service} cannot be used")
        if isinstance(error, TimeoutError):
            return ServiceError("transient", f"{self.service} did not answer in time")
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return ServiceError("transient", f"the host of {self.service} is not found")
        if isinstance(error, aiohttp.ClientConnectorError):
            return ServiceError("transient", f"no connection to {self.service}")
        return ServiceError("transient", f"the connection to {self.service} broke")

    def _followed(self, url: URL, location: str) -> URL:
        """Return where a redirect leads, if it may be followed there with the body."""
        try:
            target = url.join(URL(location)) if location else None
        except ValueError:
            target = None
        if target is None or target.host != url.host:
            raise ServiceError("address", f"{self.service} redirects to another host; this is not followed")
        moved_up = (url.scheme, target.scheme) == ("http", "https")
        if not moved_up and (target.scheme, target.port) != (url.scheme, url.port):
            raise ServiceError("address", f"{self.service} redirects to another port; this is not followed")
        return target.with_user(None)


class HttpSource:
    """What the sources over one :class:`HttpClient` share: they are entered and left with it.

    Attributes
    ----------
    caller
        Policy of retries, as ``harvest`` asks for it.
    per_second
        The most requests that are sent; 0 for no limit.
    rounds
        Times a gene that was left out is asked for: it is free.
    """

    rounds = 8

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self.caller = client.caller
        self.per_second = client.rate.per_second

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)


def _message(value: object) -> str:
    """Return the words of a JSON error, at most 160 characters."""
    if not isinstance(value, dict):
        return ""
    found = value.get("error") or value.get("message")
    if isinstance(found, dict):
        found = found.get("message")
    # Redacted before it is cut: half a key would not be known.
    return clean_text(redact(found[:2000]), 160) if isinstance(found, str) else ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
