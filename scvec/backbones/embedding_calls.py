"""One request for embeddings, and what must be true of its answer."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.ingest.sources.openai import LlmError, LlmService
from scvec.ingest.sources.prices import Budget
from scvec.ingest.sources.retry import ServiceError
from scvec.types import Float32

__all__ = ["Embedded", "EmbeddingCalls", "vectors_of"]

#: Numbers that a vector may have.
LARGEST_DIM = 65536


@dataclass(frozen=True, slots=True)
class Embedded:
    """An answer that is what was asked for.

    Attributes
    ----------
    vectors
        (n, dim) float32 of length 1, one per text, in order.
    model
        The model that the server says it was, or empty.
    seconds
        Time that the call took which was answered.
    """

    vectors: Float32
    model: str = ""
    seconds: float = 0.0


class EmbeddingCalls:
    """Asks one model of one server for embeddings, for all tasks of a run.

    Parameters
    ----------
    dimensions
        Sent where given; whether the server heeds it is seen from the vectors.
    """

    def __init__(self, service: LlmService, budget: Budget, model: str, dimensions: int | None) -> None:
        self.service, self.budget = service, budget
        self.model, self.dimensions = model, dimensions
        #: ``base64`` is a quarter of the bytes; servers that do not know it answer with numbers, or refuse.
        self.encoding = "base64"

    async def ask(self, texts: Sequence[str], n_tokens: int, dim: int | None = None) -> Embedded:
        """Return the vectors of texts.

        Parameters
        ----------
        n_tokens
            Tokens of all texts, for the budget.
        dim
            What their dimension must be, if it is known.

        Raises
        ------
        ServiceError
            Of kind ``unfit`` if the answer is not what was asked for; others as :meth:`LlmService.call`.
        BudgetSpentError
            If it might cost too much; nothing was sent.
        """
        body: dict[str, Any] = {"model": self.model, "input": list(texts), "encoding_format": self.encoding}
        if self.dimensions is not None:
            body["dimensions"] = self.dimensions

        async def once() -> Embedded:
            # Every attempt may cost: it is set aside before it is made.
            reserve = self.budget.reserve(n_tokens)
            started = time.monotonic()
            try:
                answer = await self.service.send("/embeddings", body)
            except LlmError as error:
                if error.may_cost:
                    reserve.keep()
                else:
                    reserve.release()
                if error.status == 500 and "too large" in error.reason:
                    # llama.cpp calls it a failure of its own that a text is longer than it takes.
                    raise ServiceError("rejected", error.reason) from None
                raise
            except BaseException:
                reserve.keep()
                raise
            reserve.settle(_tokens_used(answer, n_tokens))
            vectors = vectors_of(answer, len(texts), self.service.host, dim)
            model = answer.get("model")
            seconds = time.monotonic() - started
            return Embedded(vectors, model if isinstance(model, str) else "", seconds)

        return await self.service.call(once)


def vectors_of(answer: Mapping[str, Any], n: int, host: str, dim: int | None = None) -> Float32:
    """Return the vectors of an answer, (n, dim) float32 of length 1, matched by ``index``.

    Parameters
    ----------
    dim
        What their dimension must be; None to take what comes.

    Raises
    ------
    ServiceError
        Of kind ``unfit`` if an index is missing, doubled or beyond, or a vector is of another dimension than
        the others or ``dim``, not of finite numbers, or zero.
    """
    rows = answer.get("data")
    if not isinstance(rows, list) or len(rows) != n:
        found = f"{len(rows):,}" if isinstance(rows, list) else "no list of"
        raise ServiceError("unfit", f"{host} gave {found} vectors for {n:,} texts")
    ordered: list[Any] = [None] * n
    for row in rows:
        index = row.get("index") if isinstance(row, dict) else None
        if type(index) is not int or not 0 <= index < n:
            raise ServiceError("unfit", f"{host} gave a vector whose index is no text's")
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
    """Return a vector as numbers, whatever they are; it is base64 of little-endian float32, or a list."""
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
    """Return what the server says it counted; our own count where it says nothing sensible."""
    usage = answer.get("usage")
    found = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return found if type(found) is int and 0 <= found < 10**9 else n_tokens
