"""What a server of embeddings is like: asked with a few texts, before any that matter."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from scvec.backbones.embedding_calls import Embedded
from scvec.backbones.sentence import PROBES
from scvec.errors import InputError
from scvec.ingest.sources.retry import ServiceError
from scvec.types import Float32

__all__ = ["ALONE", "BATCH", "Probe", "probe_server"]

#: Texts that are asked for alone.
ALONE = PROBES[:3]
#: The company in which they are asked for again: texts of other lengths, which some servers pad wrongly.
COMPANY = (
    "SST",
    "A hormone of the islets that is secreted when the blood holds much glucose, and lets muscle and fat "
    "take it up. " * 4,
    "LOC100129534, an uncharacterized gene.",
)
BATCH = tuple(text for pair in zip(ALONE, COMPANY, strict=True) for text in pair)
#: Times a probe is asked for whose answer is not what was asked for.
ROUNDS = 5
#: Cosines of two vectors of one text: below, a batch changes them, or the server gives others each time.
SAME_IN_BATCH, SAME_AT_ALL = 0.999, 0.99

Ask = Callable[[Sequence[str], "int | None"], Awaitable[Embedded]]


@dataclass
class Probe:
    """What was found.

    Attributes
    ----------
    vectors
        Of :data:`ALONE`, (3, dim) float32.
    model
        The model that the server says it is.
    seconds
        That one text took, alone.
    one_by_one
        Whether a request may hold one text only.
    one_at_a_time
        Whether one request may be under way only: what a server joins to a batch of its own is a batch too.
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
    """Ask for a few texts alone and in a batch.

    Parameters
    ----------
    ask
        Takes texts, and the dimension their vectors must have, if one is known.
    host
        For messages.
    dimensions
        What was asked for.

    Raises
    ------
    InputError
        If the server gives another dimension than was asked for, one vector for different texts, or other
        vectors for a text each time.
    ServiceError
        As ``ask``.
    """

    async def asked(texts: Sequence[str], dim: int | None = None) -> Embedded:
        for n_round in range(1, ROUNDS + 1):
            try:
                return await ask(texts, dim)
            except ServiceError as error:
                if error.kind != "unfit" or n_round == ROUNDS:
                    raise
        raise AssertionError("unreachable")

    answers = [await asked([text]) for text in ALONE]
    notes = []
    together = None
    try:
        together = await asked(BATCH)
    except ServiceError as error:
        if error.kind != "rejected":
            raise
        notes.append(f"{host} takes one text a request, and gets one")
    # One answer may be of a wrong dimension by chance: what most have is right.
    found = [a.vectors.shape[1] for a in (*answers, together) if a is not None]
    dim = Counter(found).most_common(1)[0][0]
    if dimensions not in (None, dim):
        what = f"{host} gave vectors of {dim} dimensions where {dimensions} were asked for"
        fix = "leave out dimensions=, or name a model that can shorten them"
        raise InputError(what, "--backbone", fix)
    answers = [
        answer if answer.vectors.shape[1] == dim else await asked([text], dim)
        for text, answer in zip(ALONE, answers, strict=True)
    ]
    alone = np.concatenate([answer.vectors for answer in answers])
    if float(np.triu(alone @ alone.T, 1).max()) > 1 - 1e-6:
        raise InputError(f"{host} gives different texts the same vector", "--backbone", "check the model")
    # The first call opens the connection, or wakes the model up.
    seconds = float(np.median([a.seconds for a in answers]))
    probe = Probe(alone, answers[0].model, seconds, together is None, notes=notes)
    if together is None:
        at_once = await asyncio.gather(*(asked([text], dim) for text in ALONE))
        if min(float(a.vectors[0] @ b) for a, b in zip(at_once, alone, strict=True)) < SAME_IN_BATCH:
            probe.one_at_a_time = True
            notes.append(f"{host} gives other vectors to texts asked for at once: it gets one at a time")
        return probe
    if together.vectors.shape[1] != dim:
        together = await asked(BATCH, dim)
    cosines = (alone * together.vectors[::2]).sum(axis=1)
    worst = int(cosines.argmin())
    if cosines[worst] >= SAME_IN_BATCH:
        return probe
    # A batch made the difference, or the server makes one each time.
    again = float((await asked([ALONE[worst]], dim)).vectors[0] @ alone[worst])
    if again >= SAME_IN_BATCH:
        # Also one request at a time: llama.cpp computes what several ask for at once as a batch.
        probe.one_by_one = probe.one_at_a_time = True
        notes.append(
            f"{host} gives other vectors in batches than alone (cosine {cosines[worst]:.3f}): it gets one "
            "text at a time"
        )
    elif again >= SAME_AT_ALL:
        notes.append(f"{host} gives a text another vector each time (cosine {again:.4f})")
    else:
        what = f"{host} gives a text another vector each time (cosine {again:.3f})"
        raise InputError(what, "--backbone", "use a server whose vectors can be compared")
    return probe
