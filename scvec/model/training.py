"""Choice of the cells that a reference is trained on, and of the held-out cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.resources import n_cores, parse_memory
from scvec.base.results import count_text
from scvec.base.types import CellChunk, Float32, Int64, State
from scvec.model.classifiers import Members
from scvec.model.copies import HASH_COLUMN, PRIMARY_COLUMN, is_primary, left_out_notes, repeated

if TYPE_CHECKING:
    import pandas as pd

    from scvec.ingest.cells.label_columns import LabelFinding
    from scvec.ingest.cells.source import CellSource
    from scvec.model.matching import MatchedSource
    from scvec.model.resolvers import GeneMap

__all__ = [
    "CODE_COLUMN",
    "MAX_TRAINING_CELLS",
    "SPECIES_COLUMN",
    "HeldOut",
    "Labelled",
    "TrainingSample",
    "class_tensors",
    "incoherent_labels",
    "make_folds",
    "read_sample",
    "score_held_out",
    "splits",
    "training_budget",
    "training_workers",
]


@dataclass(frozen=True)
class TrainingSample:
    """Training cells of a reference over all its genes, with their folds for cross-validation.

    The store keeps these cells. They are used again to fit the cell space to the genes of a query.

    Attributes
    ----------
    X
        (n, n_genes) CSR float32, log1p CP10k, rounded to half precision (about 0.05%).
    labels
        (n,) int64 class numbers, all >= 0.
    rows
        (n,) int64 row of each cell in the reference, ascending.
    folds
        (n,) int64 fold of each cell.
    held_out
        ``batch`` if folds consist of whole batches, else ``cells``.
    n_batches
        Number of batches in the folds; 0 for ``cells``.
    n_classes
        Number of classes, including classes without a cell.

    Raises
    ------
    ValueError
        If the arrays differ in length, a cell has no class, or the rows do not ascend.
    """

    X: Any
    labels: Int64
    rows: Int64
    folds: Int64
    held_out: str
    n_batches: int
    n_classes: int

    def __post_init__(self) -> None:
        n = self.X.shape[0]
        if not n == len(self.labels) == len(self.rows) == len(self.folds):
            raise ValueError(f"{n} cells with {len(self.labels)} labels and {len(self.rows)} rows")
        if n and (self.labels.min() < 0 or self.labels.max() >= self.n_classes):
            raise ValueError("a training cell has no class")
        if (np.diff(self.rows) <= 0).any():
            raise ValueError("rows must ascend")

    @classmethod
    def rounded(cls, X: Any, **rest: Any) -> TrainingSample:
        """Return a sample with values rounded to the precision of the store."""
        kept = X.copy()
        kept.data = kept.data.astype(np.float16).astype(np.float32)
        return cls(kept, **rest)

    def cells(self, measured: npt.NDArray[np.bool_] | None = None) -> CellChunk:
        """Return the cells with only the genes ``measured`` (n_genes,) bool; None for all genes."""
        if measured is None:
            return CellChunk(self.X, np.ones(self.X.shape[1], dtype=bool))
        X = self.X.copy()
        X.data = np.where(measured[X.indices], X.data, np.float32(0.0))
        X.eliminate_zeros()
        return CellChunk(X, measured)

    def without(self, deleted: Int64) -> TrainingSample:
        """Return the sample after rows of the reference were deleted, with the new row numbers."""
        still = ~np.isin(self.rows, deleted)
        moved = self.rows - np.searchsorted(deleted, self.rows)
        return TrainingSample(
            self.X[still],
            self.labels[still],
            moved[still],
            self.folds[still],
            self.held_out,
            self.n_batches,
            self.n_classes,
        )

    def state(self) -> State:
        """Return the arrays and JSON values to store."""
        index = np.uint16 if self.X.shape[1] <= 1 << 16 else np.uint32
        tensors = {
            "data": self.X.data.astype(np.float16),
            "indices": self.X.indices.astype(index),
            "indptr": self.X.indptr.astype(np.int64),
            "labels": self.labels,
            "rows": self.rows,
            "folds": self.folds,
        }
        meta = {"held_out": self.held_out, "n_batches": self.n_batches, "n_classes": self.n_classes}
        return tensors, {**meta, "n_genes": int(self.X.shape[1])}

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> TrainingSample:
        """Rebuild from :meth:`state`.

        Raises
        ------
        ValueError
            If the parts do not fit together.
        """
        from scipy.sparse import csr_matrix

        shape = (len(tensors["labels"]), int(meta["n_genes"]))
        data = tensors["data"].astype(np.float32)
        X = csr_matrix((data, tensors["indices"].astype(np.int32), tensors["indptr"]), shape=shape)
        X.check_format(full_check=True)
        if not np.isfinite(data).all():
            raise ValueError("training cells have values that are not finite")
        return cls(
            X,
            tensors["labels"].astype(np.int64),
            tensors["rows"].astype(np.int64),
            tensors["folds"].astype(np.int64),
            str(meta["held_out"]),
            int(meta["n_batches"]),
            int(meta["n_classes"]),
        )


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of the members on held-out cells.

    Attributes
    ----------
    scores
        For each member, (n, n_classes) float32.
    labels
        (n,) int64 true classes.
    distances, depths
        (n, n_classes, 3) distances to the classes and (n,) depths, for novelty scores.
    folds
        (n,) int64 fold of each cell.
    cells
        (n,) int64 numbers of the cells in the sample.
    """

    scores: list[Float32]
    labels: Int64
    distances: Float32
    depths: npt.NDArray[np.float64]
    folds: Int64
    cells: Int64


