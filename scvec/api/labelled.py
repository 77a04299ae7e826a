"""Labelled cells of one or several files, one after another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scvec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from scvec.ingest.cells import CellSource

__all__ = ["MAX_TRAINING_CELLS", "Labelled"]

#: Cells that the encoder and the head are trained on at most.
MAX_TRAINING_CELLS = 20_000
#: Columns of obs in which data sets keep Cell Ontology ids, the CELLxGENE schema's first.
ONTOLOGY_COLUMNS = ("cell_type_ontology_term_id", "cell_ontology_id")


@dataclass(frozen=True)
class Labelled:
    """Labels and batches of the cells of all files, one after another.

    Attributes
    ----------
    codes
        (n,) int64 class numbers, -1 for none.
    batches
        (n,) strings, or None.
    """

    sources: list[CellSource]
    codes: npt.NDArray[np.int64]
    classes: list[str]
    batches: npt.NDArray[np.str_] | None

    @classmethod
    def read(cls, sources: list[CellSource], label_key: str, batch_key: str | None) -> Labelled:
        from scvec.ingest.labels import labels

        if not sources:
            raise InputError("no reference file was given", fix="name at least one h5ad file")
        each = [labels(source, label_key) for source in sources]
        classes = sorted({c for _, names in each for c in names})
        number = {c: i for i, c in enumerate(classes)}
        codes = [
            np.array([number[names[k]] if k >= 0 else -1 for k in part], dtype=np.int64)
            for part, names in each
        ]
        batches = None
        if batch_key is not None:
            batches = np.concatenate([_batches(s, batch_key, i) for i, s in enumerate(sources)])
        elif len(sources) > 1:
            batches = np.concatenate([np.full(s.n_obs, f"file {i}") for i, s in enumerate(sources)])
        return cls(sources, np.concatenate(codes), classes, batches)

    @property
    def n(self) -> int:
        return len(self.codes)

    def counts(self) -> dict[str, int]:
        """Cells per label, most first."""
        numbers = np.bincount(self.codes[self.codes >= 0], minlength=len(self.classes))
        order = np.argsort(-numbers, kind="stable")
        return {self.classes[i]: int(numbers[i]) for i in order}

    def table(self) -> pd.DataFrame:
        """Return obs of all cells, and their class numbers."""
        import pandas as pd

        from scvec.api.references import CODE_COLUMN

        obs = (
            pd.concat([s.obs for s in self.sources]) if len(self.sources) > 1 else self.sources[0].obs.copy()
        )
        obs[CODE_COLUMN] = self.codes
        return obs

    def training_rows(self, seed: int) -> npt.NDArray[np.int64]:
        """Return which cells to train on, ascending: all labelled ones, or a sample, rare labels whole."""
        rows = np.flatnonzero(self.codes >= 0)
        if len(rows) <= MAX_TRAINING_CELLS:
            return rows
        counts = np.bincount(self.codes[rows], minlength=len(self.classes))
        low, high = 0, int(counts.max())
        while low < high:  # the largest cap on a label that keeps the sum within the budget
            cap = (low + high + 1) // 2
            low, high = (cap, high) if np.minimum(counts, cap).sum() <= MAX_TRAINING_CELLS else (low, cap - 1)
        rng = np.random.default_rng(seed)
        kept = [rng.permutation(rows[self.codes[rows] == c])[: max(low, 1)] for c in range(len(self.classes))]
        return np.sort(np.concatenate(kept))

    def known_terms(self) -> dict[str, str]:
        """Return label -> Cell Ontology id where a column of ids agrees on all cells of a label."""
        known: dict[str, set[str]] = {}
        start = 0
        for source in self.sources:
            codes = self.codes[start : start + source.n_obs]
            start += source.n_obs
            for column in ONTOLOGY_COLUMNS:
                if column not in source.obs.columns:
                    continue
                for code, value in zip(codes, source.obs[column].astype(str), strict=True):
                    if code >= 0 and re.fullmatch(r"CL:\d{7}", value):
                        known.setdefault(self.classes[code], set()).add(value)
                break
        return {label: next(iter(ids)) for label, ids in known.items() if len(ids) == 1}


def _batches(source: CellSource, batch_key: str, number: int) -> npt.NDArray[np.str_]:
    if batch_key not in source.obs.columns:
        from scvec.ingest.labels import no_column

        raise no_column(source, batch_key)
    return np.array([f"{number}:{value}" for value in source.obs[batch_key].astype(str)])
