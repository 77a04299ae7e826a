"""A client for one HTTP service, and the base class of gene services."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import aiohttp
from yarl import URL

from scvec import __version__
from scvec.base.errors import InputError
from scvec.base.settings import ServiceSettings, is_loopback, redact
from scvec.base.types import Answer, Description, Failure, Gene, Job, Note, Wanted
from scvec.ingest.sources.facts import clean_summary, clean_text, facts_of, provenance_json
from scvec.ingest.sources.retry import PATIENCE, Caller, Kind, RateLimit, ServiceError, parse_retry_after

__all__ = ["GeneFound", "GeneSource", "HttpClient", "MarkerSource", "service_url"]

T = TypeVar("T")

#: Seconds to wait for a connection, and default seconds to wait for the next bytes of an answer.
CONNECT, READ = 5.0, 30.0
#: Seconds that a complete answer may take in addition to the wait for bytes.
ROOM = 15.0
#: Largest size of an answer in bytes.
LARGEST = 64 * 2**20
#: Largest number of redirects, all on the same host.
REDIRECTS = 3

_AGAIN = {408, 425, 429}
_MISPLACED = {404, 405, 410, 501}


def service_url(service: str, default: str, given: str = "") -> URL:
    """Return the given address of a service, or its default; raise InputError if it is not valid."""
    fix = f"write it like {default}"
    try:
        url = URL((given or default).strip().rstrip("/"))
        host, _port = url.host, url.port
    except ValueError:
        raise InputError(f"the address of {service} cannot be read", "", fix, code="bad-address") from None
    shown = f"{url.scheme}://{host}" if host else redact(url.path)
    if url.scheme not in ("http", "https") or not host:
        what = f"the address of {service} must begin with https:// or http://"
        raise InputError(what, shown, fix, code="bad-address")
    if url.user or url.password or url.query_string or url.fragment:
        raise InputError(
            f"the address of {service} must not contain a user name, a key or a query",
            shown,
            "set keys in the environment or the config file",
            code="bad-address",
        )
    return url


class _AbsentError(Exception):
    """A service has no such file."""


class HttpClient:
    """Posts forms to one service, or gets files; an async context manager.

    Every request waits for the rate limit and follows the retry policy. Every error becomes a
    :class:`ServiceError` whose message contains no key and no query. Requests go only to the host of ``url``.

    Parameters
    ----------
    service
        Name of the service in messages.
    url
        Address of the service.
    caller
        Retry policy.
    rate
        Rate limit.
    timeout
        Seconds to wait for the next bytes of an answer. A complete answer may take :data:`ROOM` seconds
        longer.
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
        """Return the client of a service; ``base_url`` and ``per_second`` override the settings.

        The service's own host gets at most ``limit`` requests a second. For another host there is no maximum,
        and 0 means no limit.

        Raises
        ------
        InputError
            The address is not valid.
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
            # The service counts requests per key; without a key, per address of the client.
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
            # Use the proxies of the environment, but not for a server on this machine.
            trust_env=not is_loopback(self.url.host or ""),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"scvec/{__version__}", "Accept": "application/json, text/xml;q=0.9"},
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
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
        """Post a form and return the JSON answer, which must have the type ``shape`` (dict or list).

        ``check`` raises :class:`ServiceError` if an answer with status 200 reports an error; such errors are
        retried like others.
        """

        async def request() -> T:
            body = self._parsed(await self._fetched(path, form), shape)
            check(body)
            return body

        return await self.caller.call(request)

    async def get_read(self, path: str, read: Callable[[bytes], T]) -> T:
        """Get a file and return the result of ``read`` for its body; a missing file has an empty body."""

        async def request() -> T:
            try:
                return read(await self._fetched(path, None))
            except _AbsentError:
                return read(b"")

        return await self.caller.call(request, unfit=3)

    async def get_json(self, path: str, shape: type[T]) -> T | None:
        """Get a JSON file, which must be a ``shape``; None if the file is missing."""

        def read(body: bytes) -> T | None:
            try:
                return self._parsed(body, shape) if body.strip() else None
            except ServiceError as error:
                # One damaged file does not mean that the service is down.
                raise ServiceError("unfit", error.reason) from None

        return await self.get_read(path, read)

    async def _fetched(self, path: str, form: Mapping[str, str] | None) -> bytes:
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

    async def _send(self, url: URL, form: Mapping[str, str] | None) -> tuple[str | None, bytes]:
        """Return the target of a redirect and an empty body, or None and the body; ``form`` None gets."""
        if self._session is None:
            raise RuntimeError("the client is not open")
        problem: ServiceError | None = None
        try:
            method = "GET" if form is None else "POST"
            async with self._session.request(method, url, data=form, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308):
                    return response.headers.get("Location", ""), b""
                body = await self._read(response)
                if form is None and response.status == 404:
                    raise _AbsentError
                if response.status != 200:
                    self._refuse(response.status, response.headers, body)
                return None, body
        except (ServiceError, _AbsentError):
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = self._translated(error)
        # Raised outside the handler, because aiohttp's errors contain the query and the sent headers.
        raise problem

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        too_much = ServiceError(
            "rejected", f"the answer of {self.service} is larger than {LARGEST // 2**20} MB"
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
        # Show only a short error text of the service, without anything that looks like a key.
        said = ""
        if len(body) < 2**16:
            with suppress(ValueError, RecursionError):
                said = _message(json.loads(body))
        words = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
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
        name = self.service
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return ServiceError("address", f"the proxy for {name} refuses the connection ({error.status})")
        # The first matching entry counts, so special errors come before general ones.
        certificate = (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError)
        kinds: tuple[tuple[Any, Kind, str], ...] = (
            (certificate, "address", f"the certificate of {name} is not valid"),
            (aiohttp.InvalidURL, "address", f"the address of {name} is not valid"),
            (TimeoutError, "transient", f"{name} did not answer in time"),
            (aiohttp.ClientConnectorDNSError, "transient", f"the host of {name} is not found"),
            (aiohttp.ClientConnectorError, "transient", f"no connection to {name}"),
            (BaseException, "transient", f"the connection to {name} broke"),
        )
        return next(ServiceError(kind, reason) for types, kind, reason in kinds if isinstance(error, types))

    def _followed(self, url: URL, location: str) -> URL:
        """Return the target of a redirect; raise ServiceError if the form must not be sent there."""
        try:
            target = url.join(URL(location)) if location else None
        except ValueError:
            target = None
        if target is None or target.host != url.host:
            raise ServiceError("address", f"{self.service} redirects to another host; scvec does not follow")
        moved_up = (url.scheme, target.scheme) == ("http", "https")
        if not moved_up and (target.scheme, target.port) != (url.scheme, url.port):
            raise ServiceError("address", f"{self.service} redirects to another port; scvec does not follow")
        return target.with_user(None)


@dataclass(frozen=True, slots=True)
class GeneFound:
    """A gene in the answer of a service, checked.

    Attributes
    ----------
    text
        Summary of the gene, as the service wrote it; empty if there is none.
    facts
        Name in :data:`scvec.ingest.sources.facts.FACTS` -> value. :meth:`answer` adds symbol, name, type,
        aliases and summary if they are missing.
    """

    symbol: str
    entrez_id: int | None
    name: str = ""
    gene_type: str = ""
    ensembl_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, job: Job, wanted: Wanted, version: str, asked: int | None = None) -> Answer:
        """Return the answer to a job: gene, description and facts; ``asked`` is the job's Entrez id."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        gene_id = f"entrez:{self.entrez_id}" if job.gene_id.startswith("ask:") else wanted.gene_id
        text, provenance = clean_summary(self.text)
        usual = {"official_symbol": self.symbol, "official_full_name": self.name, "gene_type": self.gene_type}
        facts = facts_of(**{**usual, "aliases": list(self.aliases), "summary": text, **self.facts})
        if asked and asked != self.entrez_id:
            facts["replaced"] = [asked, self.entrez_id]
        description = Description(
            gene_id=gene_id,
            text=text,
            source=job.source,
            source_version=version,
            retrieved_at=now,
            kind="human",
            provenance=provenance_json(provenance),
        )
        gene = Gene(
            gene_id=gene_id,
            species=wanted.species,
            symbol=self.symbol,
            entrez_id=self.entrez_id,
            name=self.name,
            gene_type=self.gene_type,
            ensembl_ids=self.ensembl_ids,
            aliases=self.aliases,
        )
        return Answer(
            job, gene, (description,) if text else (), Note(gene_id, job.source, version, now, facts)
        )


