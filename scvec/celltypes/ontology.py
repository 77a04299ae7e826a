"""Cell Ontology terms for classes, and the broad term that is still certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import Texts, blocks, code_type, coded, release
from scvec.base.types import Float32

__all__ = ["ClassOntology"]

_BLOCK = 2**13

Strings = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class ClassOntology:
    """Which classes stand under which Cell Ontology terms.

    Attributes
    ----------
    terms
        Per class its own term, or "" where none was found.
    names
        Label of every term used.
    lineage
        Per term with a class, the terms above it (itself included).
    depth
        Per term, how many terms stand above it: the deeper, the more it says.
    how, confidence
        Per class, how its term was found (:class:`scvec.celltypes.terms.Match`) and how sure that is (0-1);
        empty for references of older versions.
    """

    terms: tuple[str, ...]
    names: dict[str, str]
    lineage: dict[str, tuple[str, ...]]
    depth: dict[str, int]
    how: tuple[str, ...] = ()
    confidence: tuple[float, ...] = ()

    def broad(self, proba: Float32, *, bar: float = 0.8) -> tuple[Strings, Strings]:
        """Return, per cell, (label, id) of the deepest term whose summed probability reaches the bar.

        ``"T cell"`` when CD4 and CD8 are both likely. Empty strings where no term reaches it.

        Parameters
        ----------
        proba
            (n, n_classes) float32.
        """
        said, ids = self.coded_broad(proba, bar=bar)
        return np.asarray(said, dtype=object), np.asarray(ids, dtype=object)

    def coded_broad(self, proba: Float32, *, bar: float = 0.8) -> tuple[Texts, Texts]:
        """Return what :meth:`broad` does as categories, one or two bytes a cell."""
        names = sorted({t for path in self.lineage.values() for t in path})
        # The last number is that of no term.
        codes = np.full(len(proba), len(names), dtype=code_type(len(names) + 1))
        said = [*(self.names.get(t, "") for t in names), ""]
        if not names:
            return coded(codes, said), coded(codes, [""])
        number = {term: i for i, term in enumerate(names)}
        under = np.zeros((len(self.terms), len(names)))
        for c, term in enumerate(self.terms):
            for above in self.lineage.get(term, ()):
                under[c, number[above]] = 1.0
        depth = np.array([self.depth[t] for t in names], dtype=np.float64)
        # There are more terms than classes: never all cells by all terms at once.
        for rows in blocks(len(proba), _BLOCK):
            mass = proba[rows] @ under
            # Among the terms that pass, the deepest; of two equally deep, the likelier one.
            rank = np.where(mass >= bar - 1e-6, depth + 0.5 * np.minimum(mass, 1.0), -1.0)
            best = rank.argmax(axis=1)
            passed = rank[np.arange(len(best)), best] >= 0
            codes[rows] = np.where(passed, best, len(names))
            release(proba)
        return coded(codes, said), coded(codes, [*names, ""])

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
            tuple(data.get("how", ())),
            tuple(data.get("confidence", ())),
        )
