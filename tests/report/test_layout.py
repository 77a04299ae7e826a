"""Maps of cells: alike cells lie together, and new ones where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from scvec.report.layout import add_cells, lay_out_cells


def blobs(n: int, seed: int, *, n_groups: int = 5, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Cells of groups that lie apart, and the group of each."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(n_groups, 12)) * 6
    group = np.arange(n) % n_groups
    return (centers[group] + rng.normal(size=(n, 12)) + shift).astype(np.float32), group


def test_neighbours_stay_neighbours():
    vectors, group = blobs(400, 0)
    places = lay_out_cells(vectors)
    assert places.shape == (400, 2) and places.dtype == np.float32
    # umap-learn has 0.95 to 0.96 on these cells; their two principal axes have 0.86.
    assert trustworthiness(vectors, places, n_neighbors=15) > 0.93
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert np.mean(group[apart.argmin(axis=1)] == group) > 0.99
    np.testing.assert_array_equal(places, lay_out_cells(vectors))


@pytest.mark.parametrize("n", [0, 1, 3, 9, 10, 11, 17])
def test_few_cells_and_equal_cells_have_places(n: int):
    vectors = blobs(n, 0)[0]
    same = np.ones((n, 12), np.float32)
    for known in (vectors, same):
        places = lay_out_cells(known)
        assert places.shape == (n, 2) and np.isfinite(places).all()
        new = add_cells(
            places, known, vectors[:5], np.zeros(n, np.int64), np.ones((min(n, 5), 1), np.float32)
        )
        assert new.shape == (min(n, 5), 2) and np.isfinite(new).all()


def test_a_cell_lies_with_the_label_it_was_given():
    known, group = blobs(300, 0)
    new, own = blobs(100, 1, shift=2.0)
    places = lay_out_cells(known)
    # Another platform: half of the cells of group 0 lie nearer to those of group 1, but are known for what
    # they are.
    new[::10] = known[group == 1][:10] + 0.1
    proba = np.full((100, 5), 0.01, np.float32)
    proba[np.arange(100), own] = 0.96
    at = add_cells(places, known, new, group, proba)
    nearest = np.linalg.norm(at[:, None] - places[None], axis=2).argmin(axis=1)
    assert np.mean(group[nearest] == own) > 0.85
    unsure = add_cells(places, known, new, group, np.full((100, 5), 0.2, np.float32))
    nearest = np.linalg.norm(unsure[:, None] - places[None], axis=2).argmin(axis=1)
    assert np.mean(group[nearest][::10] == 1) > 0.8, "without an opinion, the neighbours decide"


def test_many_new_cells_of_a_rare_label_stay_on_the_map():
    vectors, group = blobs(500, 0)
    rare = np.flatnonzero(group == 0)[4:]  # four cells of group 0 are left
    known, labels = np.delete(vectors, rare, axis=0), np.delete(group, rare)
    new = blobs(2500, 1, n_groups=1)[0]
    places = lay_out_cells(known)
    proba = np.tile(np.float32([0.96, 0.01, 0.01, 0.01, 0.01]), (2500, 1))
    at = add_cells(places, known, new, labels, proba)
    assert np.ptp(at, axis=0).max() < 0.5 * np.ptp(places, axis=0).max()
    nearest = np.linalg.norm(np.median(at, axis=0) - places, axis=1).argmin()
    assert labels[nearest] == 0