class _HttpSource:
    """A service with one client; an async context manager."""

    name: ClassVar[str]
    url: ClassVar[str]
    #: Largest number of requests in a second.
    limit: ClassVar[float] = 10.0
    #: Largest number of requests for a subject that answers leave out. It is high because requests are free.
    rounds = 8

    def __init__(
        self,
        settings: ServiceSettings | None,
        *,
        base_url: str | None = None,
        per_second: float | None = None,
        pace: float = 1.0,
    ) -> None:
        self.settings = settings = settings or ServiceSettings()
        self.client = HttpClient.of(
            self.name,
            self.url,
            settings,
            limit=self.per_second_allowed(settings),
            base_url=base_url,
            per_second=per_second,
            pace=pace,
        )
        self.caller = self.client.caller
        self.per_second = self.client.rate.per_second

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.__aexit__(*exc)

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        """Return answers and failures of jobs. Jobs in neither list are asked again."""
        raise NotImplementedError

    @classmethod
    def per_second_allowed(cls, settings: ServiceSettings) -> float:
        """Return the number of requests that the service allows in a second."""
        return cls.limit


class MarkerSource(_HttpSource):
    """Base of the services that know markers of cell types; a subclass is a source for ``harvest``.

    A subclass sets ``url``, ``limit`` and ``requests``, defines :meth:`index` and :meth:`ask`, and is
    registered by ``@marker_source(NAME)``. A job is about one term of the Cell Ontology (``gene_id``), and
    its ``prompt`` is the version that :meth:`index` returns.
    """

    batch_size = 1
    rounds = 2
    #: Requests that one type takes.
    requests: ClassVar[int] = 1

    async def index(self, species: Sequence[str], tissues: Sequence[str]) -> tuple[str, list[str]]:
        """Return the service's version, and the ids of the types that it has in some tissues; () for all.

        Raises
        ------
        InputError
            The service knows none of the tissues.
        """
        raise NotImplementedError


