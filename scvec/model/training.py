"""Training a reference on a sample of its cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import CellChunk, CellEncoder, Progress, no_progress

if TYPE_CHECKING:
    from scvec.encoders import EncoderKind, Material
    from scvec.ingest.genes.names import GeneMap
    from scvec.model.heldout import TrainingSample
    from scvec.model.labelled import Labelled
    from scvec.model.matching import MatchedSource
    from scvec.model.reference import ReferenceModel

__all__ = ["class_tensors", "read_sample", "train"]

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
