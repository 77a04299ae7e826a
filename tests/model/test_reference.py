"""Tests of the model of a reference, trained on small planted classes."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.sparse as sp

from scvec.base.errors import InputError
from scvec.base.types import CellChunk
from scvec.encoders.discriminant import DiscriminantEncoder
from scvec.encoders.pca import PCAEncoder, Scaling
from scvec.encoders.statistics import StatisticsAccumulator, variability
from scvec.model.calibration import Calibration, expected_calibration_error
from scvec.model.classifiers import MEMBERS
from scvec.model.novelty import Shift
from scvec.model.reference import METHODS, Prediction, ReferenceModel
from scvec.model.training import TrainingSample, make_folds

N_GENES, N_CLASSES, N_CELLS = 80, 4, 200


def cells(seed: int, n: int = N_CELLS, contrast: float = 3.0) -> tuple[CellChunk, Any]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % N_CLASSES
    rate = np.full((n, N_GENES), 0.8)
    for k in range(N_CLASSES):
        rate[labels == k, 12 * k : 12 * k + 12] = contrast
    X = sp.csr_matrix(np.log1p(rng.poisson(rate)).astype(np.float32))
    return CellChunk(X, np.ones(N_GENES, bool)), labels


class SpyEncoder(PCAEncoder):
    """A PCA encoder that records the cells of its scaling and of its training."""

    made: ClassVar[list[tuple[int, int]]] = []

    @classmethod
    def of(cls, part: CellChunk, labels: Any) -> SpyEncoder:
        cls.made.append((len(part), hash(part.X.data.tobytes())))
        return cls(plain(part, labels).scaling, embed_dim=8)

    def fit(self, chunks: Any, labels: Any, **options: Any) -> None:
        chunks = list(chunks)
        assert self.made[-1] == (sum(map(len, chunks)), hash(chunks[0].X.data.tobytes()))
        super().fit(chunks, labels, **options)


def plain(part: CellChunk, labels: Any) -> PCAEncoder:
    gathered = StatisticsAccumulator(part.X.shape[1])
    gathered.add(part.X)
    return PCAEncoder(Scaling.from_statistics(gathered.result()), embed_dim=8)


def discriminant(part: CellChunk, labels: Any) -> DiscriminantEncoder:
    gathered = StatisticsAccumulator(part.X.shape[1])
    gathered.add(part.X)
    return DiscriminantEncoder(variability(gathered.result()))


def sample_of(
    chunk: CellChunk, labels: Any, batches: Any = None, n_classes: int = N_CLASSES
) -> TrainingSample:
    """Cells to train on, every second row of a reference."""
    folds, held_out, _ = make_folds(labels, batches, n_folds=3, seed=0)
    return TrainingSample(
        chunk.X,
        labels,
        np.arange(len(labels)) * 2,
        folds,
        held_out,
        0 if batches is None else len(np.unique(batches)),
        n_classes,
    )


ENCODERS = {"discriminant": discriminant, "pca": plain}


def novelty_of(model: ReferenceModel, found: Prediction) -> Any:
    """Novelty scores without the shift of the query."""
    judge = model.calibration.novelty
    assert judge is not None
    return judge.score(Shift.none(model.members.n_classes).relative(found.signals, found.given))


@pytest.fixture(scope="module", params=ENCODERS)
def model(request: pytest.FixtureRequest) -> ReferenceModel:
    return ReferenceModel.fit(ENCODERS[request.param], sample_of(*cells(0)), n_neighbors=10)


def test_folds_are_standardised_and_trained_by_their_own_cells_alone() -> None:
    SpyEncoder.made = []
    chunk, labels = cells(0)
    batches = np.repeat(["a", "b", "c"], [100, 60, 40])
    fitted = ReferenceModel.fit(SpyEncoder.of, sample_of(chunk, labels, batches))
    assert fitted.calibration.held_out == "batch"
    expected = [(~(batches == held)).nonzero()[0] for held in "abc"] + [np.arange(N_CELLS)]
    assert SpyEncoder.made == [(len(r), hash(chunk.X[r].data.tobytes())) for r in expected]
    assert fitted.calibration.n_cells == N_CELLS


def test_new_cells_are_annotated(model: ReferenceModel) -> None:
    chunk, labels = cells(1)
    for method in METHODS:
        got = model.predict(chunk, method=method)
        assert got.proba.shape == (N_CELLS, N_CLASSES) and set(got.winners) == set(MEMBERS)
        np.testing.assert_allclose(got.proba.sum(axis=1), 1.0, atol=1e-5)
        assert (got.proba.argmax(axis=1) == labels).mean() > 0.9
        if method == "both":
            np.testing.assert_array_equal(got.proba.argmax(axis=1), got.given)
            np.testing.assert_array_equal(got.proba.max(axis=1), got.sure)
        else:
            np.testing.assert_array_equal(got.proba.argmax(axis=1), got.winners[method])
    known = model.members.vector_genes
    assert (got.n_detected == (chunk.X[:, known].toarray() > 0).sum(axis=1)).all()
    assert got.neighbors.indices.shape == (N_CELLS, 15) and len(got) == N_CELLS
    # Neighbours are rows of the reference. Every second row is a training cell.
    assert (got.neighbors.indices % 2 == 0).all() and got.neighbors.indices.max() > N_CELLS
    nearest = cells(0)[1][got.neighbors.indices[:, 0] // 2]
    assert (nearest == labels).mean() > 0.8


@pytest.mark.parametrize(("encoder", "n", "n_batches"), [("pca", 300, 1), ("discriminant", 900, 3)])
def test_confidence_is_calibrated_on_new_cells(encoder: str, n: int, n_batches: int) -> None:
    # With single held-out cells, uniform mixing keeps confidence below accuracy on purpose.
    batches = (np.arange(n) // N_CLASSES % n_batches).astype(str)
    fitted = ReferenceModel.fit(ENCODERS[encoder], sample_of(*cells(0, n, 1.5), batches))
    assert fitted.calibration.held_out == ("batch" if n_batches > 1 else "cells")
    chunk, labels = cells(1, 600, 1.5)
    p = fitted.predict(chunk).proba
    correct = p.argmax(axis=1) == labels
    assert 0.5 < correct.mean() < 0.98  # otherwise the test is too easy to be informative
    assert expected_calibration_error(p.max(axis=1), correct) < 0.08
    assert fitted.calibration.record["accuracy"] == pytest.approx(correct.mean(), abs=0.08)


def test_a_prediction_does_not_depend_on_other_cells(model: ReferenceModel) -> None:
    chunk, _ = cells(2, 40)
    whole = model.predict(chunk, coverage=0.9)
    alone = [model.predict(CellChunk(chunk.X[i], chunk.measured), coverage=0.9) for i in np.arange(40)[::-1]]
    joined = Prediction.gather(alone[::-1], sum(map(len, alone[::-1])))
    np.testing.assert_allclose(joined.proba, whole.proba, atol=1e-4)
    np.testing.assert_allclose(joined.vectors, whole.vectors, atol=1e-5)
    np.testing.assert_allclose(joined.signals, whole.signals, atol=1e-3)
    np.testing.assert_allclose(novelty_of(model, joined), novelty_of(model, whole), atol=1e-3)
    assert (joined.proba.argmax(axis=1) == whole.proba.argmax(axis=1)).all()
    for name in ("given", "n_detected", "n_labels", "sets"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    np.testing.assert_array_equal(joined.neighbors.indices, whole.neighbors.indices)
    for name in MEMBERS:
        np.testing.assert_array_equal(joined.winners[name], whole.winners[name])


def test_predictions_are_put_together_whole_or_not_at_all(model: ReferenceModel) -> None:
    parts = [model.predict(cells(2, n)[0]) for n in (3, 5)]
    assert len(Prediction.gather(iter(parts), 8)) == 8
    for given, n in ((parts, 9), ([], 0)):
        with pytest.raises(ValueError, match="predictions"):
            Prediction.gather(given, n)


def test_a_subset_answers_with_its_own_labels_alone(model: ReferenceModel) -> None:
    chunk, labels = cells(3)
    subset = 2 * np.flatnonzero(np.isin(cells(0)[1], [1, 3]))
    for method in METHODS:
        got = model.predict(chunk, method=method, subset=subset, coverage=0.99)
        assert set(got.proba.argmax(axis=1)) == {1, 3}
        assert got.proba[:, [0, 2]].max() < 1e-6
        assert got.sets is not None and not got.sets[:, [0, 2]].any()
        known = np.isin(labels, [1, 3])
        assert (got.proba.argmax(axis=1) == labels)[known].mean() > 0.9
    assert set(got.neighbors.indices.ravel()) <= {*subset.tolist(), -1}


def test_more_neighbours_than_cells(model: ReferenceModel) -> None:
    subset = np.array([0, 2, 4])
    got = model.predict(cells(3, 5)[0], n_neighbors=10, subset=subset)
    assert set(got.neighbors.indices[:, :3].ravel()) == {0, 2, 4}
    assert (got.neighbors.indices[:, 3:] == -1).all() and np.isfinite(got.proba).all()
    assert np.isfinite(novelty_of(model, got)).all()


def test_what_predict_refuses(model: ReferenceModel) -> None:
    chunk = cells(3, 5)[0]
    with pytest.raises(InputError) as caught:
        model.predict(chunk, method="vote")
    assert caught.value.code == "unknown-choice" and "'vote'" in caught.value.what
    # Row 1 of the reference is no training cell, so no label can be predicted.
    with pytest.raises(InputError) as caught:
        model.predict(chunk, subset=np.array([1]))
    assert caught.value.code == "where-no-match"


def test_foreign_cells_are_novel_and_known_ones_mostly_not(model: ReferenceModel) -> None:
    known = novelty_of(model, model.predict(cells(4)[0]))
    rng = np.random.default_rng(0)
    rate = np.where(np.arange(N_GENES) >= 12 * N_CLASSES, 6.0, 0.3)
    X = sp.csr_matrix(np.log1p(rng.poisson(rate, (100, N_GENES))).astype(np.float32))
    foreign = novelty_of(model, model.predict(CellChunk(X, np.ones(N_GENES, bool))))
    assert (known > 0.5).mean() < 0.2 and (foreign > 0.5).mean() > 0.9


def test_one_cell_a_label_works_and_is_not_calibrated() -> None:
    chunk = cells(0, 4, 12.0)[0]
    fitted = ReferenceModel.fit(discriminant, sample_of(chunk, np.arange(4)), n_neighbors=2)
    assert fitted.calibration.to_dict() == Calibration.unknown(N_CLASSES).to_dict()
    assert fitted.calibration.held_out == "none" and fitted.calibration.n_cells == 0
    new, labels = cells(1, 80, 12.0)
    got = fitted.predict(new, coverage=0.9)
    assert (got.proba.argmax(axis=1) == labels).mean() > 0.9
    np.testing.assert_allclose(got.proba.sum(axis=1), 1.0, atol=1e-5)
    # The reference has no novelty scores.
    assert (got.signals == 0).all() and np.isfinite(got.sure).all() and got.sets is not None


def test_a_class_without_cells_is_never_the_answer(model: ReferenceModel) -> None:
    chunk, labels = cells(0)
    encoder = ENCODERS["discriminant" if model.members.encoder.name == "discriminant" else "pca"]
    fitted = ReferenceModel.fit(encoder, sample_of(chunk, labels + (labels > 1), n_classes=6))
    got = fitted.predict(cells(1)[0])
    assert got.proba.shape[1] == 6 and set(got.given) == {0, 1, 3, 4}
    assert got.proba[:, [2, 5]].max() < 0.05 and np.isfinite(got.signals).all()


def test_the_floor_is_that_of_the_cells_trained_on(model: ReferenceModel) -> None:
    detected = (cells(0)[0].X[:, model.members.vector_genes].toarray() > 0).sum(axis=1)
    assert model.floor == pytest.approx(0.5 * np.quantile(detected, 0.01))


def as_bytes(model: ReferenceModel) -> Any:
    chunk = cells(6)[0]
    found = model.predict(chunk, coverage=0.9)
    state = {name: value.tobytes() for name, value in model.members.encoder.state()[0].items()}
    answers = {name: values.tobytes() for name, values in found._arrays().items()}
    return json.dumps(model.calibration.to_dict()), state, answers


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_seed_decides(encoder: str) -> None:
    a, b = (ReferenceModel.fit(ENCODERS[encoder], sample_of(*cells(0)), seed=5) for _ in range(2))
    assert as_bytes(a) == as_bytes(b)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_trainings_side_by_side_are_those_that_follow_each_other(encoder: str) -> None:
    a, b = (ReferenceModel.fit(ENCODERS[encoder], sample_of(*cells(0)), seed=5, n_workers=n) for n in (1, 3))
    assert as_bytes(a) == as_bytes(b)


def test_calibration_goes_through_json(model: ReferenceModel) -> None:
    again = Calibration.from_dict(json.loads(json.dumps(model.calibration.to_dict())))
    assert again.ensemble == model.calibration.ensemble and again.record == model.calibration.record
    assert (again.held_out, again.n_cells) == ("cells", N_CELLS)
    assert as_bytes(ReferenceModel(model.members, again, model.floor)) == as_bytes(model)
    unknown = Calibration.unknown(N_CLASSES)
    stored = json.loads(json.dumps(unknown.to_dict()))
    assert Calibration.from_dict(stored).to_dict() == unknown.to_dict()
    assert set(again.record["members"]) == set(MEMBERS)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_fit_to_some_genes_is_that_of_cells_that_have_no_others(encoder: str) -> None:
    measured = np.arange(N_GENES) % 3 > 0
    chunk, labels = cells(0)
    sample = sample_of(chunk, labels)
    fitted = ReferenceModel.fit(ENCODERS[encoder], sample, measured)
    X = chunk.X.multiply(measured.astype(np.float32)).tocsr()
    X.eliminate_zeros()
    poor = ReferenceModel.fit(ENCODERS[encoder], sample_of(CellChunk(X, measured), labels), measured)
    new, truth = cells(1)
    panel = TrainingSample(new.X, truth, np.arange(200), np.zeros(200, int), "cells", 0, 4).cells(measured)
    a, b = fitted.predict(panel), poor.predict(panel)
    np.testing.assert_array_equal(a.proba, b.proba)
    assert (a.given == truth).mean() > 0.9
    assert (novelty_of(fitted, a) > 0.5).mean() < 0.2
    if encoder == "discriminant":
        assert measured[fitted.members.vector_genes].all()


def test_an_encoder_that_takes_some_genes_gets_no_others() -> None:
    known = np.arange(0, N_GENES, 2)
    chunk, labels = cells(0)
    fitted = ReferenceModel.fit(plain, sample_of(chunk, labels), genes=known)
    np.testing.assert_array_equal(fitted.members.vector_genes, known)
    new, truth = cells(1)
    whole = fitted.predict(new)
    assert (whole.n_detected == (new.X[:, known].toarray() > 0).sum(axis=1)).all()
    assert (whole.given == truth).mean() > 0.9
    others = new.X.tolil()
    others[:, 1::2] = 3.0
    changed = fitted.predict(CellChunk(others.tocsr(), new.measured))
    np.testing.assert_array_equal(changed.proba, whole.proba)
