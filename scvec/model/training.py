"""Labelled cells: which of them a reference is trained on, and which are held out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.parallel import n_cores
from scvec.base.resources import parse_memory
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
    """Labelled cells of a reference over all its genes, with the folds that are held out.

    A query that measured other genes than the reference gets a cell space of its own, fitted from these
    cells: what is kept here decides every fit.

    Attributes
    ----------
    X
        (n, n_genes) CSR float32, log1p CP10k, rounded to half precision (about 0.05%).
    labels
        (n,) int64 class numbers, all >= 0.
    rows
        (n,) int64 ascending rows of the cells in the reference.
    folds
        (n,) int64 fold of each cell.
    held_out
        ``batch`` if folds are whole batches, ``cells`` if not.
    n_batches
        Number of batches that the folds are made of; 0 for ``cells``.
    n_classes
        Number of classes, those without a cell among them.
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
            raise ValueError("a training cell without a class")
        if (np.diff(self.rows) <= 0).any():
            raise ValueError("rows must ascend")

    @classmethod
    def rounded(cls, X: Any, **rest: Any) -> TrainingSample:
        """Return a sample of cells whose values are rounded as they will be kept."""
        kept = X.copy()
        kept.data = kept.data.astype(np.float16).astype(np.float32)
        return cls(kept, **rest)

    def cells(self, measured: npt.NDArray[np.bool_] | None = None) -> CellChunk:
        """Return the cells as a data set shows them that measured some genes (n_genes,); all when None."""
        if measured is None:
            return CellChunk(self.X, np.ones(self.X.shape[1], dtype=bool))
        X = self.X.copy()
        X.data = np.where(measured[X.indices], X.data, np.float32(0.0))
        X.eliminate_zeros()
        return CellChunk(X, measured)

    def without(self, deleted: Int64) -> TrainingSample:
        """Return the sample once rows of the reference are deleted, under the rows that are left."""
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
        """Return arrays and JSON values to store."""
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
        """Rebuild from :meth:`state`; ValueError where the parts do not fit together."""
        from scipy.sparse import csr_matrix

        shape = (len(tensors["labels"]), int(meta["n_genes"]))
        data = tensors["data"].astype(np.float32)
        X = csr_matrix((data, tensors["indices"].astype(np.int32), tensors["indptr"]), shape=shape)
        X.check_format(full_check=True)
        if not np.isfinite(data).all():
            raise ValueError("training cells with values that are not finite")
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
        (n, n_classes, 3) distances to the classes and (n,) depths, for the novelty of a cell.
    folds
        (n,) int64 the fold that each cell was held out with.
    """

    scores: list[Float32]
    labels: Int64
    distances: Float32
    depths: npt.NDArray[np.float64]
    folds: Int64


def make_folds(
    labels: Int64,
    batches: npt.NDArray[np.str_] | None,
    *,
    n_folds: int,
    seed: int,
    strata: npt.NDArray[np.str_] | None = None,
    copies: Int64 | None = None,
) -> tuple[Int64, str, list[str]]:
    """Return (fold of each cell, how they were made, notes).

    Whole batches are held out where there are at least two, since cells of one donor resemble each other;
    else cells, each class spread over the folds.

    Parameters
    ----------
    strata
        (n,) groups, each spread over the folds by itself, such as species: the reference of a query cell
        holds cells of its species.
    copies
        (n,) cells of the same number are copies of one, and are held out together; 0 for no copy. A copy in
        another batch goes to the fold of the first.
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
    """Return what :func:`make_folds` does, copies apart."""
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
        note = f"cells of one batch were held out, not whole batches, for {' and '.join(by_cells)}"
        return folds, "batch", [f"{note}: confidence is optimistic there for data from elsewhere"]
    note = (
        "confidence was calibrated on held-out cells of the same batches, so it is optimistic for data from "
        "elsewhere; name the column of donors or batches with --batch-key"
    )
    return folds, "cells", [note]


def _by_batches(batches: npt.NDArray[np.str_], n_folds: int) -> Int64:
    """Return the fold of each cell: largest batches first, each to the fold with the fewest cells so far."""
    names, sizes = np.unique(batches, return_counts=True)
    size_of = dict(zip(names, sizes, strict=True))
    load = np.zeros(min(n_folds, len(names)))
    fold_of = {}
    for name in sorted(names, key=lambda n: (-size_of[n], n)):
        fold_of[name] = int(load.argmin())
        load[fold_of[name]] += size_of[name]
    return np.array([fold_of[b] for b in batches], dtype=np.int64)


def _by_cells(labels: Int64, n_folds: int, rng: np.random.Generator) -> Int64:
    """Return the fold of each cell: the cells of each class spread over all."""
    folds = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (np.arange(len(rows)) + rng.integers(n_folds)) % n_folds
    return folds


