"""A reference that names cells: trained on small planted classes."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.sparse as sp
from scvec.model.model import METHODS, Prediction, ReferenceModel
from scvec.model.pool import VOICES

from scvec.encoders.pca import PCAEncoder
from scvec.encoders.scaling import Scaling
from scvec.encoders.statistics import StatisticsAccumulator
from scvec.errors import InputError
from scvec.model.calibration import Calibration
from scvec.model.metrics import expected_calibration_error
from scvec.model.shift import REGIMES
from scvec.types import CellChunk

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
    """Principal components that note by which cells they are standardised, and which they are trained on."""

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


@pytest.fixture(scope="module")
def model() -> ReferenceModel:
    fitted, notes = ReferenceModel.fit(SpyEncoder.of, *cells(0), N_CLASSES, n_neighbors=10)
    assert len(notes) == 1
    return fitted


def test_folds_are_standardised_and_trained_by_their_own_cells_alone() -> None:
    SpyEncoder.made = []
    chunk, labels = cells(0)
    batches = np.repeat(["a", "b", "c"], [100, 60, 40])
    fitted, notes = ReferenceModel.fit(SpyEncoder.of, chunk, labels, N_CLASSES, batches=batches)
    assert notes == [] and fitted.calibration.held_out == "batch"
    expected = [(~(batches == held)).nonzero()[0] for held in "abc"] + [np.arange(N_CELLS)]
    assert SpyEncoder.made == [(len(r), hash(chunk.X[r].data.tobytes())) for r in expected]
    assert fitted.calibration.n_cells == N_CELLS


def test_new_cells_are_named(model: ReferenceModel) -> None:
    chunk, labels = cells(1)
    for method in METHODS:
        got = model.predict(chunk, regime="same", method=method)
        assert got.proba.shape == (N_CELLS, N_CLASSES) and set(got.winners) == set(VOICES)
        np.testing.assert_allclose(got.proba.sum(axis=1), 1.0, atol=1e-5)
        assert (got.proba.argmax(axis=1) == labels).mean() > 0.9
        if method != "both":
            np.testing.assert_array_equal(got.proba.argmax(axis=1), got.winners[method])
    assert (got.n_detected == (chunk.X.toarray() > 0).sum(axis=1)).all()
    assert got.neighbors.indices.shape == (N_CELLS, 15)


def test_confidence_is_calibrated_on_new_cells() -> None:
    fitted, _ = ReferenceModel.fit(SpyEncoder.of, *cells(0, 300, 1.5), N_CLASSES)
    chunk, labels = cells(1, 600, 1.5)
    p = fitted.predict(chunk, regime="same").proba
    correct = p.argmax(axis=1) == labels
    assert 0.5 < correct.mean() < 0.98  # else the question is too easy to say anything
    assert expected_calibration_error(p.max(axis=1), correct) < 0.08
    assert fitted.calibration.record["same"]["accuracy"] == pytest.approx(correct.mean(), abs=0.08)


def test_an_answer_never_depends_on_other_cells(model: ReferenceModel) -> None:
    chunk, _ = cells(2, 40)
    for regime in REGIMES:
        whole = model.predict(chunk, regime=regime)
        alone = [
            model.predict(CellChunk(chunk.X[i], chunk.measured), regime=regime) for i in np.arange(40)[::-1]
        ]
        joined = Prediction.concatenate(alone[::-1])
        np.testing.assert_allclose(joined.proba, whole.proba, atol=1e-4)
        np.testing.assert_allclose(joined.vectors, whole.vectors, atol=1e-5)
        np.testing.assert_allclose(joined.novelty, whole.novelty, atol=1e-3)
        assert (joined.proba.argmax(axis=1) == whole.proba.argmax(axis=1)).all()
        assert (joined.n_detected == whole.n_detected).all()
        for name in VOICES:
            np.testing.assert_array_equal(joined.winners[name], whole.winners[name])


def test_a_subset_answers_with_its_own_labels_alone(model: ReferenceModel) -> None:
    chunk, labels = cells(3)
    subset = np.flatnonzero(np.isin(cells(0)[1], [1, 3]))
    for method in METHODS:
        got = model.predict(chunk, regime="same", method=method, subset=subset)
        assert set(got.proba.argmax(axis=1)) == {1, 3}
        assert got.proba[:, [0, 2]].max() < 1e-6
        known = np.isin(labels, [1, 3])
        assert (got.proba.argmax(axis=1) == labels)[known].mean() > 0.9
    assert set(got.neighbors.indices.ravel()) <= {*subset.tolist(), -1}


def test_more_neighbours_than_cells(model: ReferenceModel) -> None:
    subset = np.array([0, 1, 2])
    got = model.predict(cells(3, 5)[0], regime="same", n_neighbors=10, subset=subset)
    assert (got.neighbors.indices[:, 3:] == -1).all() and np.isfinite(got.proba).all()
    assert np.isfinite(got.novelty).all()


def test_what_predict_refuses(model: ReferenceModel) -> None:
    chunk = cells(3, 5)[0]
    with pytest.raises(InputError, match="no method 'vote'"):
        model.predict(chunk, regime="same", method="vote")
    labels = cells(0)[1].copy()
    labels[:10] = -1
    part, _ = ReferenceModel.fit(SpyEncoder.of, cells(0)[0], labels, N_CLASSES)
    with pytest.raises(InputError, match="label"):
        part.predict(chunk, regime="same", subset=np.arange(10))


def test_foreign_cells_are_novel_and_known_ones_mostly_not(model: ReferenceModel) -> None:
    known = model.predict(cells(4)[0], regime="same").novelty
    rng = np.random.default_rng(0)
    rate = np.where(np.arange(N_GENES) >= 12 * N_CLASSES, 6.0, 0.3)
    X = sp.csr_matrix(np.log1p(rng.poisson(rate, (100, N_GENES))).astype(np.float32))
    foreign = model.predict(CellChunk(X, np.ones(N_GENES, bool)), regime="same").novelty
    assert (known > 0.5).mean() < 0.2 and (foreign > 0.5).mean() > 0.9


def test_labels_that_no_two_batches_share_fall_back_on_cells() -> None:
    chunk, labels = cells(0)
    batches = labels.astype(str)
    fitted, notes = ReferenceModel.fit(SpyEncoder.of, chunk, labels, N_CLASSES, batches=batches)
    assert fitted.calibration.held_out == "cells" and fitted.calibration.n_cells == N_CELLS
    assert any("share no labels" in note for note in notes)


def test_one_cell_a_label_cannot_be_calibrated() -> None:
    chunk, _ = cells(0, 4)
    with pytest.raises(InputError, match="held out"):
        ReferenceModel.fit(SpyEncoder.of, chunk, np.arange(4), N_CLASSES)


def test_unlabelled_cells_are_no_ground_for_the_floor() -> None:
    chunk, labels = cells(0)
    X = chunk.X.tolil()
    X[:20] = 0
    labels = labels.copy()
    labels[:20] = -1
    fitted, _ = ReferenceModel.fit(SpyEncoder.of, CellChunk(X.tocsr(), chunk.measured), labels, N_CLASSES)
    detected = (chunk.X.toarray()[20:] > 0).sum(axis=1)
    assert fitted.floor == pytest.approx(0.5 * np.quantile(detected, 0.01))


def test_the_seed_decides() -> None:
    a, b = (ReferenceModel.fit(SpyEncoder.of, *cells(0), N_CLASSES, seed=5)[0] for _ in range(2))
    assert json.dumps(a.calibration.to_dict()) == json.dumps(b.calibration.to_dict())


def test_trainings_side_by_side_are_those_that_follow_each_other() -> None:
    a, b = (ReferenceModel.fit(plain, *cells(0), N_CLASSES, seed=5, n_workers=n)[0] for n in (1, 3))
    assert json.dumps(a.calibration.to_dict()) == json.dumps(b.calibration.to_dict())
    np.testing.assert_array_equal(a.voices.index.vectors(), b.voices.index.vectors())


def test_calibration_goes_through_json(model: ReferenceModel) -> None:
    again = Calibration.from_dict(json.loads(json.dumps(model.calibration.to_dict())))
    assert again.pools == model.calibration.pools and again.record == model.calibration.record
    assert (again.held_out, again.n_cells) == ("cells", N_CELLS)
    chunk = cells(6)[0]
    other = ReferenceModel(model.voices, again, model.floor)
    for regime in REGIMES:
        a, b = (m.predict(chunk, regime=regime) for m in (model, other))
        np.testing.assert_array_equal(a.proba, b.proba)
        np.testing.assert_array_equal(a.novelty, b.novelty)
    shares = again.record["same"]["voices"]
    assert set(shares) == set(VOICES) and sum(v["share"] for v in shares.values()) == pytest.approx(1.0)


def test_genes_that_only_prototypes_know_name_a_panel_that_lacks_all_others() -> None:
    known = np.arange(0, N_GENES, 4)
    chunk, labels = cells(0)
    fitted, _ = ReferenceModel.fit(SpyEncoder.of, chunk, labels, N_CLASSES, genes=known)
    assert fitted.voices.prototypes.centroids.shape == (N_CLASSES, N_GENES)
    assert fitted.voices.linear.W.shape == (N_CLASSES, len(known))
    new, truth = cells(1)
    whole = fitted.predict(new, regime="same")
    assert (whole.n_detected == (new.X[:, known].toarray() > 0).sum(axis=1)).all()
    assert (whole.proba.argmax(axis=1) == truth).mean() > 0.9
    measured = np.ones(N_GENES, bool)
    measured[known] = False
    X = sp.csr_matrix(new.X.multiply(measured.astype(np.float32)))
    X.eliminate_zeros()
    panel = fitted.predict(CellChunk(X, measured), regime="few")
    assert (panel.n_detected == 0).all()
    assert (panel.winners["prototype"] == truth).mean() > 0.9
    assert (panel.proba.argmax(axis=1) == truth).mean() > 0.9
    # A cell's label does not depend on the cells beside it.
    alone = fitted.predict(CellChunk(X[7], measured), regime="few")
    np.testing.assert_allclose(alone.proba[0], panel.proba[7], atol=1e-5)
