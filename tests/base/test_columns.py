"""Texts in little memory: the same values on access, and much smaller before."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.base.arrays import Packed, blocks, code_type, coded, counts, holds_texts
from scvec.base.types import Neighbors
from scvec.model.annotation import Annotation
from scvec.model.calibration import STATUSES, set_names

#: Few texts, some of them equal, and codes for them.
FEW = st.lists(st.sampled_from(["", "beta", "alpha", "Ünal", "b|c"]), min_size=1, max_size=8)
CODED = FEW.flatmap(lambda texts: st.tuples(st.just(texts), st.lists(st.integers(0, len(texts) - 1))))


@given(CODED)
def test_coded_texts_equal_the_texts(drawn: tuple[list[str], list[int]]) -> None:
    texts, codes = drawn
    made = coded(np.array(codes, dtype=np.int64), texts)
    plain = np.array([texts[c] for c in codes], dtype=object)
    # Like pandas with the array: texts that do not occur are not categories.
    pd.testing.assert_extension_array_equal(made, pd.Categorical(plain))
    assert made.codes.dtype == pd.Categorical(plain).codes.dtype
    assert list(counts(made).items()) == sorted(Counter(plain).items(), key=lambda one: (-one[1], one[0]))
    assert counts(made.add_categories(["none of them"])) == counts(made)


@given(st.lists(st.text(st.characters()), max_size=20), st.integers(1, 7))
def test_packed_names_are_the_names(names: list[str], size: int) -> None:
    # Some names contain half of a surrogate pair, which has no UTF-8 form.
    packed = Packed(names)
    assert packed.to_array().dtype == object and packed.to_array().tolist() == names
    assert [packed[i] for i in range(len(names))] == names and len(packed) == len(names)
    assert [n for rows in blocks(len(names), size) for n in packed.part(rows)] == names
    gathered = Packed.gather(names[rows] for rows in blocks(len(names), size))
    assert gathered.to_array().tolist() == names
    assert gathered.all_differ() == packed.all_differ() == (len(set(names)) == len(names))


def test_names_with_equal_hashes_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd.util, "hash_array", lambda values, categorize: np.zeros(len(values), np.uint64))
    assert Packed(["a", "b"]).all_differ() and not Packed(["a", "b", "a"]).all_differ()
    with pytest.raises(ValueError, match="shape"):
        Packed(np.array([["a"]]))


@pytest.mark.parametrize(
    ("n", "dtype"), [(1, np.int8), (128, np.int8), (129, np.int16), (32768, np.int16), (32769, np.int32)]
)
def test_codes_are_as_small_as_they_can_be(n: int, dtype: Any) -> None:
    assert code_type(n) == dtype and np.array(n - 1).astype(code_type(n)) == n - 1


@holds_texts("names", "more")
@dataclass(frozen=True)
class Holder:
    names: Any
    more: Any = None


def test_an_attribute_is_an_array_made_once_and_kept() -> None:
    holder = Holder(coded(np.array([0, 1]), ["a", "b"]))
    assert holder.more is None and isinstance(vars(holder)["names"], pd.Categorical)
    other = pickle.loads(pickle.dumps(holder))
    assert isinstance(vars(other)["names"], pd.Categorical) and copy.copy(other).names.tolist() == ["a", "b"]
    assert holder.names is holder.names and holder.names.dtype == object
    holder.names[0] = "c"  # as in a normal array
    assert holder.names.tolist() == ["c", "b"] == dataclasses.replace(holder).names.tolist()
    with pytest.raises(dataclasses.FrozenInstanceError):
        holder.names = None
    with pytest.raises(TypeError):
        Holder()


def annotations(n: int, seed: int = 0) -> tuple[Annotation, Annotation]:
    """The same annotation from categories and from object arrays."""
    rng = np.random.default_rng(seed)
    classes = ("delta", "alpha", "beta", "unseen")
    proba = rng.dirichlet(np.ones(4), n).astype(np.float32)
    best = proba[:, :3].argmax(axis=1)
    terms = ["endocrine cell", "cell", "cell", ""]
    texts: dict[str, Any] = {
        "cells": Packed([f"cell_{i}" for i in range(n)]),
        "label": coded(best, classes),
        "label_knn": coded(rng.integers(0, 3, n), classes),
        "label_head": coded(best, classes),
        "label_broad": coded(rng.integers(0, 4, n), terms),
        "cl_id": coded(rng.integers(0, 4, n), ["CL:1", "CL:2", "CL:3", ""]),
        "status": coded(rng.integers(0, 2, n), STATUSES),
        "majority": coded(rng.integers(0, 3, n), classes),
    }
    known: dict[str, Any] = {
        "classes": classes,
        "confidence": proba.max(axis=1),
        "novelty": rng.random(n).astype(np.float32),
        "proba": proba,
        "vectors": np.zeros((n, 2), np.float32),
        "neighbors": Neighbors(np.zeros((n, 1), np.int64), np.zeros((n, 1), np.float32)),
        "parameters": {"reference": "r", "scvec": "1", "generation": 1, "space": "s", "coverage": 0.9},
        "sets": proba > 0.3,
        "cluster": rng.integers(0, 3, n),
    }
    plain = {name: np.array([held[i] for i in range(n)], dtype=object) for name, held in texts.items()}
    return Annotation(**texts, **known), Annotation(**plain, **known)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_an_annotation_is_equal_from_categories_and_from_objects(n: int) -> None:
    compact, plain = annotations(n)
    assert compact.to_dict() == plain.to_dict() and compact.lines() == plain.lines()
    assert compact.counts() == plain.counts()
    for options in ({}, {"columns": "celltypist"}, {"named": False}):
        pd.testing.assert_frame_equal(compact.to_table(**options), plain.to_table(**options))
    # Like pandas with the arrays.
    table = compact.to_table()
    for name in ("label", "label_knn", "label_head", "label_broad", "cl_id", "majority"):
        expected = pd.Series(pd.Categorical(getattr(plain, name)), table.index, name=f"scvec_{name}")
        pd.testing.assert_series_equal(table[f"scvec_{name}"], expected)
    assert table["scvec_status"].cat.categories.tolist() == list(STATUSES)
    assert compact.colors().keys() == plain.colors().keys()
    for name, colors in compact.colors().items():
        np.testing.assert_array_equal(colors, plain.colors()[name])


def test_a_table_in_parts_equals_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scvec.base.arrays.blocks.__defaults__", (7,))
    for annotation in annotations(30):
        parts = list(annotation.tables())
        assert [len(part) for part in parts] == [7, 7, 7, 7, 2]
        pd.testing.assert_frame_equal(pd.concat(parts), annotation.to_table())
        assert set_names(annotation.proba, annotation.sets, annotation.classes).tolist() == [
            "|".join(annotation.classes[k] for k in np.argsort(-p, kind="stable") if s[k])
            for p, s in zip(annotation.proba, annotation.sets, strict=True)
        ]
        assert annotation.label_sets().tolist() == annotation.to_table()["scvec_set"].tolist()


def test_writing_takes_few_bytes_a_cell() -> None:
    """Objects for names and labels would take 120 bytes a cell; blocks of names are not counted."""
    n = 200_000
    compact, _ = annotations(n)
    compact = compact.changed(sets=None, cluster=None, majority=None)
    tracemalloc.start()
    try:
        table = compact.to_table(named=False)
        compact.colors(), compact.lines(), compact.to_dict()
        kept = compact.changed(output="x.h5ad")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == n and peak < 60 * n
    # No object array was made.
    assert {type(vars(kept)[name]) for name in ("cells", "label", "status", "cl_id")} == {
        Packed,
        pd.Categorical,
    }
