"""Backbones that are controls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.backbones.controls import RandomBackbone, permutation
from scvec.base.types import Backbone


def test_a_text_always_has_the_same_random_direction() -> None:
    texts = ["INS (insulin)", "GCG", "", "Ünïcode 🧬", "INS (insulin)"]
    a = RandomBackbone(64)
    assert isinstance(a, Backbone)
    vectors = a.encode(texts)
    assert vectors.shape == (5, 64) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[4])
    np.testing.assert_array_equal(RandomBackbone(64).encode(texts[::-1])[::-1], vectors)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(a.encode([text])[0], vectors[i])


def test_random_directions_are_those_of_earlier_versions() -> None:
    # Stores keep vectors under the name of this space, so they must not change between versions.
    got = RandomBackbone(4).encode(["INS"])[0]
    np.testing.assert_allclose(got, [-0.6350313, -0.3400104, -0.6416261, 0.2635227], atol=1e-6)


def test_random_directions_have_nothing_in_common() -> None:
    v = RandomBackbone(384).encode([f"gene {i}" for i in range(200)])
    cosines = (v @ v.T)[np.triu_indices(200, 1)]
    assert abs(cosines).max() < 0.3
    assert cosines.std() == pytest.approx(384**-0.5, rel=0.05) and abs(cosines.mean()) < 0.002


def test_dimensions_and_templates_define_separate_spaces() -> None:
    spaces = [RandomBackbone(8).space, RandomBackbone(9).space, RandomBackbone(8, "name").space]
    assert len({s.fingerprint for s in spaces}) == 3


@settings(max_examples=60)
@given(st.lists(st.text("abcAB:019é", min_size=1, max_size=5), unique=True), st.integers(0, 99), st.randoms())
def test_permutation_does_not_depend_on_the_order(ids: list[str], seed: int, random: object) -> None:
    given_to = permutation(ids, seed)
    assert sorted(given_to.tolist()) == list(range(len(ids)))
    partner = {gene: ids[i] for gene, i in zip(ids, given_to, strict=True)}
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = permutation(shuffled, seed)
    assert {gene: shuffled[i] for gene, i in zip(shuffled, again, strict=True)} == partner


def test_permutation_moves_nearly_all_genes_and_follows_its_seed() -> None:
    ids = [f"HGNC:{i}" for i in range(1000)]
    a = permutation(ids)
    assert (a == np.arange(1000)).sum() < 10
    np.testing.assert_array_equal(a, permutation(ids, 0))
    assert (a != permutation(ids, 1)).any()
