"""Training a reference on a sample of its cells."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scvec.api.labelled import Labelled
from scvec.protocols import CellEncoder, Progress
from scvec.types import CellChunk

if TYPE_CHECKING:
    from scvec.api.matching import MatchedSource
    from scvec.api.texts import EncodedGenes
    from scvec.encoders.registry import EncoderParts
    from scvec.ingest.identity import GeneMap
    from scvec.model.model import ReferenceModel

__all__ = ["train"]

N_NEIGHBORS = 15


def train(
    labelled: Labelled,
    rows: npt.NDArray[np.int64],
    matched: list[MatchedSource],
    maps: list[GeneMap],
    chosen: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    strata: npt.NDArray[np.str_] | None,
    encoder: str,
    encoded: EncodedGenes | None,
    encoder_parts: EncoderParts | None,
    seed: int,
    progress: Progress,
    n_workers: int = 1,
) -> tuple[ReferenceModel, list[str]]:
    """Train and calibrate a reference on some of its cells.

    Parameters
    ----------
    rows
        Cells to train on, ascending, over all files.
    maps
        Per file, its columns onto all genes of the reference.
    chosen, scores
        Numbers of the genes that the encoder knows, and how variable each gene is.
    strata
        (n,) species of all cells, where there are two.
    n_workers
        Trainings at once.

    Returns
    -------
    The model, and notes for the user.
    """
    import scipy.sparse as sp

    from scvec.api.encoder_parts import for_training
    from scvec.encoders.registry import make_encoder
    from scvec.model.model import ReferenceModel

    parts, start = [], 0
    for source, genes in zip(matched, maps, strict=True):
        here = rows[(rows >= start) & (rows < start + source.source.n_obs)] - start
        parts += [chunk.X for chunk in source.chunks(genes, rows=here)]
        start += source.source.n_obs
    measured = np.ones(maps[0].weights.shape[1], dtype=bool)
    cells = CellChunk(sp.vstack(parts, format="csr"), measured)

    fold = itertools.count(1)

    def new_encoder(part: CellChunk, part_labels: npt.NDArray[np.int64]) -> CellEncoder:
        of = encoder_parts
        if of is not None:
            of = for_training(of, next(fold), is_fold=len(part) < len(cells))
        return make_encoder(encoder, encoded.vectors if encoded else None, part, part_labels, parts=of)

    model, notes = ReferenceModel.fit(
        new_encoder,
        cells,
        labelled.codes[rows],
        len(labelled.classes),
        genes=chosen,
        variability=scores.astype(np.float32),
        batches=None if labelled.batches is None else labelled.batches[rows],
        strata=None if strata is None else strata[rows],
        n_neighbors=min(N_NEIGHBORS, max(1, len(rows) // 2)),
        seed=seed,
        progress=progress,
        # Those that read with a language model take the memory of one, and their turns go by number.
        n_workers=n_workers if encoder_parts is None else 1,
    )
    return model, notes
