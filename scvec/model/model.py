"""A reference that can name cells: voices, their weights, and the yardstick of novelty."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec import scratch
from scvec.model.calibration import Calibration
from scvec.model.crossfit import crossfit, make_folds, splits
from scvec.model.novelty import FALSE_NOVEL_RATE, signals
from scvec.model.pool import LINEAR, VOICES
from scvec.model.status import COVERAGE, low_quality_floor
from scvec.model.voices import Voices
from scvec.errors import InputError
from scvec.protocols import CellEncoder, Progress, no_progress
from scvec.side_by_side import JointProgress, side_by_side
from scvec.types import CellChunk, Float32, Neighbors

__all__ = ["METHODS", "Prediction", "ReferenceModel"]

Int64 = npt.NDArray[np.int64]

METHODS = ("both", "knn", "head", "prototype", "linear", "centroid")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a reference says about n cells.

    Attributes
    ----------
    vectors
        (n, embed_dim) float32.
    proba
        (n, n_classes) float32 calibrated probabilities of the method asked for.
    winners
        Per voice, (n,) int32 the class that is likeliest by that voice alone.
    sets
        (n, n_classes) bool, the classes of each cell's label set; None where no coverage was asked for.
    novelty
        (n,) float32, 0 to 1.
    n_detected
        (n,) int64 number of the reference's genes found in each cell.
    n_labels
        (n,) int64 labels in each cell's set at the coverage that its status goes by.
    """

    vectors: Float32
    proba: Float32
    winners: dict[str, npt.NDArray[np.int32]]
    neighbors: Neighbors
    novelty: Float32
    n_detected: Int64
    n_labels: Int64
    sets: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def concatenate(cls, parts: list[Prediction]) -> Prediction:
        """Return the predictions of several chunks as one."""
        return cls.gather(parts, sum(map(len, parts)))

    @classmethod
    def gather(cls, parts: Iterable[Prediction], n: int) -> Prediction:
        """Return the predictions of chunks as one of ``n`` cells; each is let go once it is copied.

        Of many cells they lie in files (`scvec.scratch`).

        Raises
        ------
        ValueError
            If the parts do not have ``n`` cells, at least one of them.
        """
        whole: dict[str, npt.NDArray[Any]] = {}
        done = 0
        for part in parts:
            arrays = part._arrays()
            if not whole:
                large = n * sum(values[:1].nbytes for values in arrays.values()) >= scratch.LARGE
                make = scratch.empty if large else np.empty
                whole = {name: make((n, *v.shape[1:]), v.dtype) for name, v in arrays.items()}
            for name, values in arrays.items():
                whole[name][done : done + len(part)] = values
                scratch.release(whole[name])
            done += len(part)
        if done != n or not whole:
            raise ValueError(f"predictions of {done} cells for {n}")
        return cls(
            winners={name: whole.pop(f"winner {name}") for name in VOICES},
            neighbors=Neighbors(whole.pop("neighbors"), whole.pop("distances")),
            **whole,
        )

    def release(self) -> None:
        """Let go of the memory that looking at it took, where it lies in files."""
        for values in self._arrays().values():
            scratch.release(values)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays, one row a cell, by a name each."""
        plain = ("vectors", "proba", "novelty", "n_detected", "n_labels", "sets")
        found = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        found |= {f"winner {name}": values for name, values in self.winners.items()}
        return found | {"neighbors": self.neighbors.indices, "distances": self.neighbors.distances}


class ReferenceModel:
    """Voices over labelled cells, and what held-out cells taught about them.

    Parameters
    ----------
    floor
        Cells with fewer of the reference's genes than this are of low quality.
    """

    def __init__(self, voices: Voices, calibration: Calibration, floor: float) -> None:
        self.voices, self.calibration, self.floor = voices, calibration, floor

    @classmethod
    def fit(
        cls,
        make_encoder: Callable[[CellChunk, Int64], CellEncoder],
        cells: CellChunk,
        labels: Int64,
        n_classes: int,
        *,
        genes: Int64 | None = None,
        variability: Float32 | None = None,
        batches: npt.NDArray[np.str_] | None = None,
        strata: npt.NDArray[np.str_] | None = None,
        n_neighbors: int = 15,
        n_folds: int = 3,
        seed: int = 0,
        progress: Progress = no_progress,
        n_workers: int = 1,
    ) -> tuple[ReferenceModel, list[str]]:
        """Train on labelled cells and calibrate on held-out ones.

        Parameters
        ----------
        make_encoder
            Returns an untrained encoder standardised by the cells (over ``genes``) and labels given: those
            of a fold must not be standardised by the cells that the fold holds out.
        cells
            Over all genes of the reference.
        labels
            (n,) int64 class numbers, -1 for none.
        genes
            Numbers of the genes that the encoder is trained on; all when None.
        variability
            (n_genes,) how variable each gene is; all alike when None.
        batches
            (n,) names of donors or batches; whole ones are held out.
        strata
            (n,) names of groups, such as species, that must not be held out as a whole.
        n_workers
            Trainings at once; each comes out the same alone and beside others.

        Returns
        -------
        The model, and notes for the user.

        Raises
        ------
        InputError
            If no cell could be held out: every label has one cell.
        """

        def fit(rows: Int64 | None, number: int) -> Voices:
            part, part_labels = (cells, labels) if rows is None else (cells.take(rows), labels[rows])
            return Voices.fit(
                make_encoder(part if genes is None else part.select(genes), part_labels),
                part,
                part_labels,
                n_classes,
                genes=genes,
                variability=variability,
                seed=seed,
                progress=together.of(number),
            )

        cells = CellChunk(cells.X, cells.measured, batches)
        folds, held_out, notes = make_folds(labels, batches, strata=strata, n_folds=n_folds, seed=seed)
        if held_out == "batch" and not any(splits(labels, folds)):
            notes.append("the batches share no labels, so single cells were held out for calibration")
            folds, held_out, more = make_folds(labels, None, n_folds=n_folds, seed=seed)
            notes += more
        trained_on = [train for _, train, _ in splits(labels, folds)]
        if not trained_on:
            raise InputError(
                "no cell can be held out to calibrate on: each label has a single cell",
                fix="give at least two cells for some labels",
            )
        together = JointProgress(progress, len(trained_on) + 1)
        jobs = [partial(fit, rows, number) for number, rows in enumerate([*trained_on, None])]
        with closing(side_by_side(jobs, n_workers, together.stop)) as trained:
            of_folds = islice(trained, len(trained_on))
            seen = crossfit(cells, labels, folds, of_folds, n_neighbors=n_neighbors, seed=seed)
            voices = next(trained)
        n_detected = np.diff(cells.select(voices.genes).X.indptr)
        floor = low_quality_floor(n_detected[labels >= 0])
        n_batches = len(np.unique(batches[labels >= 0])) if batches is not None and held_out == "batch" else 0
        calibration = Calibration.fit(seen, held_out=held_out, n_batches=n_batches)
        return cls(voices, calibration, floor), notes

    @property
    def takes_turns(self) -> bool:
        """Whether chunks are to be predicted one after another: a model that reads, or a GPU, is one."""
        return any(getattr(part, "takes_turns", False) for part in (self.voices.encoder, self.voices.index))

    def predict(
        self,
        chunk: CellChunk,
        *,
        regime: str,
        method: str = "both",
        n_neighbors: int = 15,
        subset: Int64 | None = None,
        coverage: float | None = None,
        false_novel_rate: float = FALSE_NOVEL_RATE,
    ) -> Prediction:
        """Name cells.

        Parameters
        ----------
        regime
            From :func:`scvec.model.shift.regime_of`.
        method
            ``both`` weighs all voices; else one voice alone.
        coverage
            How often (0-1) the label sets of all voices together are to hold the true label; none when None.
        false_novel_rate
            Share (0-1) of held-out cells of known types that would be called novel.

        Raises
        ------
        InputError
            If there is no such method, or no cell of ``subset`` has a label.
        """
        if method not in METHODS:
            raise InputError(f"there is no method {method!r}", fix=f"methods: {', '.join(METHODS)}")
        pool = self.calibration.pools[regime]
        heard = self.voices.listen(chunk, n_neighbors, subset=subset)
        allowed = np.ones(self.voices.n_classes, dtype=bool)
        if subset is not None:
            # A label that none of the cells asked has is no answer, whatever head and prototypes remember.
            allowed = np.isin(np.arange(self.voices.n_classes), self.voices.labels[subset])
            if not allowed.any():
                raise InputError("none of the reference cells chosen has a label", fix="loosen --where")
            heard = heard.restricted(allowed)
        alone = {name: pool.alone(name, s) for name, s in zip(VOICES, heard.scores, strict=True)}
        pooled = pool.combine(heard.scores)
        together = self.calibration.confidence[regime].apply(pooled)
        # How new a cell is, and which labels it may have, does not depend on the voice asked for its name.
        found = signals(heard.distances, heard.scores[LINEAR], pooled)
        novelty = self.calibration.novelty[regime].score(
            found, heard.depths, pooled.argmax(axis=1), rate=false_novel_rate
        )
        together = np.where(allowed, together, np.float32(0.0))
        together /= together.sum(axis=1, keepdims=True)
        n_labels = self.calibration.sets[regime].sizes(together, COVERAGE)
        sets = None
        if coverage is not None:
            sets = self.calibration.sets[regime].sets(together, coverage) & allowed
        return Prediction(
            heard.vectors,
            together if method == "both" else alone[method],
            {name: values.argmax(axis=1).astype(np.int32) for name, values in alone.items()},
            heard.neighbors,
            novelty,
            heard.n_detected,
            n_labels,
            sets,
        )
