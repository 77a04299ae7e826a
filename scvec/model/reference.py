"""A reference that can annotate cells: its members, and what held-out cells taught about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base import arrays
from scvec.base.errors import InputError
from scvec.base.parallel import JointProgress, side_by_side
from scvec.base.types import CellChunk, CellEncoder, Float32, Int64, Neighbors, Progress, no_progress
from scvec.encoders import EncoderKind, Material, make_encoder
from scvec.model.calibration import Calibration
from scvec.model.classifiers import MEMBERS, Members
from scvec.model.novelty import signals
from scvec.model.query_options import METHODS
from scvec.model.status import COVERAGE, low_quality_floor
from scvec.model.training import TrainingSample, score_held_out, splits

__all__ = ["METHODS", "Prediction", "ReferenceModel", "train"]

#: Neighbours that vote while a reference is calibrated.
N_NEIGHBORS = 15


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a reference for n cells.

    Attributes
    ----------
    vectors
        (n, embed_dim) float32.
    proba
        (n, n_classes) float32 calibrated probabilities of the method asked for.
    winners
        For each member, (n,) int32 the class that is likeliest by that member alone.
    sets
        (n, n_classes) bool, the classes of each cell's label set; None where no coverage was asked for.
    signals
        (n, 3) float32 standardised measures of novelty (:class:`scvec.model.novelty.Novelty`); zeros where
        the reference could not hold out a cell.
    given
        (n,) int32 the likeliest class of all members together, which ``signals`` are about.
    sure
        (n,) float32 its probability.
    n_detected
        (n,) int64 number of the reference's genes found in each cell.
    n_labels
        (n,) int64 labels in each cell's set at the coverage that its status goes by.
    """

    vectors: Float32
    proba: Float32
    winners: dict[str, npt.NDArray[np.int32]]
    neighbors: Neighbors
    signals: Float32
    given: npt.NDArray[np.int32]
    sure: Float32
    n_detected: Int64
    n_labels: Int64
    sets: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def gather(cls, parts: Iterable[Prediction], n: int) -> Prediction:
        """Return the predictions of chunks as one of ``n`` cells; each is released once it is copied.

        Of many cells they lie in files (`scvec.base.arrays`).

        Raises
        ------
        ValueError
            If the parts do not have ``n`` cells, at least one of them.
        """
        whole: dict[str, npt.NDArray[Any]] = {}
        done = 0
        for part in parts:
            own = part._arrays()
            if not whole:
                large = n * sum(values[:1].nbytes for values in own.values()) >= arrays.LARGE
                make = arrays.empty if large else np.empty
                whole = {name: make((n, *v.shape[1:]), v.dtype) for name, v in own.items()}
            for name, values in own.items():
                whole[name][done : done + len(part)] = values
                arrays.release(whole[name])
            done += len(part)
        if done != n or not whole:
            raise ValueError(f"predictions of {done} cells for {n}")
        return cls(
            winners={name: whole.pop(f"winner {name}") for name in MEMBERS},
            neighbors=Neighbors(whole.pop("neighbors"), whole.pop("distances")),
            **whole,
        )

    def release(self) -> None:
        """Release memory that reading it took, where it lies in files."""
        for values in self._arrays().values():
            arrays.release(values)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays, one row a cell, by a name each."""
        plain = ("vectors", "proba", "signals", "given", "sure", "n_detected", "n_labels", "sets")
        found = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        found |= {f"winner {name}": values for name, values in self.winners.items()}
        return found | {"neighbors": self.neighbors.indices, "distances": self.neighbors.distances}


class ReferenceModel:
    """Members over labelled cells, and their calibration on held-out cells.

    Parameters
    ----------
    floor
        Cells with fewer of the encoder's genes than this are of low quality.
    """

    def __init__(self, members: Members, calibration: Calibration, floor: float) -> None:
        self.members, self.calibration, self.floor = members, calibration, floor

    @classmethod
    def fit(
        cls,
        make_encoder: Callable[[CellChunk, Int64], CellEncoder],
        sample: TrainingSample,
        measured: npt.NDArray[np.bool_] | None = None,
        *,
        genes: Int64 | None = None,
        n_neighbors: int = 15,
        seed: int = 0,
        progress: Progress = no_progress,
        n_workers: int = 1,
    ) -> ReferenceModel:
        """Train on the cells of a sample, and calibrate on those of each fold without the fold.

        Parameters
        ----------
        make_encoder
            Returns an untrained encoder for the cells (over ``genes``) and labels given: that of a fold must
            not know the cells that the fold holds out.
        measured
            (n_genes,) genes that the query measured; all when None.
        genes
            Numbers of the genes that the encoder takes; all when None.
        n_workers
            Trainings at once; each comes out the same alone and beside others.
        """
        cells = sample.cells(measured)
        labels, n_classes = sample.labels, sample.n_classes
        taken = np.arange(cells.X.shape[1], dtype=np.int64) if genes is None else genes

        def fit(rows: Int64 | None, number: int) -> Members:
            part, codes = (cells, labels) if rows is None else (cells.take(rows), labels[rows])
            return Members.fit(
                make_encoder(part if genes is None else part.select(genes), codes),
                part,
                codes,
                n_classes,
                genes=taken,
                rows=sample.rows if rows is None else sample.rows[rows],
                seed=seed,
                progress=together.of(number),
            )

        trained_on = [train for _, train, _ in splits(labels, sample.folds)]
        together = JointProgress(progress, len(trained_on) + 1)
        jobs = [partial(fit, rows, number) for number, rows in enumerate([*trained_on, None])]
        with closing(side_by_side(jobs, n_workers, together.stop)) as trained:
            of_folds = islice(trained, len(trained_on))
            if trained_on:
                seen = score_held_out(
                    cells, labels, sample.folds, of_folds, n_neighbors=n_neighbors, seed=seed
                )
                calibration = Calibration.fit(seen, held_out=sample.held_out, n_batches=sample.n_batches)
            else:
                calibration = Calibration.unknown(n_classes)
            members = next(trained)
        detected = np.diff(members.read(cells).X.indptr)
        return cls(members, calibration, low_quality_floor(detected[labels >= 0]))

    @property
    def takes_turns(self) -> bool:
        """Whether chunks are to be predicted one after another: a model that reads, or a GPU, is one."""
        return any(getattr(part, "takes_turns", False) for part in (self.members.encoder, self.members.index))

    def predict(
        self,
        chunk: CellChunk,
        *,
        method: str = "both",
        n_neighbors: int = 15,
        subset: Int64 | None = None,
        coverage: float | None = None,
    ) -> Prediction:
        """Annotate cells. The answer for a cell does not depend on the others.

        Parameters
        ----------
        method
            ``both`` averages the members; else one of them alone.
        coverage
            How often (0-1) the label sets of both members together are to hold the true label; none when
            None.

        Raises
        ------
        InputError
            If there is no such method, or no cell of ``subset`` has a label.
        """
        if method not in METHODS:
            raise InputError(f"there is no method {method!r}", fix=f"methods: {', '.join(METHODS)}")
        calibration, members = self.calibration, self.members
        found = members.score(chunk, n_neighbors, subset=subset)
        allowed = np.ones(members.n_classes, dtype=bool)
        if subset is not None:
            # A label without a cell among the chosen ones is not an answer, although the head knows it.
            allowed = np.isin(np.arange(members.n_classes), members.labels_among(subset))
            if not allowed.any():
                raise InputError(
                    "none of the reference cells chosen has a label",
                    fix="loosen --where",
                    code="where-no-match",
                )
            found = found.restricted(allowed)
        alone = {
            name: calibration.ensemble.alone(name, s) for name, s in zip(MEMBERS, found.scores, strict=True)
        }
        together = calibration.ensemble.combine(found.scores)
        # Novelty and label sets do not depend on the method that is asked for.
        given = together.argmax(axis=1)
        measures = np.zeros((len(chunk), 3), dtype=np.float32)
        if calibration.novelty is not None:
            raw = signals(found.distances, given)
            measures = calibration.novelty.standardised(raw, found.depths, given).astype(np.float32)
        together = np.where(allowed, together, np.float32(0.0))
        together /= together.sum(axis=1, keepdims=True)
        n_labels = calibration.sets.sizes(together, COVERAGE)
        sets = None
        if coverage is not None:
            sets = calibration.sets.sets(together, coverage) & allowed
        return Prediction(
            found.vectors,
            together if method == "both" else alone[method],
            {name: values.argmax(axis=1).astype(np.int32) for name, values in alone.items()},
            found.neighbors,
            measures,
            given.astype(np.int32),
            together[np.arange(len(given)), given],
            found.n_detected,
            n_labels,
            sets,
        )


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
    if len(np.unique(sample.labels)) < 2:
        raise InputError(
            "fewer than two labels have cells to train on", fix="give cells of two labels", code="one-label"
        )
    number = count(1)

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