def make_folds(
    labels: Int64,
    batches: npt.NDArray[np.str_] | None,
    *,
    n_folds: int,
    seed: int,
    strata: npt.NDArray[np.str_] | None = None,
    copies: Int64 | None = None,
) -> tuple[Int64, str, list[str]]:
    """Assign cells to folds. Returns the fold of each cell (n,) int64, ``"batch"`` or ``"cells"``, and notes.

    With two batches or more, whole batches are held out, because cells of one donor resemble each other.
    Otherwise the cells of each class are spread over the folds.

    Parameters
    ----------
    strata
        (n,) group of each cell, such as its species, or None. Each group is spread over the folds separately.
    copies
        (n,) int64, or None. Cells with the same number are copies of one cell and are held out together; 0 is
        no copy. A copy in another batch goes to the fold of the first one.
    """
    folds, how, notes = _folds(labels, batches, n_folds, seed, strata)
    if copies is not None:
        _, first, number = np.unique(copies, return_index=True, return_inverse=True)
        folds = np.where(copies != 0, folds[first][number], folds)
    return folds, how, notes


def _folds(
    labels: Int64,
    batches: npt.NDArray[np.str_] | None,
    n_folds: int,
    seed: int,
    strata: npt.NDArray[np.str_] | None,
) -> tuple[Int64, str, list[str]]:
    """Assign cells to folds as :func:`make_folds` does, without regard to copies."""
    rng = np.random.default_rng(seed)
    groups = np.zeros(len(labels), dtype=np.int64) if strata is None else strata
    folds = np.zeros(len(labels), dtype=np.int64)
    by_cells = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        names = np.unique(batches[rows]) if batches is not None else np.array([])
        if batches is not None and len(names) >= 2:
            folds[rows] = _by_batches(batches[rows], n_folds)
        else:
            folds[rows] = _by_cells(labels[rows], n_folds, rng)
            by_cells.append(str(group))
    if not by_cells:
        return folds, "batch", []
    if len(by_cells) < len(np.unique(groups)):
        note = f"single cells were held out instead of whole batches for {' and '.join(by_cells)}"
        return folds, "batch", [f"{note}, so confidence there is optimistic for other data sets"]
    note = (
        "confidence was calibrated on held-out cells of the same batches, so it is optimistic for other data "
        "sets; name the column of donors or batches with --batch-key"
    )
    return folds, "cells", [note]


def _by_batches(batches: npt.NDArray[np.str_], n_folds: int) -> Int64:
    """Return the fold of each cell. Batches go, largest first, to the fold with the fewest cells so far."""
    names, sizes = np.unique(batches, return_counts=True)
    size_of = dict(zip(names, sizes, strict=True))
    load = np.zeros(min(n_folds, len(names)))
    fold_of = {}
    for name in sorted(names, key=lambda n: (-size_of[n], n)):
        fold_of[name] = int(load.argmin())
        load[fold_of[name]] += size_of[name]
    return np.array([fold_of[b] for b in batches], dtype=np.int64)


