"""The log odds of a label, taken apart: exact, complete, and for the head the integral it claims to be."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvec.base.errors import InputError
from scvec.base.types import CellChunk
from scvec.encoders import Material, encoder_kind, make_encoder
from scvec.model.classifiers import MEMBERS, log_softmax
from scvec.model.explanation import weigh
from scvec.model.reference import METHODS, ReferenceModel
from scvec.model.training import TrainingSample

N_GENES, N_CLASSES = 40, 3


def cells(n: int = 90, seed: int = 0, measured: float = 1.0) -> tuple[CellChunk, np.ndarray]:
    """Cells whose class k has genes 8k to 8k+7 raised."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % N_CLASSES
    rate = np.full((n, N_GENES), 0.6)
    for k in range(N_CLASSES):
        rate[np.ix_(labels == k, range(8 * k, 8 * k + 8))] = 4.0
    seen = rng.random(N_GENES) < measured
    X = np.log1p(rng.poisson(rate)).astype(np.float32) * seen
    return CellChunk(sp.csr_matrix(X), seen), labels


def trained(name: str) -> ReferenceModel:
    chunk, labels = cells()
    text = np.random.default_rng(5).normal(size=(N_GENES, 16)).astype(np.float32)
    sample = TrainingSample(
        chunk.X,
        labels,
        np.arange(90),
        np.arange(90) // 3 % 3,
        held_out="cells",
        n_batches=0,
        n_classes=N_CLASSES,
    )
    given = text if encoder_kind(name).texts == "genes" else None
    return ReferenceModel.fit(
        lambda part, codes: make_encoder(name, Material(part, codes, given)),
        sample,
    )


@pytest.fixture(scope="module", params=["discriminant", "adapted", "pca", "weighted"])
def model(request: pytest.FixtureRequest) -> ReferenceModel:
    return trained(request.param)


@pytest.mark.parametrize("measured", [1.0, 0.6])
@pytest.mark.parametrize("method", METHODS)
def test_terms_sum_to_the_log_odds_of_the_members(model: ReferenceModel, method: str, measured: float):
    chunk, _ = cells(12, seed=1, measured=measured)
    found = weigh(model, chunk, method=method)
    seen = model.members.score(chunk, 15)
    ensemble = model.calibration.ensemble
    proba = (
        np.exp(log_softmax(ensemble.logits(seen.scores)))
        if method == "both"
        else ensemble.alone(method, seen.scores[MEMBERS.index(method)])
    )
    ranked = np.sort(np.log(np.maximum(proba.astype(np.float64), 1e-30)), axis=1)
    # log probabilities are float32 where classes are all but certain
    sure = ranked[:, -1] - ranked[:, -2] < 8
    np.testing.assert_allclose(
        found.log_odds[sure], (ranked[:, -1] - ranked[:, -2])[sure], rtol=1e-3, atol=1e-4
    )
    assert (found.best == proba.argmax(axis=1)).all() and (found.winner == found.best).all()
    assert np.abs(found.gap).max() <= 1e-4 * np.abs(found.log_odds).max()
    np.testing.assert_allclose(sum(found.members.values()), found.log_odds, atol=1e-6)
    assert set(found.members) == (set(MEMBERS) if method == "both" else {method})
    # what was not measured says nothing
    assert (found.by_gene[:, ~chunk.measured[found.columns]] == 0).all()


def test_markers_of_a_class_support_it(model: ReferenceModel):
    chunk, labels = cells(30, seed=2)
    found = weigh(model, chunk)
    assert (found.winner == labels).all()
    for k in range(N_CLASSES):
        mean = found.by_gene[labels == k].mean(axis=0)
        assert set(np.argsort(-mean)[:4]) <= set(range(8 * k, 8 * k + 8))


def test_a_cell_is_explained_alike_alone_and_among_others(model: ReferenceModel):
    chunk, _ = cells(9, seed=3)
    together = weigh(model, chunk)
    for row in (0, 4):
        alone = weigh(model, CellChunk(chunk.X[[row]], chunk.measured))
        genes = np.zeros((2, N_GENES))
        genes[0, alone.columns], genes[1, together.columns] = alone.by_gene[0], together.by_gene[row]
        np.testing.assert_allclose(genes[0], genes[1], atol=1e-4)


def test_head_by_integrated_gradients_of_autograd():
    import torch
    from torch.nn import functional as F

    chunk, _ = cells()
    model = trained("adapted")
    one = CellChunk(chunk.X[[4]], chunk.measured)
    found = weigh(model, one, method="head")
    a, b = int(found.winner[0]), int(found.other[0])
    encoder, head = model.members.encoder, model.members.head
    z = torch.from_numpy(encoder.profile.dense(one).astype(np.float64))
    G = torch.from_numpy(encoder.G.astype(np.float64)) / len(encoder.G) ** 0.5
    sd = ((z @ G).var(unbiased=False) + 1e-5).sqrt()  # the cell's own, held
    W, bias = (torch.from_numpy(v.astype(np.float64)) for v in (head.W, head.b))
    integral, steps = torch.zeros_like(z), 400
    for k in range(steps):
        at = (z * (k + 0.5) / steps).requires_grad_()
        y = at @ G
        logits = F.gelu((y - y.mean()) / sd) @ W.T + bias
        (logits[0, a] - logits[0, b]).backward()
        integral += at.grad / steps
    # In profile coordinates gradients along the shared direction meet a profile without a part there.
    u = encoder.profile.shared(one.measured).astype(np.float64)
    raw = integral[0].numpy()
    expected = z[0].numpy() * (raw - u * (u @ raw)) * model.calibration.ensemble.temperatures[0]
    np.testing.assert_allclose(found.by_gene[0], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_another_label_to_compare_with(model: ReferenceModel):
    chunk, labels = cells(12, seed=1)
    winner = labels.astype(np.int64)
    found = weigh(model, chunk, winner=np.zeros(12, np.int64) + 1, against=2)
    assert (found.winner == 1).all() and (found.other == 2).all() and (found.best == winner).all()
    assert (found.log_odds[labels == 2] < 0).all()
    with pytest.raises(InputError, match="no other label"):
        weigh(model, chunk, winner=winner, against=1)
    one_class = np.flatnonzero(model.members.labels == 1)
    with pytest.raises(InputError, match="no other label"):
        weigh(model, chunk, subset=one_class)


def test_an_encoder_that_cannot_be_divided_is_one_term(model: ReferenceModel):
    from types import SimpleNamespace

    members = model.members
    if model.members.encoder.name == "discriminant":
        pytest.skip("its vectors are made of what it reads first")
    kept = members.encoder
    members.encoder = SimpleNamespace(name=kept.name, encode=kept.encode)  # type: ignore[assignment]
    try:
        found = weigh(model, cells(6, seed=1)[0])
    finally:
        members.encoder = kept
    assert found.by_gene.shape[1] == 0 and (found.undivided != 0).any()
    assert np.abs(found.gap).max() <= 1e-4 * np.abs(found.log_odds).max()
