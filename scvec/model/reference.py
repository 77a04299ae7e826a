"""Model of a reference: the members of the ensemble and their calibration on held-out cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base import arrays
from scvec.base.errors import InputError, check_choice
from scvec.base.resources import JointProgress, side_by_side
from scvec.base.types import CellChunk, CellEncoder, Float32, Int64, Neighbors, Progress, no_progress
from scvec.encoders import EncoderKind, Material, make_encoder
from scvec.model.calibration import COVERAGE, Calibration, low_quality_floor
from scvec.model.classifiers import MEMBERS, Members
from scvec.model.novelty import signals
from scvec.model.query_options import METHODS
from scvec.model.training import HeldOut, TrainingSample, score_held_out, splits

__all__ = ["METHODS", "Prediction", "ReferenceModel", "train"]

#: Number of neighbours that vote during calibration.
N_NEIGHBORS = 15


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions of a reference for n cells.

    Attributes
    ----------
    vectors
        (n, embed_dim) float32.
    proba
        (n, n_classes) float32 calibrated probabilities of the requested method.
    winners
        For each member, (n,) int32 class with the highest score of that member.
    sets
        (n, n_classes) bool label sets; None if no coverage was requested.
    signals
        (n, 3) float32 standardised novelty signals (:class:`scvec.model.novelty.Novelty`); zeros if the
        reference has no held-out cells.
    given
        (n,) int32 most probable class of the ensemble. ``signals`` are distances to this class.
    sure
        (n,) float32 probability of this class.
    n_detected
        (n,) int64 number of detected genes of the reference in each cell.
    n_labels
        (n,) int64 number of labels in the label set that decides the status of a cell.
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
        """Concatenate the predictions of chunks with ``n`` cells in total. Each part is freed after copying.

        Large arrays are kept in files (`scvec.base.arrays`).

        Raises
        ------
        ValueError
            If the parts do not have ``n`` cells, or there are none.
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
        return cls._of(whole)

    @classmethod
    def placed(cls, parts: Sequence[tuple[Int64, Prediction]]) -> Prediction:
        """Join the predictions of parts of the cells; each has the numbers (n,) of its cells."""
        n, whole = sum(len(rows) for rows, _ in parts), dict[str, npt.NDArray[Any]]()
        for rows, part in parts:
            for name, values in part._arrays().items():
                if name not in whole:
                    make = arrays.empty if n * values[:1].nbytes >= arrays.LARGE else np.empty
                    whole[name] = make((n, *values.shape[1:]), values.dtype)
                for some in arrays.blocks(len(rows)):
                    whole[name][rows[some]] = values[some]
                arrays.release(values)
                arrays.release(whole[name])
        return cls._of(whole)

    @classmethod
    def _of(cls, whole: dict[str, npt.NDArray[Any]]) -> Prediction:
        return cls(
            winners={name: whole.pop(f"winner {name}") for name in MEMBERS},
            neighbors=Neighbors(whole.pop("neighbors"), whole.pop("distances")),
            **whole,
        )

    def release(self) -> None:
        """Release memory of arrays that are kept in files."""
        for values in self._arrays().values():
            arrays.release(values)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays by name; each has one row per cell."""
        plain = ("vectors", "proba", "signals", "given", "sure", "n_detected", "n_labels", "sets")
        found = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        found |= {f"winner {name}": values for name, values in self.winners.items()}
        return found | {"neighbors": self.neighbors.indices, "distances": self.neighbors.distances}


class ReferenceModel:
    """Members fitted on labelled cells, and their calibration on held-out cells.

    Parameters
    ----------
    floor
        Cells with fewer detected genes of the encoder than this have low quality.
    held
        Scores of the held-out cells, of a model that was just fitted.
    """

    def __init__(
        self, members: Members, calibration: Calibration, floor: float, held: HeldOut | None = None
    ) -> None:
        self.members, self.calibration, self.floor, self.held = members, calibration, floor, held

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
        """Train on the cells of a sample, and calibrate by cross-validation over its folds.

        Parameters
        ----------
        make_encoder
            Returns an untrained encoder for given cells (over ``genes``) and labels. In a fold these do not
            include the held-out cells.
        measured
            (n_genes,) bool, genes that the query measured; None for all.
        genes
            Column numbers of the genes that the encoder uses; None for all.
        n_workers
            Number of simultaneous training runs. It does not change the result.
        """
        cells = sample.cells(measured)
        labels, n_classes = sample.labels, sample.n_classes
        used = np.arange(cells.X.shape[1], dtype=np.int64) if genes is None else genes

        def fit(rows: Int64 | None, number: int) -> Members:
            part, codes = (cells, labels) if rows is None else (cells.take(rows), labels[rows])
            return Members.fit(
                make_encoder(part if genes is None else part.select(genes), codes),
                part,
                codes,
                n_classes,
                genes=used,
                rows=sample.rows if rows is None else sample.rows[rows],
                seed=seed,
                progress=together.of(number),
            )

        trained_on = [train for _, train, _ in splits(labels, sample.folds)]
        together = JointProgress(progress, len(trained_on) + 1)
        jobs = [partial(fit, rows, number) for number, rows in enumerate([*trained_on, None])]
        with closing(side_by_side(jobs, n_workers, together.stop)) as trained:
            of_folds, seen = islice(trained, len(trained_on)), None
            if trained_on:
                seen = score_held_out(
                    cells, labels, sample.folds, of_folds, n_neighbors=n_neighbors, seed=seed
                )
                calibration = Calibration.fit(seen, held_out=sample.held_out, n_batches=sample.n_batches)
            else:
                calibration = Calibration.unknown(n_classes)
            members = next(trained)
        detected = np.diff(members.read(cells).X.indptr)
        return cls(members, calibration, low_quality_floor(detected[labels >= 0]), seen)

    @property
    def takes_turns(self) -> bool:
        """Whether chunks must be predicted one at a time, because they share a model or a GPU."""
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
        """Annotate cells. The prediction for a cell does not depend on the other cells.

        Parameters
        ----------
        method
            ``both`` for the ensemble, or the name of one member.
        coverage
            Requested fraction (0-1) of label sets with the true label, for the ensemble; None for no sets.

        Raises
        ------
        InputError
            If there is no such method, or no cell of ``subset`` has a label.
        """
        check_choice("--method", method, METHODS)
        calibration, members = self.calibration, self.members
        found = members.score(chunk, n_neighbors, subset=subset)
        allowed = np.ones(members.n_classes, dtype=bool)
        if subset is not None:
            # Exclude labels without a chosen cell, although the head has scores for them.
            allowed = np.isin(np.arange(members.n_classes), members.labels_among(subset))
            if not allowed.any():
                raise InputError(
                    "none of the chosen reference cells has a label",
                    fix="loosen --where",
                    code="where-no-match",
                )
            found = found.restricted(allowed)
        alone = {
            name: calibration.ensemble.alone(name, s) for name, s in zip(MEMBERS, found.scores, strict=True)
        }
        together = calibration.ensemble.combine(found.scores)
        # Novelty and label sets do not depend on the requested method.
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
    """Train and calibrate a reference on a sample of its cells.

    Parameters
    ----------
    material
        Returns the material of one training run, given cells, labels and ``is_fold``.
    genes
        Column numbers of the genes that the encoder uses; None for all.
    n_workers
        Number of simultaneous training runs. Encoders with torch train one at a time, because each run needs
        the memory of a model.

    Raises
    ------
    InputError
        If fewer than two labels have cells.
    """
    if len(np.unique(sample.labels)) < 2:
        raise InputError(
            "fewer than two labels have training cells", fix="give cells of two labels", code="one-label"
        )

    def new_encoder(part: CellChunk, labels: npt.NDArray[np.int64]) -> CellEncoder:
        is_fold = len(part) < len(sample.labels)
        return make_encoder(kind.name, material(part, labels, is_fold=is_fold))

    return ReferenceModel.fit(
        new_encoder,
        sample,
        genes=genes,
        n_neighbors=min(N_NEIGHBORS, max(1, len(sample.labels) // 2)),
        seed=seed,
        progress=progress,
        n_workers=1 if kind.uses_gpu else n_workers,
    )