def _by_cells(labels: Int64, n_folds: int, rng: np.random.Generator) -> Int64:
    """Return the fold of each cell, with the cells of each class spread over all folds."""
    folds = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (np.arange(len(rows)) + rng.integers(n_folds)) % n_folds
    return folds


def splits(labels: Int64, folds: Int64) -> Iterator[tuple[int, Int64, Int64]]:
    """Yield (fold, training cells of the other folds, held-out cells of the fold).

    Held-out cells of a class that the other folds lack are left out, because no member could predict it. A
    fold without held-out cells is skipped.
    """
    for fold in np.unique(folds):
        train = np.flatnonzero((folds != fold) & (labels >= 0))
        test = np.flatnonzero((folds == fold) & (labels >= 0))
        test = test[np.isin(labels[test], np.unique(labels[train]))]
        if len(test) and len(np.unique(labels[train])) >= 2:
            yield int(fold), train, test


def score_held_out(
    cells: CellChunk,
    labels: Int64,
    folds: Int64,
    trained: Iterable[Members],
    *,
    n_neighbors: int,
    seed: int = 0,
    max_cells: int = 5000,
) -> HeldOut:
    """Score the cells of each fold with the members that were trained without it.

    Parameters
    ----------
    trained
        Members trained for each fold of :func:`splits`, in that order; at least one.
    max_cells
        Largest number of held-out cells in total. More would hardly change the calibration.
    """
    rng = np.random.default_rng(seed)
    n_folds = len(np.unique(folds))
    found, truth, held, chosen = [], [], [], []
    for (fold, _, test), members in zip(splits(labels, folds), trained, strict=True):
        # Slow encoders set a lower limit.
        most = min(max_cells, getattr(members.encoder, "held_out_cells", max_cells)) // n_folds
        if len(test) > most:
            test = np.sort(rng.choice(test, most, replace=False))
        found.append(members.score(CellChunk(cells.X[test], cells.measured), n_neighbors))
        truth.append(labels[test])
        chosen.append(test)
        held.append(np.full(len(test), fold, dtype=np.int64))
    return HeldOut(
        [np.concatenate(parts) for parts in zip(*(each.scores for each in found), strict=True)],
        np.concatenate(truth),
        np.concatenate([each.distances for each in found]),
        np.concatenate([each.depths for each in found]),
        np.concatenate(held),
        np.concatenate(chosen),
    )


#: Column in the obs table of a reference with the class number of each cell.
CODE_COLUMN = "_scvec_class"
#: Column with the species of each cell in a reference of two species, for ``--where``.
SPECIES_COLUMN = "scvec_species"
#: Largest number of training cells of encoder and head.
MAX_TRAINING_CELLS = 20_000
#: Largest number of training cells per label for the default encoder. More cells hardly change the mean and
#: spread of a common type, but slow down every fit to the genes of a query.
CELLS_PER_LABEL = 500
#: Smallest limit on training cells, even with little memory. With fewer, rare labels have too few cells.
MIN_TRAINING_CELLS = 2_000
#: Bytes that training needs per cell and gene (five dense copies), and per non-zero value.
BYTES_PER_GENE, BYTES_PER_VALUE = 20, 32
#: Bytes of the libraries and of the gene tables.
FIXED_BYTES = 1_200_000_000
#: Bytes of one of several simultaneous training runs: its cells twice, and gene-by-gene products.
TRAINING_BYTES = 1_000_000_000
#: Columns of obs with Cell Ontology ids. The column of the CELLxGENE schema comes first.
ONTOLOGY_COLUMNS = ("cell_type_ontology_term_id", "cell_ontology_id")
#: Columns of obs with the tissue.
TISSUE_COLUMNS = ("tissue", "organ", "tissue_general")


