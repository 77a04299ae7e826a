"""Genes matched by their text, against comparing them one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import scvec
from scvec.base.errors import InputError
from scvec.model.matching import SIMILAR, with_partners
from scvec.model.resolvers import GeneMap

Cells = Callable[..., Any]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 6))
def test_a_gene_goes_to_the_free_gene_of_most_similar_text(seed: int, n_new: int, n_target: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(n_target, 3)).astype(np.float32)
    targets = np.sort(rng.permutation(2 * n_target)[:n_target])  # the other half has no text
    new = [f"N{i}" for i in range(n_new)]
    vectors = (known[rng.integers(0, n_target, n_new)] + rng.normal(0, 0.2, (n_new, 3))).astype(np.float32)
    # Columns of the query: the first is a matched gene, one is none, one gene has two.
    ids = ("old", None, *new, new[0])
    weights = sp.lil_matrix((len(ids), 2 * n_target), dtype=np.float32)
    weights[0, targets[0]] = 1.0
    measured = np.zeros(2 * n_target, dtype=bool)
    measured[targets[0]] = True
    found = with_partners(GeneMap(weights.tocsr(), measured), ids, new, vectors, targets, known)
    expected = weights.toarray()
    center = known.mean(axis=0)
    for column, gene in enumerate(ids):
        if gene not in new or n_target == 1:
            continue
        v = vectors[new.index(gene)] - center
        lengths = np.linalg.norm(v) * np.linalg.norm(known - center, axis=1)
        cosines = [
            -1.0 if measured[targets[j]] else v @ (k - center) / lengths[j] for j, k in enumerate(known)
        ]
        if max(cosines) >= SIMILAR:
            expected[column, targets[int(np.argmax(cosines))]] = 1.0
    np.testing.assert_array_equal(found.weights.toarray(), expected)
    np.testing.assert_array_equal(found.measured, measured | (expected > 0).any(axis=0))


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, tiny_adata: Cells, new_store: Callable[[Path], Path]
) -> Path:
    folder = new_store(tmp_path_factory.mktemp("unmatched") / "store")
    for name, encoder in (("text", "weighted"), ("none", "pca")):
        cells = tiny_adata(60, genes=120)
        scvec.ingest_cells(
            folder, [cells], name=name, label_key="cell_type", backbone="random:16", encoder=encoder
        )
    return folder


def test_the_missing_texts_are_encoded_once_and_a_cell_is_itself(store: Path, tiny_adata: Cells) -> None:
    new = tiny_adata(9, species="mouse", seed=3)[:, 30:].copy()  # lacks some genes, has others
    before = scvec.info(store).spaces[0].n_genes
    found = scvec.query(store, new, reference="text", unmatched_genes="text")
    assert found.parameters["unmatched_genes"] == "text"
    assert any("texts compared" in note for note in found.notes)
    after = scvec.info(store)
    assert after.spaces[0].n_genes > before
    again = scvec.query(store, new[4:5].copy(), reference="text", unmatched_genes="text")
    np.testing.assert_allclose(again.vectors[0], found.vectors[4], atol=1e-5)
    assert again.label[0] == found.label[4]
    assert scvec.info(store).generation == after.generation  # nothing new was written
    # Random vectors are like none: nothing is added, and nothing changes.
    dropped = scvec.query(store, new, reference="text")
    np.testing.assert_array_equal(dropped.proba, found.proba)


def test_a_reference_without_texts_says_so(store: Path, tiny_adata: Cells) -> None:
    new = tiny_adata(6)
    with pytest.raises(InputError, match="made without texts"):
        scvec.query(store, new, reference="none", unmatched_genes="text")
    with pytest.raises(InputError, match="drop, text"):
        scvec.query(store, new, reference="none", unmatched_genes="guess")
