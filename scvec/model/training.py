"""Training a reference on a sample of its cells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.parallel import n_cores
from scvec.base.resources import parse_memory
from scvec.base.types import CellChunk, CellEncoder, Progress, no_progress

if TYPE_CHECKING:
    import pandas as pd

    from scvec.encoders import EncoderKind, Material
    from scvec.ingest.cells.label_columns import LabelFinding
    from scvec.ingest.cells.source import CellSource
    from scvec.model.heldout import TrainingSample
    from scvec.model.matching import MatchedSource
    from scvec.model.reference import ReferenceModel
    from scvec.model.resolvers import GeneMap

__all__ = [
    "MAX_TRAINING_CELLS",
    "Labelled",
    "class_tensors",
    "incoherent_labels",
    "read_sample",
    "train",
    "training_budget",
    "training_workers",
]

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
    """

    sources: list[CellSource]
    codes: npt.NDArray[np.int64]
    classes: list[str]
    batches: npt.NDArray[np.str_] | None
    findings: tuple[LabelFinding, ...] = ()

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
        together, classes, rare = leave_out_rare(np.concatenate(codes), classes, min_cells)
        names, numbers = np.unique(together[together >= 0], return_counts=True)
        counts = {classes[k]: int(n) for k, n in zip(names, numbers, strict=True)}
        batches = None
        if batch_key is not None:
            batches = np.concatenate([_batches(s, batch_key, i) for i, s in enumerate(sources)])
        elif len(sources) > 1:
            batches = np.concatenate([np.full(s.n_obs, f"file {i}") for i, s in enumerate(sources)])
        return cls(sources, together, classes, batches, (*rare, *look_over(counts)))

    @property
    def n(self) -> int:
        return len(self.codes)

    def counts(self) -> dict[str, int]:
        """Cells per label, most first."""
        numbers = np.bincount(self.codes[self.codes >= 0], minlength=len(self.classes))
        order = np.argsort(-numbers, kind="stable")
        return {self.classes[i]: int(numbers[i]) for i in order}

    def table(self, species: npt.NDArray[np.str_] | None = None) -> pd.DataFrame:
        """Return obs of all cells, and their class numbers; (n,) ``species`` become a column where given."""
        import pandas as pd

        from scvec.model.storage import CODE_COLUMN, SPECIES_COLUMN

        obs = (
            pd.concat([s.obs for s in self.sources]) if len(self.sources) > 1 else self.sources[0].obs.copy()
        )
        obs[CODE_COLUMN] = self.codes
        if species is not None:
            obs[SPECIES_COLUMN] = pd.Categorical(species)
        return obs

    def training_rows(self, seed: int, most: int = MAX_TRAINING_CELLS) -> npt.NDArray[np.int64]:
        """Return which cells to train on, ascending: all labelled ones, or ``most``, rare labels whole."""
        rows = np.flatnonzero(self.codes >= 0)
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
        rows, total = self.training_rows(seed, most), int((self.codes >= 0).sum())
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


def _batches(source: CellSource, batch_key: str, number: int) -> npt.NDArray[np.str_]:
    if batch_key not in source.obs.columns:
        from scvec.ingest.cells.label_columns import no_column

        raise no_column(source, batch_key)
    return np.array([f"{number}:{value}" for value in source.obs[batch_key].astype(str)])


N_NEIGHBORS = 15
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

    from scvec.model.heldout import TrainingSample, make_folds, splits

    parts, start = [], 0
    for source, genes in zip(matched, maps, strict=True):
        here = rows[(rows >= start) & (rows < start + source.source.n_obs)] - start
        parts += [chunk.X for chunk in source.chunks(genes, rows=here)]
        start += source.source.n_obs
    labels = labelled.codes[rows]
    batches = None if labelled.batches is None else labelled.batches[rows]
    of = None if strata is None else strata[rows]
    folds, held_out, notes = make_folds(labels, batches, strata=of, n_folds=N_FOLDS, seed=seed)
    if held_out == "batch" and not any(splits(labels, folds)):
        notes.append("the batches share no labels, so single cells were held out for calibration")
        folds, held_out, more = make_folds(labels, None, n_folds=N_FOLDS, seed=seed)
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
        rows=rows,
        folds=folds,
        held_out=held_out,
        n_batches=n_batches,
        n_classes=len(labelled.classes),
    )
    return sample, notes


def train(
    sample: TrainingSample,
    kind: EncoderKind,
    material: Callable[..., Material],
    *,
    genes: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    n_workers: int = 1,
) -> ReferenceModel:
    """Train and calibrate a reference on some of its cells.

    Parameters
    ----------
    material
        Makes the material of one training of its cells and labels, ``number`` and ``is_fold``.
    genes
        Numbers of the genes that the encoder takes; all when None.
    n_workers
        Trainings at once. One that computes with torch goes alone: it takes the memory of a model.

    Raises
    ------
    InputError
        If fewer than two labels have cells.
    """
    from scvec.encoders import make_encoder
    from scvec.model.reference import ReferenceModel

    if len(np.unique(sample.labels)) < 2:
        raise InputError(
            "fewer than two labels have cells to train on", fix="give cells of two labels", code="one-label"
        )
    number = itertools.count(1)

    def new_encoder(part: CellChunk, labels: npt.NDArray[np.int64]) -> CellEncoder:
        is_fold = len(part) < len(sample.labels)
        return make_encoder(kind.name, material(part, labels, number=next(number), is_fold=is_fold))

    return ReferenceModel.fit(
        new_encoder,
        sample,
        genes=genes,
        n_neighbors=min(N_NEIGHBORS, max(1, len(sample.labels) // 2)),
        seed=seed,
        progress=progress,
        n_workers=1 if kind.uses_gpu else n_workers,
    )


def class_tensors(sample: TrainingSample) -> dict[str, npt.NDArray[Any]]:
    """Return the mean cell of each class over all genes, and each gene's spread within classes."""
    from scvec.encoders.statistics import Profile, class_means

    means = class_means(sample.X, sample.labels, sample.n_classes).astype(np.float32)
    return {"classes.means": means, "classes.spread": Profile.from_cells(sample.X, sample.labels).spread}