@dataclass(frozen=True)
class Labelled:
    """Labels and batches of the cells of all files, concatenated in the order of the files.

    Attributes
    ----------
    codes
        (n,) int64 class numbers; -1 marks an unlabelled cell.
    batches
        (n,) strings, or None.
    findings
        Problems with labels, and labels that were left out.
    primary
        (n_read,) bool, False for cells that are not part of the reference; None if all are.
    hashes
        (n_read,) int64, equal for copies of a cell (:mod:`scvec.model.copies`); None until computed.
    notes
        Notes for the user on cells that were left out, and on copies.
    """

    sources: list[CellSource]
    codes: npt.NDArray[np.int64]
    classes: list[str]
    batches: npt.NDArray[np.str_] | None
    findings: tuple[LabelFinding, ...] = ()
    primary: npt.NDArray[np.bool_] | None = None
    hashes: npt.NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        sources: list[CellSource],
        label_key: str,
        batch_key: str | None,
        *,
        min_cells: int = 1,
        label_map: Mapping[str, str] | None = None,
    ) -> Labelled:
        """Read labels and batches. Cells of labels with fewer than ``min_cells`` cells become unlabelled.

        Parameters
        ----------
        label_map
            Label -> new label, or an empty string for unlabelled. Other labels do not change.

        Raises
        ------
        InputError
            If a column is missing or unsuitable, or fewer than two labels have enough cells.
        """
        from scvec.ingest.cells.label_columns import labels, leave_out_rare, look_over

        if not sources:
            raise InputError("no reference file was given", fix="give at least one h5ad file")
        each = [_renamed(*labels(source, label_key), label_map or {}) for source in sources]
        classes = sorted({c for _, names in each for c in names})
        if len(classes) == 1:  # of all files: each may hold one type
            raise InputError(
                f"all cells have the same label, '{classes[0]}'",
                f"{', '.join(s.name for s in sources[:3])} (obs['{label_key}'])",
                "give a reference with two or more cell types, or another --label-key",
                code="one-label",
            )
        number = {c: i for i, c in enumerate(classes)}
        codes = [
            np.array([number[names[k]] if k >= 0 else -1 for k in part], dtype=np.int64)
            for part, names in each
        ]
        together = np.concatenate(codes)
        primary, notes = _primary(sources, together)
        if primary is not None:
            together[~primary] = -1
        together, classes, rare = leave_out_rare(together, classes, min_cells)
        names, numbers = np.unique(together[together >= 0], return_counts=True)
        counts = {classes[k]: int(n) for k, n in zip(names, numbers, strict=True)}
        batches = None
        if batch_key is not None:
            batches, how = _all_batches(sources, batch_key, together)
            notes += how
        if batches is None and len(sources) > 1:
            batches = np.concatenate([np.full(s.n_obs, f"file {i}") for i, s in enumerate(sources)])
        return cls(sources, together, classes, batches, (*rare, *look_over(counts)), primary, None, notes)

    @property
    def n(self) -> int:
        """Number of cells of the reference."""
        return len(self.codes) if self.primary is None else int(self.primary.sum())

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(n_read,) int64 row of each cell in the reference; undefined for cells that were left out."""
        if self.primary is None:
            return np.arange(len(self.codes), dtype=np.int64)
        return np.cumsum(self.primary, dtype=np.int64) - 1

    def kept(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the rows of an array (n_read, ...) for the cells of the reference."""
        return values if self.primary is None else values[self.primary]

    def of_source(self, number: int) -> slice:
        """Return the slice of the rows of a file among all rows read."""
        start = sum(source.n_obs for source in self.sources[:number])
        return slice(start, start + self.sources[number].n_obs)

    def n_of_source(self, number: int) -> int:
        """Return the number of cells of the reference from a file."""
        rows = self.of_source(number)
        return rows.stop - rows.start if self.primary is None else int(self.primary[rows].sum())

    def hashed(self, hashes: npt.NDArray[np.int64]) -> Labelled:
        """Return a copy with the hashes (n_read,) of the cells, and a note if some are copies."""
        known = replace(self, hashes=hashes)
        n = int(repeated(self.kept(hashes)).sum())
        if n == 0:
            return known
        other = int(repeated(np.where(known.once, hashes, 0)).sum())
        apart = f" ({other:,} under another label)" if other else ""
        note = (
            f"warning: {n:,} of {self.n:,} cells are copies of an earlier cell{apart}; training used one "
            "copy of each, and copies were held out together; give each cell once"
        )
        return replace(known, notes=(*self.notes, note))

    @cached_property
    def once(self) -> npt.NDArray[np.bool_]:
        """(n_read,) bool, True for labelled cells. Of copies with the same label only the first is True."""
        labelled = self.codes >= 0
        if self.hashes is not None:
            labelled &= ~repeated(np.where(labelled, self.hashes, 0), self.codes)
        return labelled

    def counts(self) -> dict[str, int]:
        """Number of cells per label, in descending order."""
        numbers = np.bincount(self.codes[self.codes >= 0], minlength=len(self.classes))
        order = np.argsort(-numbers, kind="stable")
        return {self.classes[i]: int(numbers[i]) for i in order}

    def table(self, species: npt.NDArray[np.str_] | None = None) -> pd.DataFrame:
        """Return obs of all cells with class numbers, and with a column for ``species`` (n,) if given."""
        import pandas as pd

        obs = (
            pd.concat([s.obs for s in self.sources]) if len(self.sources) > 1 else self.sources[0].obs.copy()
        )
        obs[CODE_COLUMN] = self.codes
        if self.hashes is not None:
            obs[HASH_COLUMN] = self.hashes
        if species is not None:
            obs[SPECIES_COLUMN] = pd.Categorical(species)
        return obs if self.primary is None else obs[self.primary]

    def training_rows(self, seed: int, most: int = MAX_TRAINING_CELLS) -> npt.NDArray[np.int64]:
        """Return the training cells, ascending: all labelled cells, or ``most`` with all of rare labels."""
        rows = np.flatnonzero(self.once)
        if len(rows) <= most:
            return rows
        counts = np.bincount(self.codes[rows], minlength=len(self.classes))
        low, high = 0, int(counts.max())
        while low < high:  # find the largest number of cells per label that keeps the sum within the budget
            cap = (low + high + 1) // 2
            low, high = (cap, high) if np.minimum(counts, cap).sum() <= most else (low, cap - 1)
        rng = np.random.default_rng(seed)
        kept = [rng.permutation(rows[self.codes[rows] == c])[: max(low, 1)] for c in range(len(self.classes))]
        return np.sort(np.concatenate(kept))

    def sample(
        self, memory: str | int | None, n_genes: int, seed: int, *, capped: bool
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Return the rows of the training cells, and notes for the user.

        Parameters
        ----------
        capped
            Use at most ``CELLS_PER_LABEL`` cells of a label.
        """
        n_values = float(np.concatenate([s.n_genes_detected for s in self.sources]).mean())
        most = training_budget(memory, n_genes, n_values)
        rows, total = self.training_rows(seed, most), int(self.once.sum())
        if capped:
            rows = self._capped(rows, seed)
        if len(rows) == total:
            return rows, []
        few = " that --memory allows" if most < min(total, MAX_TRAINING_CELLS) else ""
        return rows, [
            f"trained on {len(rows):,} cells{few}, with all cells of rare labels; the index has all cells"
        ]

    def _capped(self, rows: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
        """Return at most ``CELLS_PER_LABEL`` rows of each label, spread evenly over its batches."""
        rng = np.random.default_rng(seed)
        kept = []
        for code in np.unique(self.codes[rows]):
            here = rng.permutation(rows[self.codes[rows] == code])
            if len(here) > CELLS_PER_LABEL and self.batches is not None:
                # Sort by rank within the batch: the first cell of every batch, then the second, and so on.
                batch = np.unique(self.batches[here], return_inverse=True)[1]
                order = np.argsort(batch, kind="stable")
                turn = np.empty(len(here), dtype=np.int64)
                turn[order] = np.arange(len(here)) - np.searchsorted(batch[order], batch[order])
                here = here[np.argsort(turn, kind="stable")]
            kept.append(here[:CELLS_PER_LABEL])
        return np.sort(np.concatenate(kept))

    def tissues(self) -> list[str]:
        """Return the tissues in the files; empty if a column has too many values."""
        found: set[str] = set()
        for source in self.sources:
            for column in TISSUE_COLUMNS:
                if column in source.obs.columns:
                    found |= set(source.obs[column].dropna().astype(str).unique()[:20])
        return sorted(found)

    def known_terms(self) -> dict[str, str]:
        """Return label -> Cell Ontology id, for labels whose cells all have the same id in a column."""
        import pandas as pd

        known: dict[str, set[str]] = {}
        start = 0
        for source in self.sources:
            codes = self.codes[start : start + source.n_obs]
            start += source.n_obs
            for column in ONTOLOGY_COLUMNS:
                if column not in source.obs.columns:
                    continue
                values, names = pd.factorize(source.obs[column])
                pairs = np.unique(np.column_stack([codes, values]), axis=0)
                for code, value in ((c, str(names[v])) for c, v in pairs if v >= 0):
                    if code >= 0 and re.fullmatch(r"CL:\d{7}", value):
                        known.setdefault(self.classes[code], set()).add(value)
                break
        return {label: next(iter(ids)) for label, ids in known.items() if len(ids) == 1}


def training_budget(memory: str | int | None, n_genes: int, n_values: float) -> int:
    """Return the largest number of training cells.

    It is ``MAX_TRAINING_CELLS`` unless the user gives a limit on memory. The free memory has no influence, so
    that a reference does not depend on other programs on the machine.

    Parameters
    ----------
    memory
        Memory limit, in bytes or as text such as ``"4G"``; None for no limit.
    n_genes
        Number of genes of the encoder.
    n_values
        Mean number of genes above zero per cell.
    """
    if memory is None:
        return MAX_TRAINING_CELLS
    per_cell = BYTES_PER_GENE * n_genes + BYTES_PER_VALUE * n_values
    return int(
        np.clip((parse_memory(memory) - FIXED_BYTES) / per_cell, MIN_TRAINING_CELLS, MAX_TRAINING_CELLS)
    )


def training_workers(memory: str | int | None) -> int:
    """Return the number of simultaneous training runs, each with at most ``TRAINING_BYTES`` of memory.

    The number does not change the result.
    """
    if memory is None:
        return n_cores()
    return int(np.clip((parse_memory(memory) - FIXED_BYTES) // TRAINING_BYTES, 1, n_cores()))


def _renamed(
    codes: npt.NDArray[np.int64], classes: list[str], label_map: Mapping[str, str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the codes and classes of one file after renaming by the map."""
    names = [label_map.get(name, name) for name in classes]
    kept = sorted({name for name in names if name})
    number = {name: k for k, name in enumerate(kept)}
    return np.array([*(number.get(name, -1) for name in names), -1], dtype=np.int64)[codes], kept


def incoherent_labels(
    counts: Mapping[str, int], classes: Sequence[str], held_out: Sequence[Mapping[str, Any]]
) -> list[LabelFinding]:
    """Return the labels with a recall below one half on held-out cells.

    A label is reported if the upper end of its 95% interval is below one half (Wilson 1927,
    doi:10.1080/01621459.1927.10502953). Its cells may belong to several types, or to the type that is
    predicted for them.

    Parameters
    ----------
    held_out
        For each class: ``n`` held-out cells, their ``recall``, and the class number ``taken_for`` of the most
        frequent wrong prediction.
    """
    from scvec.ingest.cells.label_columns import LabelFinding

    found = []
    for label, record in zip(classes, held_out, strict=True):
        n, recall = int(record["n"]), float(record["recall"] or 0.0)
        if n == 0 or _wilson_upper(recall, n) >= 0.5:
            continue
        other = classes[int(record["taken_for"])]
        message = (
            f"label '{label}' ({counts[label]:,} cells) is not coherent: of {n:,} held-out cells, "
            f"{recall:.0%} got this label, most others '{other}'"
        )
        found.append(LabelFinding("does not hang together", {label: counts[label]}, message))
    return found


def _wilson_upper(fraction: float, n: int, z: float = 1.96) -> float:
    middle = fraction + z**2 / (2 * n)
    return float((middle + z * np.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))) / (1 + z**2 / n))