def splits(labels: Int64, folds: Int64) -> Iterator[tuple[int, Int64, Int64]]:
    """Yield each fold that can be held out, the cells to train on without it, and its cells to score.

    Held-out cells of a class that the other folds lack are left out: no member could give them that label.
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
    """Score the cells of each fold by the members that were trained without it.

    Parameters
    ----------
    trained
        Members trained on the cells of each of :func:`splits`, in that order; at least one.
    max_cells
        Held-out cells that are scored in all; more would hardly change the calibration.
    """
    rng = np.random.default_rng(seed)
    n_folds = len(np.unique(folds))
    found, truth, held = [], [], []
    for (fold, _, test), members in zip(splits(labels, folds), trained, strict=True):
        # A slow encoder asks for fewer cells.
        most = min(max_cells, getattr(members.encoder, "held_out_cells", max_cells)) // n_folds
        if len(test) > most:
            test = np.sort(rng.choice(test, most, replace=False))
        found.append(members.score(CellChunk(cells.X[test], cells.measured), n_neighbors))
        truth.append(labels[test])
        held.append(np.full(len(test), fold, dtype=np.int64))
    return HeldOut(
        [np.concatenate(parts) for parts in zip(*(each.scores for each in found), strict=True)],
        np.concatenate(truth),
        np.concatenate([each.distances for each in found]),
        np.concatenate([each.depths for each in found]),
        np.concatenate(held),
    )


#: Column of a reference's obs table that holds the class number of each cell.
CODE_COLUMN = "_scvec_class"
#: Column that holds the species of each cell where a reference has two, for ``--where``.
SPECIES_COLUMN = "scvec_species"
#: Cells that the encoder and the head are trained on at most.
MAX_TRAINING_CELLS = 20_000
#: Cells of a label that the default encoder is fitted from at most: more cells of a common type change its
#: mean and spread by little, and every fit to the genes of a query pays for them.
CELLS_PER_LABEL = 500
#: Cells that are trained on whatever the memory: with fewer, a rare label has too few of them.
MIN_TRAINING_CELLS = 2_000
#: Bytes that training needs for a cell and gene (dense, five times over), and for a value that is not zero.
BYTES_PER_GENE, BYTES_PER_VALUE = 20, 32
#: Bytes of the libraries, and of what is known of genes.
FIXED_BYTES = 1_200_000_000
#: Bytes of one training beside others: its cells, twice, and products of genes with genes.
TRAINING_BYTES = 1_000_000_000
#: Columns of obs in which data sets keep Cell Ontology ids, the CELLxGENE schema's first.
ONTOLOGY_COLUMNS = ("cell_type_ontology_term_id", "cell_ontology_id")
#: Columns that name the tissue.
TISSUE_COLUMNS = ("tissue", "organ", "tissue_general")


@dataclass(frozen=True)
class Labelled:
    """Labels and batches of the cells of all files, one after another.

    Attributes
    ----------
    codes
        (n,) int64 class numbers, -1 for none.
    batches
        (n,) strings, or None.
    findings
        What looks odd about the labels, and which were left out.
    primary
        (n_read,) bool, False for cells that are not part of the reference; all are when None.
    hashes
        (n_read,) int64 that copies of a cell share (:mod:`scvec.model.copies`), once they are known.
    notes
        What a user should know of cells left out, and of copies.
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
        """Read labels and batches; labels of fewer than ``min_cells`` cells become no label.

        Parameters
        ----------
        label_map
            Label -> the one it becomes, empty for none; labels that are missing stay as they are.

        Raises
        ------
        InputError
            If a column is missing or is of no use, or fewer than two labels have enough cells.
        """
        from scvec.ingest.cells.label_columns import labels, leave_out_rare, look_over

        if not sources:
            raise InputError("no reference file was given", fix="name at least one h5ad file")
        each = [_renamed(*labels(source, label_key), label_map or {}) for source in sources]
        classes = sorted({c for _, names in each for c in names})
        number = {c: i for i, c in enumerate(classes)}
        codes = [
            np.array([number[names[k]] if k >= 0 else -1 for k in part], dtype=np.int64)
            for part, names in each
        ]
        together = np.concatenate(codes)
        primary, told = _primary(sources, together)
        if primary is not None:
            together[~primary] = -1
        together, classes, rare = leave_out_rare(together, classes, min_cells)
        names, numbers = np.unique(together[together >= 0], return_counts=True)
        counts = {classes[k]: int(n) for k, n in zip(names, numbers, strict=True)}
        batches = None
        if batch_key is not None:
            batches, how = _all_batches(sources, batch_key, together)
            told += how
        if batches is None and len(sources) > 1:
            batches = np.concatenate([np.full(s.n_obs, f"file {i}") for i, s in enumerate(sources)])
        return cls(sources, together, classes, batches, (*rare, *look_over(counts)), primary, None, told)

    @property
    def n(self) -> int:
        """Number of cells of the reference."""
        return len(self.codes) if self.primary is None else int(self.primary.sum())

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(n_read,) int64 row of each cell in the reference; of cells that are left out it says nothing."""
        if self.primary is None:
            return np.arange(len(self.codes), dtype=np.int64)
        return np.cumsum(self.primary, dtype=np.int64) - 1

    def kept(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the rows of an array (n_read, ...) that are cells of the reference."""
        return values if self.primary is None else values[self.primary]

    def of_source(self, number: int) -> slice:
        """Return the rows of a file among those of all."""
        start = sum(source.n_obs for source in self.sources[:number])
        return slice(start, start + self.sources[number].n_obs)

    def n_of_source(self, number: int) -> int:
        """Return how many cells of the reference a file holds."""
        rows = self.of_source(number)
        return rows.stop - rows.start if self.primary is None else int(self.primary[rows].sum())

    def hashed(self, hashes: npt.NDArray[np.int64]) -> Labelled:
        """Return the same with hashes (n_read,) of the cells, and a note where some are copies."""
        known = replace(self, hashes=hashes)
        n = int(repeated(self.kept(hashes)).sum())
        if n == 0:
            return known
        other = int(repeated(np.where(known.once, hashes, 0)).sum())
        apart = f" ({other:,} under another label)" if other else ""
        note = (
            f"warning: {n:,} of {self.n:,} cells are copies of an earlier cell{apart}: each was trained on "
            "once, and copies were held out together; give each cell once"
        )
        return replace(known, notes=(*self.notes, note))

    @cached_property
    def once(self) -> npt.NDArray[np.bool_]:
        """(n_read,) bool: labelled cells, of copies under one label the first."""
        labelled = self.codes >= 0
        if self.hashes is not None:
            labelled &= ~repeated(np.where(labelled, self.hashes, 0), self.codes)
        return labelled

    def counts(self) -> dict[str, int]:
        """Cells per label, most first."""
        numbers = np.bincount(self.codes[self.codes >= 0], minlength=len(self.classes))
        order = np.argsort(-numbers, kind="stable")
        return {self.classes[i]: int(numbers[i]) for i in order}

    def table(self, species: npt.NDArray[np.str_] | None = None) -> pd.DataFrame:
        """Return obs of all cells, and their class numbers; (n,) ``species`` become a column where given."""
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
        """Return which cells to train on, ascending: all labelled ones, or ``most``, rare labels whole."""
        rows = np.flatnonzero(self.once)
        if len(rows) <= most:
            return rows
        counts = np.bincount(self.codes[rows], minlength=len(self.classes))
        low, high = 0, int(counts.max())
        while low < high:  # the largest cap on a label that keeps the sum within the budget
            cap = (low + high + 1) // 2
            low, high = (cap, high) if np.minimum(counts, cap).sum() <= most else (low, cap - 1)
        rng = np.random.default_rng(seed)
        kept = [rng.permutation(rows[self.codes[rows] == c])[: max(low, 1)] for c in range(len(self.classes))]
        return np.sort(np.concatenate(kept))

    def sample(
        self, memory: str | int | None, n_genes: int, seed: int, *, capped: bool
    ) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Return the cells to train on, over ``n_genes``, and what a user should know about it.

        Parameters
        ----------
        capped
            Take ``CELLS_PER_LABEL`` of a label at most.
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
            f"trained on {len(rows):,} cells{few}, rare labels kept whole; all cells are in the index"
        ]

    def _capped(self, rows: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
        """Return the rows, of each label ``CELLS_PER_LABEL`` at most, spread over its batches alike."""
        rng = np.random.default_rng(seed)
        kept = []
        for code in np.unique(self.codes[rows]):
            here = rng.permutation(rows[self.codes[rows] == code])
            if len(here) > CELLS_PER_LABEL and self.batches is not None:
                # The first cells of every batch come first, then the second ones, and so on.
                batch = np.unique(self.batches[here], return_inverse=True)[1]
                order = np.argsort(batch, kind="stable")
                turn = np.empty(len(here), dtype=np.int64)
                turn[order] = np.arange(len(here)) - np.searchsorted(batch[order], batch[order])
                here = here[np.argsort(turn, kind="stable")]
            kept.append(here[:CELLS_PER_LABEL])
        return np.sort(np.concatenate(kept))

    def tissues(self) -> list[str]:
        """Return what the files say of their tissue; nothing where a column says many things."""
        found: set[str] = set()
        for source in self.sources:
            for column in TISSUE_COLUMNS:
                if column in source.obs.columns:
                    found |= set(source.obs[column].dropna().astype(str).unique()[:20])
        return sorted(found)

    def known_terms(self) -> dict[str, str]:
        """Return label -> Cell Ontology id where a column of ids agrees on all cells of a label."""
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
    """Return how many cells may be trained on.

    Only a memory that a user names says less than ``MAX_TRAINING_CELLS``: what else the machine does at the
    time must not change a reference.

    Parameters
    ----------
    memory
        Bytes that may be used in all, as a number or like ``"4G"``; None where no limit was named.
    n_genes
        Genes that the encoder knows.
    n_values
        Genes above zero in a cell, on average.
    """
    if memory is None:
        return MAX_TRAINING_CELLS
    per_cell = BYTES_PER_GENE * n_genes + BYTES_PER_VALUE * n_values
    return int(
        np.clip((parse_memory(memory) - FIXED_BYTES) / per_cell, MIN_TRAINING_CELLS, MAX_TRAINING_CELLS)
    )


def training_workers(memory: str | int | None) -> int:
    """Return how many trainings may run at once, of which each takes ``TRAINING_BYTES`` at most.

    Their number changes no result.
    """
    if memory is None:
        return n_cores()
    return int(np.clip((parse_memory(memory) - FIXED_BYTES) // TRAINING_BYTES, 1, n_cores()))


def _renamed(
    codes: npt.NDArray[np.int64], classes: list[str], label_map: Mapping[str, str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the codes and classes of one file under the names that the map gives them."""
    names = [label_map.get(name, name) for name in classes]
    kept = sorted({name for name in names if name})
    number = {name: k for k, name in enumerate(kept)}
    return np.array([*(number.get(name, -1) for name in names), -1], dtype=np.int64)[codes], kept


def incoherent_labels(
    counts: Mapping[str, int], classes: Sequence[str], held_out: Sequence[Mapping[str, Any]]
) -> list[LabelFinding]:
    """Return the labels of which most cells are not found again when they are held out.

    A label is reported where the fraction found again is below a half beyond doubt (upper end of the 95%
    interval of Wilson 1927, doi:10.1080/01621459.1927.10502953): its cells may be of several types, or of the
    type that they are taken for.

    Parameters
    ----------
    held_out
        Per class, ``n`` held-out cells, the fraction ``recall`` that got their label, and the class number
        ``taken_for`` of most of the others.
    """
    from scvec.ingest.cells.label_columns import LabelFinding

    found = []
    for label, record in zip(classes, held_out, strict=True):
        n, recall = int(record["n"]), float(record["recall"] or 0.0)
        if n == 0 or _wilson_upper(recall, n) >= 0.5:
            continue
        other = classes[int(record["taken_for"])]
        message = (
            f"the cells of label '{label}' ({counts[label]:,}) do not hang together: held out, "
            f"{recall:.0%} of {n:,} got their label again, most others '{other}'"
        )
        found.append(LabelFinding("does not hang together", {label: counts[label]}, message))
    return found


def _wilson_upper(fraction: float, n: int, z: float = 1.96) -> float:
    middle = fraction + z**2 / (2 * n)
    return float((middle + z * np.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))) / (1 + z**2 / n))


def _primary(
    sources: Sequence[CellSource], codes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_] | None, tuple[str, ...]]:
    """Return (n,) bool, False for cells that the files call those of another data set; and a note.

    Where none of the others has a label, all are kept.
    """
    primary = np.concatenate([is_primary(source) for source in sources])
    n = int((~primary).sum())
    if n == 0:
        return None, ()
    if not (primary & (codes >= 0)).any():
        return None, (f"{PRIMARY_COLUMN} is False for all labelled cells: they were kept",)
    return primary, tuple(left_out_notes(0, n))


def _all_batches(
    sources: list[CellSource], batch_key: str, codes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.str_] | None, tuple[str, ...]]:
    """Return the batch of each cell of all files, None where a column tells of none, and notes."""
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
    """Return the cells to train on over all genes of the reference, with their folds, and notes.

    Parameters
    ----------
    rows
        Cells to train on, ascending, over all files.
    maps
        For each file, its columns onto all genes of the reference.
    strata
        (n,) species of all cells, where there are two.
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
            "warning: no cell can be held out, as each label has a single cell: confidence is not calibrated "
            "and novelty is not judged"
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
    """Return the mean cell of each class over all genes, and each gene's spread within classes."""
    from scvec.encoders.statistics import Profile, class_means

    means = class_means(sample.X, sample.labels, sample.n_classes).astype(np.float32)
    return {"classes.means": means, "classes.spread": Profile.from_cells(sample.X, sample.labels).spread}
