"""``openai:MODEL``: embeddings from OpenAI, or from any server with the same API."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from scvec.backbones import BackboneSpec, LoadOptions, backbone
from scvec.backbones.sentence_transformer import PROBES
from scvec.base.errors import InputError, NetworkError
from scvec.base.settings import Settings, is_loopback
from scvec.base.types import Float32, Space, Streamed, text_sha256
from scvec.ingest.sources.openai import OPENAI_URL, LlmError, LlmService
from scvec.ingest.sources.prices import Budget, count_tokens, price_of, truncate
from scvec.ingest.sources.retry import BudgetSpentError, Caller, ServiceError
from scvec.ingest.sources.run import Batches, Sizes, Stop, ask_all, run_async

__all__ = ["Embedded", "Estimate", "RemoteBackbone", "Requests", "probe_server", "vectors_of"]

#: Largest length of a vector.
LARGEST_DIM = 65536
#: Number of attempts for a probe if the server gives unusable answers.
PROBE_TRIES = 5


@dataclass(frozen=True, slots=True)
class Embedded:
    """A checked answer of the server.

    Attributes
    ----------
    vectors
        (n, dim) float32 of length 1, one per text, in order.
    model
        Name of the model in the answer, or empty.
    seconds
        Duration of the successful request.
    """

    vectors: Float32
    model: str = ""
    seconds: float = 0.0


def vectors_of(answer: Mapping[str, Any], n: int, host: str, dim: int | None = None) -> Float32:
    """Return the vectors of an answer, (n, dim) float32 of length 1, ordered by their ``index``.

    Parameters
    ----------
    answer
        Answer of the server.
    n
        Number of texts.
    host
        Name of the server in messages.
    dim
        Required length of the vectors; None allows any.

    Raises
    ------
    ServiceError
        Kind ``unfit`` if an index is missing, repeated or too large, or if a vector has a wrong length, is
        not finite, or is zero.
    """
    rows = answer.get("data")
    if not isinstance(rows, list) or len(rows) != n:
        found = f"{len(rows):,}" if isinstance(rows, list) else "no list of"
        raise ServiceError("unfit", f"{host} gave {found} vectors for {n:,} texts")
    ordered: list[Any] = [None] * n
    for row in rows:
        index = row.get("index") if isinstance(row, dict) else None
        if type(index) is not int or not 0 <= index < n:
            raise ServiceError("unfit", f"{host} gave a vector with an invalid index")
        if ordered[index] is not None:
            raise ServiceError("unfit", f"{host} gave two vectors for one text")
        ordered[index] = _numbers(row.get("embedding"), host)
    dims = {len(vector) for vector in ordered}
    wanted = dim if dim is not None else len(ordered[0])
    if dims != {wanted}:
        found = ", ".join(map(str, sorted(dims)))
        raise ServiceError("unfit", f"{host} gave vectors of dimension {found}, not {wanted}")
    vectors = np.stack(ordered)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise ServiceError("unfit", f"{host} gave a vector with NaN or infinity")
    if not (norms > 1e-12).all():
        raise ServiceError("unfit", f"{host} gave a vector of zeros")
    return np.asarray(vectors / norms, dtype=np.float32)


def _numbers(value: Any, host: str) -> npt.NDArray[np.float64]:
    """Decode a vector: base64 of little-endian float32, or a list of numbers; may hold NaN or infinity."""
    fault = ServiceError("unfit", f"{host} gave a vector that cannot be read")
    try:
        if isinstance(value, str):
            numbers = np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float64)
        elif isinstance(value, list) and set(map(type, value)) <= {int, float}:
            numbers = np.array(value, dtype=np.float64)
        else:
            raise fault
    except (ValueError, OverflowError, binascii.Error):
        raise fault from None
    if not 1 <= len(numbers) <= LARGEST_DIM:
        raise fault
    return numbers


def _tokens_used(answer: Mapping[str, Any], n_tokens: int) -> int:
    """Return the server's token count, or ``n_tokens`` if the server gives no valid count."""
    usage = answer.get("usage")
    found = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return found if type(found) is int and 0 <= found < 10**9 else n_tokens