def _primary(
    sources: Sequence[CellSource], codes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_] | None, tuple[str, ...]]:
    """Return (n,) bool, False for cells that are not primary data (repeated from another study), and notes.

    If no primary cell has a label, all cells are kept.
    """
    primary = np.concatenate([is_primary(source) for source in sources])
    n = int((~primary).sum())
    if n == 0:
        return None, ()
    if not (primary & (codes >= 0)).any():
        return None, (f"{PRIMARY_COLUMN} is False for all labelled cells, so all cells were kept",)
    return primary, tuple(left_out_notes(0, n))


def _all_batches(
    sources: list[CellSource], batch_key: str, codes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.str_] | None, tuple[str, ...]]:
    """Return the batch of each cell of all files (None without batches), and notes."""
    batches = np.concatenate([_batches(s, batch_key, i) for i, s in enumerate(sources)])
    missing = np.concatenate([s.obs[batch_key].isna().to_numpy() for s in sources])
    if missing.all():
        return None, (f"obs['{batch_key}'] is empty: it was not used as batches",)
    labelled = codes >= 0
    n, n_cells = len(np.unique(batches[labelled])), int(labelled.sum())
    if n > 10 and 2 * n > n_cells:
        what = f"obs['{batch_key}'] has {n:,} values for {n_cells:,} cells"
        return None, (f"warning: {what}: it was not used as batches",)
    if missing.any():
        what = f"{count_text(int(missing.sum()), 'cell')} with no batch in obs['{batch_key}']"
        return batches, (f"{what}: they count as one batch of their file",)
    return batches, ()


