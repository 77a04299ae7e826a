"""Tests of the training loop: sampling weights, and a problem with a known solution."""

from __future__ import annotations

import numpy as np
import pytest

from scvec.encoders.adapted import Schedule, class_weights, train


def test_class_weights_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 2, -1])
    # 1/sqrt(4) four times and 1/sqrt(1) once: 2 + 1 in all.
    np.testing.assert_allclose(class_weights(labels, 3), np.array([0.5, 0.5, 0.5, 0.5, 1.0, 0.0]) / 3)


def fit_mean(
    seed: int, values: np.ndarray, weights: np.ndarray
) -> tuple[float, list[tuple[str, int, int | None]]]:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(values.astype(np.float32))
    p = torch.zeros(1, requires_grad=True)
    steps: list[tuple[str, int, int | None]] = []
    train(
        [{"params": [p], "weight_decay": 0.0}],
        lambda rows: ((x[rows] - p) ** 2).mean(),
        weights,
        Schedule(epochs=40, batch_size=32, lr=0.1),
        seed=seed,
        stage="fitting",
        progress=lambda *step: steps.append(step),
    )
    return float(p.detach()), steps


def test_train_minimises_and_samples_by_weight() -> None:
    values = np.concatenate([np.full(100, 1.0), np.full(100, 5.0), np.full(100, 99.0)])
    weights = np.concatenate([np.full(100, 0.75), np.full(100, 0.25), np.zeros(100)]) / 100
    found, steps = fit_mean(0, values, weights)
    assert found == pytest.approx(0.75 * 1 + 0.25 * 5, abs=0.3)
    assert {s[0] for s in steps} == {"fitting"}
    done, total = [s[1] for s in steps], {s[2] for s in steps}
    assert done == sorted(done) and total == {done[-1]} == {40 * 10}


def test_train_is_seeded_and_leaves_the_global_generators_alone() -> None:
    torch = pytest.importorskip("torch")
    values, weights = np.arange(50.0), np.full(50, 0.02)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state().clone(), np.random.get_state()[1].copy()
    a, b, c = (
        fit_mean(1, values, weights)[0],
        fit_mean(1, values, weights)[0],
        fit_mean(2, values, weights)[0],
    )
    assert a == b != c
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