#: Texts that the probe encodes one by one.
ALONE = PROBES[:3]
#: Texts that the probe adds for a batch. They have other lengths, because some servers pad batches wrongly.
COMPANY = (
    "SST",
    "A hormone of the islets that is secreted when the blood holds much glucose, and lets muscle and fat "
    "take it up. " * 4,
    "LOC100129534, an uncharacterized gene.",
)
BATCH = tuple(text for pair in zip(ALONE, COMPANY, strict=True) for text in pair)
#: Smallest cosines of two vectors of the same text, once alone and once in a batch, and both times alone.
SAME_IN_BATCH, SAME_AT_ALL = 0.999, 0.99

Ask = Callable[[Sequence[str], "int | None"], Awaitable[Embedded]]


@dataclass
class Probe:
    """Result of probing a server.

    Attributes
    ----------
    vectors
        (3, dim) float32 vectors of :data:`ALONE`.
    model
        Name of the model in the server's answer.
    seconds
        Median duration of a request with one text.
    one_by_one
        True if a request must hold only one text.
    one_at_a_time
        True if only one request may run at a time, because the server joins concurrent requests to a batch.
    notes
        Messages for the user.
    """

    vectors: Float32
    model: str
    seconds: float
    one_by_one: bool = False
    one_at_a_time: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])


async def probe_server(ask: Ask, host: str, dimensions: int | None = None) -> Probe:
    """Encode a few texts one by one and in a batch, to find out whether batches change vectors.

    Parameters
    ----------
    ask
        Function of texts and the required length of their vectors, or None.
    host
        Name of the server in messages.
    dimensions
        Requested length of the vectors, or None.

    Raises
    ------
    InputError
        The server gives vectors of another length than requested, the same vector for different texts, or
        different vectors for the same text.
    ServiceError
        Raised by ``ask``.
    """
    answers = [await ask([text], None) for text in ALONE]
    notes = []
    together = None
    try:
        together = await ask(BATCH, None)
    except ServiceError as error:
        if error.kind != "rejected":
            raise
        notes.append(f"{host} accepts only one text per request; scvec sends one")
    # A single answer may have a wrong length by chance, so take the most common one.
    found = [a.vectors.shape[1] for a in (*answers, together) if a is not None]
    dim = Counter(found).most_common(1)[0][0]
    if dimensions not in (None, dim):
        what = f"{host} gave vectors of {dim} dimensions instead of {dimensions}"
        fix = "leave out dimensions=, or give a model that can shorten its vectors"
        raise InputError(what, "--backbone", fix)
    answers = [
        answer if answer.vectors.shape[1] == dim else await ask([text], dim)
        for text, answer in zip(ALONE, answers, strict=True)
    ]
    alone = np.concatenate([answer.vectors for answer in answers])
    if float(np.triu(alone @ alone.T, 1).max()) > 1 - 1e-6:
        raise InputError(f"{host} gives different texts the same vector", "--backbone", "check the model")
    # The median leaves out the first call, which may open the connection or load the model.
    seconds = float(np.median([a.seconds for a in answers]))
    probe = Probe(alone, answers[0].model, seconds, together is None, notes=notes)
    if together is None:
        at_once = await asyncio.gather(*(ask([text], dim) for text in ALONE))
        if min(float(a.vectors[0] @ b) for a, b in zip(at_once, alone, strict=True)) < SAME_IN_BATCH:
            probe.one_at_a_time = True
            notes.append(f"{host} gives different vectors for concurrent requests; scvec sends one at a time")
        return probe
    if together.vectors.shape[1] != dim:
        together = await ask(BATCH, dim)
    cosines = (alone * together.vectors[::2]).sum(axis=1)
    worst = int(cosines.argmin())
    if cosines[worst] >= SAME_IN_BATCH:
        return probe
    # Either the batch changes the vector, or the server gives a different vector each time.
    again = float((await ask([ALONE[worst]], dim)).vectors[0] @ alone[worst])
    if again >= SAME_IN_BATCH:
        # Also send one request at a time, because llama.cpp joins concurrent requests to a batch.
        probe.one_by_one = probe.one_at_a_time = True
        notes.append(
            f"{host} gives different vectors in a batch (cosine {cosines[worst]:.3f}); scvec sends one "
            "text at a time"
        )
    elif again >= SAME_AT_ALL:
        notes.append(f"{host} gives a different vector for the same text each time (cosine {again:.4f})")
    else:
        what = f"{host} gives a different vector for the same text each time (cosine {again:.3f})"
        raise InputError(what, "--backbone", "use a server with reproducible vectors")
    return probe


