"""Which space a server's vectors belong to, and whether they still do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scvec.base.errors import StoreError
from scvec.base.protocols import StreamingBackbone
from scvec.base.types import Float32, Space

if TYPE_CHECKING:
    from scvec.stores.store.vector_cache import VectorCache

__all__ = ["fullest_space", "server_space"]

#: Cosine below which two vectors of one text are not of one model.
SAME_MODEL = 0.99
#: Genes whose vectors are compared where those of the probes were lost.
N_COMPARED = 3


def fullest_space(
    cache: VectorCache, backbone: StreamingBackbone, shas: Sequence[str]
) -> tuple[Space | None, set[str]]:
    """Return the space that knows most of the texts, of those that a server's vectors may be of, and which.

    Asks nobody.
    """
    best: tuple[Space | None, set[str]] = (None, set())
    for space in cache.known_spaces():
        if backbone.fits(space):
            found, _ = cache.get_many(space, shas)
            known = {sha for sha, ok in zip(shas, found, strict=True) if ok}
            if best[0] is None or len(known) > len(best[1]):
                best = space, known
    return best


def server_space(cache: VectorCache, backbone: StreamingBackbone, text_of: Mapping[str, str]) -> Space:
    """Return the space of a server's vectors; where those of all texts are known, without asking it.

    Names do not tell whether there is the same model behind an address as before: vectors of a few texts do.
    They are kept in the cache; where that was lost, genes are compared.

    Parameters
    ----------
    text_of
        SHA-256 -> text of all texts that vectors are wanted of.

    Raises
    ------
    StoreError
        If the server gives other vectors than those that are stored.
    """
    space, known = fullest_space(cache, backbone, list(text_of))
    if space is not None and text_of and len(known) == len(text_of):
        return space
    space, probes = backbone.probe()
    shas = list(probes)
    found, before = cache.get_many(space, shas)
    if found.any():
        _compare(space, before[found], np.stack([probes[sha] for sha in shas])[found])
        return space
    found, before = cache.get_many(space, list(text_of))
    rows = np.flatnonzero(found)[:N_COMPARED]
    if len(rows):
        texts = list(text_of.values())
        now = dict[int, Float32]()
        backbone.encode_each(
            [texts[row] for row in rows], lambda numbers, got: now.update(zip(numbers, got, strict=True))
        )
        if now:
            _compare(space, before[rows[list(now)]], np.stack(list(now.values())))
    cache.put_many(space, shas, np.stack([probes[sha] for sha in shas]))
    return space


def _compare(space: Space, before: Float32, now: Float32) -> None:
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(now, axis=1)
    worst = float(((before * now).sum(axis=1) / np.maximum(norms, 1e-12)).min())
    if worst < SAME_MODEL:
        raise StoreError(
            f"the server gives other vectors than it did (cosine {worst:.3f}): it is another model",
            space.backbone,
            "ask the model that was asked before, or fill another store with this one",
        )