class GeneSource(_HttpSource):
    """Base class of gene services, which are sources for ``harvest``; an async context manager.

    A subclass sets ``url``, ``most`` and ``limit``, defines :meth:`ask`, and is registered with
    ``@gene_source(NAME)``.

    Parameters
    ----------
    wanted
        Job -> gene, for all jobs of the run.
    settings
        Key, address and ``email`` for the service.
    base_url, per_second
        Address and rate limit; they override the settings.
    batch_size
        Number of genes in one request.
    pace
        Factor on waits between attempts; tests set it to a small value.

    Raises
    ------
    InputError
        The address is not valid.
    """

    #: Largest number of genes in a request.
    most: ClassVar[int] = 1000

    def __init__(
        self,
        wanted: Mapping[Job, Wanted],
        settings: ServiceSettings | None = None,
        *,
        base_url: str | None = None,
        per_second: float | None = None,
        batch_size: int | None = None,
        pace: float = 1.0,
    ) -> None:
        self.wanted = wanted
        self.batch_size = max(1, min(batch_size or self.most, self.most))
        super().__init__(settings, base_url=base_url, per_second=per_second, pace=pace)

    @classmethod
    def can_ask(cls, wanted: Wanted) -> bool:
        """Return whether the gene has an id that the service can look up."""
        return True

    @classmethod
    def question(cls, wanted: Wanted) -> str:
        """Return the id for looking up a gene; the answer depends on it."""
        return f"symbol:{wanted.symbol}" if wanted.entrez_id is None else f"entrez:{wanted.entrez_id}"

    @classmethod
    def n_requests(cls, wanted: Sequence[Wanted]) -> int:
        """Return the number of requests for some genes, without retries."""
        return -(-len(wanted) // cls.most)


def in_parts(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """Yield distinct items in lists of at most ``most``."""
    every = list(dict.fromkeys(items))
    for first in range(0, len(every), most):
        yield every[first : first + most]


def _message(value: object) -> str:
    """Return the text of a JSON error, at most 160 characters."""
    if not isinstance(value, dict):
        return ""
    found = value.get("error") or value.get("message")
    if isinstance(found, dict):
        found = found.get("message")
    # Redact before cutting, because half a key would not be recognised.
    return clean_text(redact(found[:2000]), 160) if isinstance(found, str) else ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
