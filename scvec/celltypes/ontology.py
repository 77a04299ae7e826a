"""Cell Ontology terms for classes, and the broad term that is still certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scvec.base.arrays import Texts, blocks, code_type, coded, release
from scvec.base.types import Float32

__all__ = ["ClassOntology"]

#: Cells at once.
_BLOCK = 2**13


@dataclass(frozen=True, slots=True)
class ClassOntology:
    """The Cell Ontology terms of classes, and the terms above them.

    Attributes
    ----------
    terms, how, confidence
        Per class its own term ("" where there is none), how it was found
        (:class:`scvec.celltypes.terms.Match`) and with which confidence (0 to 1).
    names
        Term -> its label.
    lineage
        Term of a class -> the terms above it, itself included.
    depth
        Term -> number of terms above it: the deeper, the more specific.
    """

    terms: tuple[str, ...]
    names: dict[str, str]
    lineage: dict[str, tuple[str, ...]]
    depth: dict[str, int]
    how: tuple[str, ...] = ()
    confidence: tuple[float, ...] = ()

    def coded_broad(self, proba: Float32, *, bar: float = 0.8) -> tuple[Texts, Texts]:
        """Return, per cell, (label, id) of the deepest term whose summed probability reaches ``bar``.

        ``"T cell"`` where CD4 and CD8 are both likely; empty strings where no term reaches it. ``proba`` is
        (n, n_classes) float32; the result is categories, one or two bytes a cell.
        """
        names = sorted({t for path in self.lineage.values() for t in path})
        # The last number stands for cells without a term.
        codes = np.full(len(proba), len(names), dtype=code_type(len(names) + 1))
        labels = [*(self.names.get(t, "") for t in names), ""]
        if not names:
            return coded(codes, labels), coded(codes, [""])
        number = {term: i for i, term in enumerate(names)}
        under = np.zeros((len(self.terms), len(names)))
        for c, term in enumerate(self.terms):
            for above in self.lineage.get(term, ()):
                under[c, number[above]] = 1.0
        depth = np.array([self.depth[t] for t in names], dtype=np.float64)
        # In blocks: there are more terms than classes.
        for rows in blocks(len(proba), _BLOCK):
            mass = proba[rows] @ under
            # Among the terms that pass, the deepest; of two equally deep, the likelier one.
            rank = np.where(mass >= bar - 1e-6, depth + 0.5 * np.minimum(mass, 1.0), -1.0)
            best = rank.argmax(axis=1)
            passed = rank[np.arange(len(best)), best] >= 0
            codes[rows] = np.where(passed, best, len(names))
            release(proba)
        return coded(codes, labels), coded(codes, [*names, ""])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "terms": list(self.terms),
            "names": self.names,
            "lineage": {k: list(v) for k, v in self.lineage.items()},
            "depth": self.depth,
            "how": list(self.how),
            "confidence": list(self.confidence),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClassOntology:
        """Rebuild from :meth:`to_dict`."""
        return cls(
            tuple(data["terms"]),
            dict(data["names"]),
            {k: tuple(v) for k, v in data["lineage"].items()},
            {k: int(v) for k, v in data["depth"].items()},
            tuple(data["how"]),
            tuple(data["confidence"]),
        )
