"""Tests of the training cells that a reference keeps for later fits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from scvec.model.training import TrainingSample

N, N_GENES = 12, 30


def made(n_genes: int = N_GENES, **changed: Any) -> TrainingSample:
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(np.log1p(rng.poisson(1.0, (N, n_genes)) * 0.37).astype(np.float32))
    parts: dict[str, Any] = {
        "labels": np.arange(N) % 3,
        "rows": np.arange(N) * 2 + 1,
        "folds": np.arange(N) // 4,
        "held_out": "batch",
        "n_batches": 5,
        "n_classes": 4,
    }
    return TrainingSample.rounded(X, **{**parts, **changed})


def same(a: TrainingSample, b: TrainingSample) -> bool:
    arrays = ("labels", "rows", "folds")
    plain = ("held_out", "n_batches", "n_classes")
    return (
        a.X.shape == b.X.shape
        and all((getattr(a.X, n) == getattr(b.X, n)).all() for n in ("data", "indices", "indptr"))
        and all((getattr(a, n) == getattr(b, n)).all() for n in arrays)
        and all(getattr(a, n) == getattr(b, n) for n in plain)
    )


def test_values_are_rounded_once_and_the_cells_given_stay_as_they_are() -> None:
    X = sp.csr_matrix(np.array([[0.1234567, 0.0], [7.654321, 1.0]], np.float32))
    before = X.data.copy()
    sample = TrainingSample.rounded(
        X, labels=np.array([0, 1]), rows=np.array([0, 1]), folds=np.array([0, 0]), held_out="cells",
        n_batches=0, n_classes=2,
    )  # fmt: skip
    np.testing.assert_array_equal(X.data, before)
    np.testing.assert_array_equal(sample.X.data, before.astype(np.float16).astype(np.float32))
    assert sample.X.dtype == np.float32 and (sample.X.data != before).any()
    np.testing.assert_allclose(sample.X.data, before, rtol=5e-4)


@pytest.mark.parametrize("n_genes", [N_GENES, 70_000])
def test_what_is_stored_comes_back_to_the_bit(n_genes: int) -> None:
    sample = made(n_genes)
    tensors, meta = sample.state()
    again = TrainingSample.from_state(
        {k: np.array(v) for k, v in tensors.items()}, json.loads(json.dumps(meta))
    )
    assert same(again, sample) and again.X.dtype == np.float32
    assert tensors["data"].dtype == np.float16
    assert tensors["indices"].dtype == (np.uint16 if n_genes <= 1 << 16 else np.uint32)
    for name, values in again.state()[0].items():
        assert values.tobytes() == tensors[name].tobytes(), name


def test_cells_deleted_from_the_reference_leave_and_the_rows_of_the_rest_move_up() -> None:
    sample = made()  # rows 1, 3, 5, ..., 23
    gone = np.array([0, 3, 4, 11, 23])
    got = sample.without(gone)
    kept = np.setdiff1d(np.arange(24), gone)
    still = ~np.isin(sample.rows, gone)
    assert got.rows.tolist() == [int(np.flatnonzero(kept == row)[0]) for row in sample.rows[still]]
    np.testing.assert_array_equal(got.X.toarray(), sample.X.toarray()[still])
    np.testing.assert_array_equal(got.labels, sample.labels[still])
    np.testing.assert_array_equal(got.folds, sample.folds[still])
    assert (got.held_out, got.n_batches, got.n_classes) == ("batch", 5, 4)
    assert same(sample.without(np.zeros(0, np.int64)), sample)


def test_cells_as_a_panel_shows_them() -> None:
    sample = made()
    before = sample.X.toarray()
    measured = np.arange(N_GENES) % 3 > 0
    panel = sample.cells(measured)
    np.testing.assert_array_equal(panel.X.toarray(), before * measured)
    assert (panel.X.data != 0).all() and (panel.measured == measured).all()
    whole = sample.cells()
    assert whole.measured.all()
    np.testing.assert_array_equal(whole.X.toarray(), before)
    np.testing.assert_array_equal(sample.X.toarray(), before)


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.arange(N - 1) % 3},
        {"rows": np.arange(N - 1)},
        {"folds": np.zeros(N + 1, np.int64)},
        {"labels": np.arange(N) % 3 - 1},
        {"labels": np.arange(N) % 5},
        {"rows": np.arange(N)[::-1]},
        {"rows": np.zeros(N, np.int64)},
    ],
)
def test_parts_that_do_not_fit_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        made(**changed)


def bad(name: str, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, meta = made().state()
    if name in meta:
        return tensors, {**meta, name: value}
    values = np.array(tensors[name])
    return {**tensors, name: value(values)}, meta


def changed_at(i: int, value: Any) -> Any:
    def change(values: Any) -> Any:
        values[i] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", lambda v: v[:-1]),
        ("data", changed_at(3, np.nan)),
        ("data", changed_at(3, np.inf)),
        ("indices", lambda v: v[:-1]),
        ("indices", changed_at(5, N_GENES)),
        ("indptr", lambda v: v[:-1]),
        ("indptr", changed_at(3, 10**6)),
        ("indptr", changed_at(0, -1)),
        ("indptr", changed_at(1, -4)),
        ("labels", lambda v: v[:-1]),
        ("labels", changed_at(0, 4)),
        ("labels", changed_at(0, -1)),
        ("rows", changed_at(0, 99)),
        ("folds", lambda v: v[:-1]),
        ("n_classes", 2),
        ("n_genes", 3),
    ],
)
def test_a_damaged_state_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError):
        TrainingSample.from_state(*bad(name, value))