#: OpenAI's limits: texts in a request, tokens in a request, tokens in a text.
MOST_INPUTS, MOST_TOKENS, LONGEST = 2048, 300_000, 8192
#: Number of texts in one request. A failed request loses at most these.
INPUTS = 256
#: Duration of one request to OpenAI in seconds, for estimates.
SECONDS_A_REQUEST = 1.5

_Vectors = tuple[list[int], Float32]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated effort of encoding texts.

    Attributes
    ----------
    requests
        Smallest number of requests, probes included.
    tokens
        Upper estimate of the number of tokens.
    cost
        US dollars; None if the price is unknown.
    seconds
        Approximate duration.
    """

    requests: int
    tokens: int
    cost: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Requests:
    """Settings of requests to a server.

    Attributes
    ----------
    inputs
        Number of texts in one request, at most 2048.
    concurrency
        Number of concurrent requests.
    caller
        Function that returns the retry policy for a service's name. Tests use a policy that does not wait.
    """

    inputs: int = INPUTS
    concurrency: int = 4
    caller: Callable[[str], Caller] | None = None


@backbone("openai:MODEL", options={"dimensions": LARGEST_DIM, "max_tokens": 1_000_000}, asks_server=True)
class RemoteBackbone:
    """Vectors from a server, normalized to length 1.

    The space has the name of the model, and ``MODEL@HOST`` as its revision. MODEL is the name in the server's
    answer, if it differs. HOST is the server without its port; it is ``localhost`` for this machine, and
    empty for OpenAI. So a local server may change its port and keep its space, but another host is another
    space. Names do not prove that the model is the same. So :meth:`probe` returns vectors of fixed texts,
    which are stored with the space and compared at the next use of the server.

    Before the first use, the probe encodes a few texts one by one and in a batch. Some servers mix up the
    texts of a batch. If the vectors differ, only one text at a time is sent, and :attr:`notes` report it.

    Parameters
    ----------
    model
        Name of the model on the server.
    template
        Name of the text template; part of the space.
    settings
        Key, address, time-out and prices.
    base_url
        Address of the server; it overrides the one in the settings.
    dimensions
        Requested length of the vectors. A server that ignores it is refused.
    max_tokens
        Longer texts are cut to this number of tokens; None means OpenAI's limit of 8192.
    max_cost
        Cost limit in US dollars; encoding stops before it is reached. None for no limit.
    requests
        Settings of requests.

    Raises
    ------
    InputError
        There is a cost limit, but the price is unknown.
    """

    def __init__(
        self,
        model: str,
        template: str,
        *,
        settings: Settings,
        base_url: str | None = None,
        dimensions: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        requests: Requests | None = None,
    ) -> None:
        requests = Requests() if requests is None else requests
        self.model, self.template, self.dimensions = model, template, dimensions
        self.max_tokens, self.concurrency = max_tokens or LONGEST, requests.concurrency
        self._cut_early = max_tokens is not None
        self._settings, self._caller = settings, requests.caller
        self._base_url = (base_url or settings.openai.base_url or OPENAI_URL).strip()
        price = price_of(model, settings.prices, self._base_url)
        self._budget = Budget(price, max_cost, model=model)
        self._sizes = Sizes(inputs=max(1, min(requests.inputs, MOST_INPUTS)), tokens=MOST_TOKENS)
        #: ``base64`` needs a quarter of the bytes. Servers without it answer with numbers or an error.
        self._encoding = "base64"
        self._probed: tuple[Space, dict[str, Float32]] | None = None
        self._notes: dict[str, None] = {}
        self._cut: set[str] = set()
        #: Number of requests so far, and number of tokens in answered requests, counted by scvec.
        self.n_calls = self.n_tokens = 0

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> RemoteBackbone:
        """Return the model of a server."""
        return cls(
            spec.argument,
            spec.template,
            settings=options.settings or Settings.load(),
            base_url=spec.base_url,
            dimensions=spec.number("dimensions"),
            max_tokens=spec.number("max_tokens"),
            max_cost=options.max_cost,
        )

    @property
    def spent(self) -> float | None:
        """US dollars spent so far; None if the price is unknown."""
        return self._budget.spent

    @property
    def notes(self) -> list[str]:
        """Messages for the user that are not errors, such as texts that were cut."""
        notes = list(self._notes)
        if self._cut:
            notes.append(f"{len(self._cut):,} texts were longer than {self.max_tokens:,} tokens and were cut")
        return notes

    @property
    def space(self) -> Space:
        """The space of the vectors; the first access probes the server.

        Raises
        ------
        ScvecError
            The server does not answer, or its vectors are unusable.
        """
        return self.probe()[0]

    def check(self) -> None:
        """Raise an error if the address is not valid or a required key is missing; send no request."""
        LlmService(self._settings.openai, base_url=self._base_url)

    def fits(self, space: Space) -> bool:
        """Return whether this backbone may have made vectors of a space; send no request."""
        return (
            (space.backbone, space.template, space.pooling) == (self._name, self.template, self._pooling)
            and space.revision.rpartition("@")[2] == self._host
            and self.dimensions in (None, space.dim)
        )

    def probe(self) -> tuple[Space, dict[str, Float32]]:
        """Return the space, and SHA-256 -> vector (dim,) float32 of a few texts; ask the server only once.

        Raises
        ------
        ScvecError
            The server does not answer, or its vectors are unusable.
        """
        if self._probed is None:

            async def run() -> None:
                async with self._service() as service:
                    await self._probe(service)

            try:
                run_async(run())
            except ServiceError as error:
                raise error.translated(self._name) from None
            except BudgetSpentError as error:
                raise self._over_budget(str(error)) from None
        if self._probed is None:
            raise InputError("the server was not asked", self._name)
        return self._probed

    def estimate(self, texts: Sequence[str]) -> Estimate:
        """Estimate the effort of encoding texts; send no request."""
        counts = self._counted([t for t in texts if t.strip()])[1]
        batches = Batches(counts, Sizes(self._sizes.inputs, MOST_TOKENS), lambda count: count)
        requests = 0
        while batches:
            batches.take()
            requests += 1
        if self._probed is None and counts:
            probes = count_tokens([*ALONE, *BATCH])
            counts, requests = [*counts, *probes], requests + len(ALONE) + 1
        price = self._budget.price
        cost = None if price is None else self._budget.cost(sum(counts))
        waves = -(-requests // self.concurrency)
        return Estimate(requests, sum(counts), cost, waves * SECONDS_A_REQUEST)

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, dim) float32 vectors of length 1, in the order of the texts.

        Raises
        ------
        ScvecError
            A text has no vector. The paid vectors of the other texts are then lost; use :meth:`encode_each`
            to keep them.
        """
        found: dict[int, Float32] = {}

        def keep(rows: list[int], vectors: Float32) -> None:
            found.update(zip(rows, vectors, strict=True))

        outcome = self.encode_each(texts, keep)
        if outcome.stopped:
            raise outcome.error or self._over_budget(outcome.stopped)
        if outcome.failures:
            row, reason = min(outcome.failures.items())
            what = f"{len(outcome.failures):,} of {len(texts):,} texts have no vector: {reason}"
            raise NetworkError(
                what, texts[row][:80], "run the same command again later", code="texts-missing"
            )
        return np.array([found[i] for i in range(len(texts))], np.float32).reshape(-1, self.space.dim)

    def encode_each(
        self,
        texts: Sequence[str],
        keep: Callable[[list[int], Float32], None],
        *,
        progress: Callable[[int, str], None] = lambda done, detail: None,
    ) -> Streamed:
        """Encode texts and pass all vectors to ``keep`` as they arrive.

        Parameters
        ----------
        texts
            Texts to encode.
        keep
            Function of text numbers and their vectors, (n, dim) float32. If it raises, no more requests are
            sent.
        progress
            Function of the number of finished texts, and of rate and cost in words.

        Returns
        -------
        Streamed
            Texts that the server refused or gave no valid vector for, and the reason for an early stop.
            Reasons are a refused key, an unreachable server, or the cost limit, which is not an error.
        """
        sent, counts = self._counted(texts)
        empty = frozenset(i for i, text in enumerate(sent) if not text.strip())
        started, done = time.monotonic(), 0

        def arrived(rows: list[int], vectors: Float32) -> None:
            nonlocal done
            keep(rows, vectors)
            done += len(rows)
            self.n_tokens += sum(counts[i] for i in rows)
            rate = 60 * done / max(time.monotonic() - started, 1e-3)
            spent = "" if self.spent is None else f", ${self.spent:.4f}"
            progress(done, f"{rate:,.0f} a minute{spent}")

        failures: dict[int, str] = dict.fromkeys(sorted(empty), "the text is empty")

        def kept(results: list[_Vectors]) -> None:
            for rows, vectors in results:
                if rows:
                    arrived(rows, vectors)

        def failed(rows: list[int], reason: str, attempts: int) -> _Vectors:
            failures.update(dict.fromkeys(rows, reason))
            return [], np.empty((0, 0), np.float32)

        async def run() -> Stop | None:
            async with self._service() as service:
                if self._probed is None:
                    await self._probe(service)
                dim = self.space.dim

                async def ask(rows: list[int]) -> tuple[_Vectors, list[int]]:
                    n_tokens = sum(counts[i] for i in rows)
                    try:
                        answer = await self._ask(service, [sent[i] for i in rows], n_tokens, dim)
                    except ServiceError as error:
                        if error.kind == "rejected":
                            self._sizes.refused(len(rows))
                        raise
                    self._sizes.took(len(rows), n_tokens, answer.seconds)
                    return (rows, answer.vectors), []

                return await ask_all(
                    Batches((i for i in range(len(sent)) if i not in empty), self._sizes, counts.__getitem__),
                    ask,
                    kept,
                    failed,
                    caller=service.caller,
                    concurrency=self.concurrency,
                )

        if len(empty) == len(sent):
            return Streamed(failures)
        try:
            stopped = run_async(run())
        except (ServiceError, BudgetSpentError) as error:
            stopped = error
        return self._ended(failures, stopped)

    @asynccontextmanager
    async def _service(self) -> AsyncIterator[LlmService]:
        caller = self._caller(self._host or "OpenAI") if self._caller is not None else None
        service = LlmService(self._settings.openai, base_url=self._base_url, caller=caller)
        self._notes |= dict.fromkeys(service.notes)
        # Aim far below the time-out, because a request that times out is lost but paid for.
        self._sizes.seconds = service.timeout / 3
        async with service:
            try:
                yield service
            finally:
                self.n_calls += service.caller.n_calls

    async def _ask(
        self,
        service: LlmService,
        texts: Sequence[str],
        n_tokens: int,
        dim: int | None = None,
        *,
        tries: int = 1,
    ) -> Embedded:
        """Return the vectors of texts.

        Parameters
        ----------
        n_tokens
            Number of tokens of all texts, for the budget.
        dim
            Required length of the vectors, or None.
        tries
            Number of attempts if the server gives unusable answers.

        Raises
        ------
        ServiceError
            Kind ``unfit`` if the answer is unusable; other kinds as in :meth:`LlmService.call`.
        BudgetSpentError
            The request could exceed the cost limit; it was not sent.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "input": list(texts),
            "encoding_format": self._encoding,
        }
        if self.dimensions is not None:
            body["dimensions"] = self.dimensions

        async def once() -> Embedded:
            # Every attempt may cost money, so reserve its cost before sending it.
            reserve = self._budget.reserve(n_tokens)
            started = time.monotonic()
            try:
                answer = await service.send("/embeddings", body)
            except LlmError as error:
                if error.may_cost:
                    reserve.keep()
                else:
                    reserve.release()
                if error.status == 500 and "too large" in error.reason:
                    # llama.cpp reports a too long text as an internal server error.
                    raise ServiceError("rejected", error.reason) from None
                raise
            except BaseException:
                reserve.keep()
                raise
            reserve.settle(_tokens_used(answer, n_tokens))
            vectors = vectors_of(answer, len(texts), service.host, dim)
            model = answer.get("model")
            seconds = time.monotonic() - started
            return Embedded(vectors, model if isinstance(model, str) else "", seconds)

        return await service.call(once, unfit=tries)

    async def _probe(self, service: LlmService) -> None:
        """Find the length of the vectors, and whether batches change them."""

        async def ask(given: Sequence[str], dim: int | None) -> Embedded:
            n_tokens = sum(count_tokens(given))
            try:
                return await self._ask(service, given, n_tokens, dim, tries=PROBE_TRIES)
            except ServiceError as error:
                # Some servers do not support base64 and refuse the request.
                if error.kind != "rejected" or len(given) > 1 or self._encoding == "float":
                    raise
            self._encoding = "float"
            return await self._ask(service, given, n_tokens, dim, tries=PROBE_TRIES)

        found = await probe_server(ask, service.host, self.dimensions)
        self._notes |= dict.fromkeys(found.notes)
        if found.one_by_one:
            self._sizes.inputs = 1
        if found.one_at_a_time:
            self.concurrency = 1
        self._sizes.took(1, sum(count_tokens(ALONE)) // len(ALONE), found.seconds)
        vectors = dict(zip(map(text_sha256, ALONE), found.vectors, strict=True))
        self._probed = self._space_of(found.dim, found.model), vectors

    def _counted(self, texts: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return the texts, cut to the largest number of tokens, and their numbers of tokens."""
        sent, counts = list(texts), count_tokens(texts)
        for i, count in enumerate(counts):
            if count > self.max_tokens:
                self._cut.add(text_sha256(sent[i]))
                sent[i] = truncate(sent[i], self.max_tokens)
                counts[i] = self.max_tokens
        return sent, counts

    @property
    def _name(self) -> str:
        return f"openai:{self.model}"

    @property
    def _host(self) -> str:
        """Name of the server in the space."""
        host = (urlsplit(self._base_url).hostname or "").lower()
        if host == urlsplit(OPENAI_URL).hostname:
            return ""
        return "localhost" if is_loopback(host) else host

    @property
    def _pooling(self) -> str:
        return f"api, {self.max_tokens} tokens" if self._cut_early else "api"

    def _space_of(self, dim: int, model: str) -> Space:
        # llama.cpp gives the path of the model file; its folders are not part of the model's name.
        model = model.replace("\\", "/").rsplit("/", 1)[-1].replace("@", " ")
        model = "".join(c for c in model if c.isprintable())[:100].strip()
        model = "" if model == self.model.rsplit("/", 1)[-1] else model
        return Space(
            backbone=self._name,
            revision=f"{model}@{self._host}" if model or self._host else "",
            weights_sha256="",
            template=self.template,
            pooling=self._pooling,
            dim=dim,
            normalized=True,
        )

    def _ended(self, failures: dict[int, str], stopped: Stop | None) -> Streamed:
        error = stopped.translated(self._name) if isinstance(stopped, ServiceError) else None
        return Streamed(failures, "" if stopped is None else str(stopped), error)

    def _over_budget(self, reason: str) -> InputError:
        return InputError(
            reason,
            f"--max-cost, {self._name}",
            "raise the limit and run the command again",
            code="cost-limit",
        )