def _batches(source: CellSource, batch_key: str, number: int) -> npt.NDArray[np.str_]:
    if batch_key not in source.obs.columns:
        from scvec.ingest.cells.label_columns import no_column

        raise no_column(source, batch_key)
    return np.array([f"{number}:{value}" for value in source.obs[batch_key].astype(str)])


N_FOLDS = 3


def read_sample(
    labelled: Labelled,
    rows: npt.NDArray[np.int64],
    matched: list[MatchedSource],
    maps: list[GeneMap],
    strata: npt.NDArray[np.str_] | None,
    seed: int,
) -> tuple[TrainingSample, list[str]]:
    """Return the training cells over all genes of the reference, with their folds, and notes.

    Parameters
    ----------
    rows
        Row numbers of the training cells over all files, ascending.
    maps
        For each file, the map from its columns to all genes of the reference.
    strata
        (n,) species of all cells if there are two, else None.
    """
    import scipy.sparse as sp

    parts, start = [], 0
    for source, genes in zip(matched, maps, strict=True):
        here = rows[(rows >= start) & (rows < start + source.source.n_obs)] - start
        parts += [chunk.X for chunk in source.chunks(genes, rows=here)]
        start += source.source.n_obs
    labels = labelled.codes[rows]
    batches = None if labelled.batches is None else labelled.batches[rows]
    of = None if strata is None else strata[rows]
    copies = None if labelled.hashes is None else labelled.hashes[rows]
    folds, held_out, notes = make_folds(labels, batches, strata=of, n_folds=N_FOLDS, seed=seed, copies=copies)
    if held_out == "batch" and not any(splits(labels, folds)):
        notes.append("the batches share no labels, so single cells were held out for calibration")
        folds, held_out, more = make_folds(labels, None, n_folds=N_FOLDS, seed=seed, copies=copies)
        notes += more
    if not any(splits(labels, folds)):
        notes = [
            "warning: no cell can be held out, because each label has a single cell; confidence is not "
            "calibrated and novelty is not scored"
        ]
    n_batches = len(np.unique(batches)) if batches is not None and held_out == "batch" else 0
    sample = TrainingSample.rounded(
        sp.vstack(parts, format="csr"),
        labels=labels,
        rows=labelled.numbers[rows],
        folds=folds,
        held_out=held_out,
        n_batches=n_batches,
        n_classes=len(labelled.classes),
    )
    return sample, notes


def class_tensors(sample: TrainingSample) -> dict[str, npt.NDArray[Any]]:
    """Return the class means over all genes, and the spread of each gene within classes."""
    from scvec.encoders.statistics import Profile, class_means

    means = class_means(sample.X, sample.labels, sample.n_classes).astype(np.float32)
    return {"classes.means": means, "classes.spread": Profile.from_cells(sample.X, sample.labels).spread}
