"""Tests of the head against torch and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scvec.encoders.weighted import WeightedEncoder
from scvec.model.classifiers import Head

ENCODER = WeightedEncoder(np.eye(2, dtype=np.float32))


def blobs(n_classes: int, n: int = 40, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    scale = np.array([0.01, 1.0, 100.0, 1.0, 3.0])
    centers = rng.normal(size=(n_classes, 5)) * 2
    return ((centers[labels] + rng.normal(size=(n, 5))) * scale + 7.0).astype(np.float32), labels.astype(
        np.int64
    )


class Trained:
    """An encoder that was trained together with a head."""

    name, embed_dim = "adapted", 4

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.W = rng.normal(size=(3, 4)).astype(np.float32)
        self.b = rng.normal(size=3).astype(np.float32)


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def reference(vectors: Any, labels: Any) -> Any:
    """Oracle: scikit-learn's model on vectors standardised by StandardScaler."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels)
    weight = 1 / np.sqrt(counts[labels])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return model.fit(vectors, labels, logisticregression__sample_weight=weight / weight.mean())


def test_a_trained_head_is_gelu_of_torch() -> None:
    import torch

    encoder, vectors = Trained(), np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32) * 3
    head = Head.fit(encoder, vectors, np.arange(20) % 3, 3)  # type: ignore[arg-type]
    expected = torch.nn.functional.gelu(torch.from_numpy(vectors)) @ torch.from_numpy(encoder.W).T
    assert head.activation == "gelu"
    np.testing.assert_allclose(head.scores(vectors), expected.numpy() + encoder.b, atol=1e-5)
    assert head.scores(vectors).dtype == np.float32


def test_classes_that_the_encoder_never_saw_never_win() -> None:
    # The encoder has rows for classes 0 to 2, but saw no cell of class 1.
    encoder, labels = Trained(), np.array([0, 2, -1, 2, 0])
    before = encoder.W.copy()
    head = Head.fit(encoder, np.zeros((5, 4), np.float32), labels, 6)  # type: ignore[arg-type]
    scores = head.scores(np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32) * 2)
    assert scores.shape == (500, 6) and set(scores.argmax(axis=1)) == {0, 2}
    assert softmax(scores)[:, [1, 3, 4, 5]].max() < 1e-6
    np.testing.assert_array_equal(encoder.W, before)


@pytest.mark.parametrize("n_classes", [3, 5])
def test_the_folded_standardisation_is_the_decision_function(n_classes: int) -> None:
    vectors, labels = blobs(n_classes)
    labels[:3] = -1
    head = Head.fit(ENCODER, vectors, labels, n_classes)
    known = labels >= 0
    model = reference(vectors[known], labels[known])
    got, expected = head.scores(vectors), model.decision_function(vectors)
    np.testing.assert_allclose(got, expected, atol=5e-3)
    assert (got.argmax(axis=1) == model.predict(vectors)).all()


def test_two_classes_have_the_odds_of_one_decision() -> None:
    vectors, labels = blobs(2)
    head, model = Head.fit(ENCODER, vectors, labels, 2), reference(vectors, labels)
    np.testing.assert_allclose(softmax(head.scores(vectors)), model.predict_proba(vectors), atol=2e-3)


@pytest.mark.parametrize("present", [[1, 4], [0, 2, 3]])
def test_absent_classes_never_win(present: list[int]) -> None:
    vectors, labels = blobs(len(present))
    head = Head.fit(ENCODER, vectors, np.array(present)[labels], 6)
    far = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32) * vectors.std(axis=0) * 5 + 7
    for cells in (vectors, far):
        p = softmax(head.scores(cells))
        assert set(p.argmax(axis=1)) <= set(present)
        assert p[:, [c for c in range(6) if c not in present]].max() < 1e-6
    assert (head.scores(vectors).argmax(axis=1) == np.array(present)[labels]).mean() > 0.9


def test_rare_classes_weigh_more_than_their_number() -> None:
    # Equal vectors for 200 cells and 8 cells: the weights are 1/sqrt(n), so the odds are sqrt(25) : 1.
    labels = np.repeat([0, 1], [200, 8]).astype(np.int64)
    vectors = np.random.default_rng(0).normal(size=(208, 5)).astype(np.float32) * 1e-3
    odds = np.exp(np.diff(Head.fit(ENCODER, vectors * 0, labels, 2).scores(vectors * 0)[:1], axis=1))
    assert float(odds[0, 0]) == pytest.approx(np.sqrt(8 / 200), rel=0.02)


def test_a_constant_dimension_is_harmless() -> None:
    vectors, labels = blobs(3)
    vectors[:, 1] = 4.0
    assert np.isfinite(Head.fit(ENCODER, vectors, labels, 3).scores(vectors)).all()


def test_state_and_unknown_activation() -> None:
    head = Head.fit(ENCODER, *blobs(3), 3)
    tensors, meta = head.state()
    vectors = blobs(3)[0]
    np.testing.assert_array_equal(Head(**tensors, **meta).scores(vectors), head.scores(vectors))
    with pytest.raises(ValueError, match="relu"):
        Head(tensors["W"], tensors["b"], "relu")
