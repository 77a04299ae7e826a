"""Tests of references whose encoder uses a model: ingest, query, verify, and errors for other models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import save_llama

from scvec.base.errors import InputError, StoreError
from scvec.workflows.admin import verify
from scvec.workflows.ingest_cells import ingest_cells
from scvec.workflows.query import query

pytestmark = pytest.mark.prompt

OPTIONS: dict[str, Any] = {
    "label_key": "cell_type",
    "batch_key": "donor",
    "backbone": "random:16",
    "encoder": "prompt",
    "n_genes": 16,
    "epochs": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llms") / "tiny")


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    llama: Path,
    new_store: Callable[[Path], Path],
) -> Path:
    path = new_store(tmp_path_factory.mktemp("stores") / "store")
    cells = tiny_adata(60, 3, donors=3)
    report = ingest_cells(path, [cells], name="read", llm=str(llama), **OPTIONS)
    assert report.encoder == "prompt" and report.n_cells == 60
    options = {**OPTIONS, "encoder": "sentence", "backbone": f"hf:{llama},pooling=mean", "epochs": None}
    ingest_cells(path, [cells], name="told", **options)
    return path


def test_a_reference_annotates_cells_and_is_verified(
    store: Path, llama: Path, tiny_adata: Callable[..., Any], tmp_path: Path
) -> None:
    new = tiny_adata(30, 3, seed=5)
    for name in ("read", "told"):
        found = query(store, new, reference=name, method="both")
        right = (found.label == new.obs["cell_type"].to_numpy().astype(str)).mean()
        # Only the prompt encoder is trained. Sentence vectors of a random model carry no information.
        assert right > 0.9 if name == "read" else set(found.label) <= {"alpha", "beta", "acinar"}
        assert found.parameters["encoder"] == {"read": "prompt", "told": "sentence"}[name]
        parts = [query(store, new[i : i + 10], reference=name) for i in range(0, 30, 10)]
        assert np.concatenate([p.label for p in parts]).tolist() == found.label.tolist()
        np.testing.assert_allclose(np.concatenate([p.vectors for p in parts]), found.vectors, atol=0.02)
    report = verify(store)
    assert report.ok and set(report.encoder_parity) == {"read", "told"}
    # --llm gives the new path of a model that moved.
    moved = Path(shutil.copytree(llama, tmp_path / "moved"))
    assert query(store, new, reference="read", llm=str(moved)).label.tolist()


def test_verify_sees_an_encoder_that_changed(store: Path, monkeypatch: Any) -> None:
    from scvec.encoders.prompt import PromptEncoder

    whole = PromptEncoder.encode
    monkeypatch.setattr(PromptEncoder, "encode", lambda self, chunk: np.roll(whole(self, chunk), 1, axis=1))
    report = verify(store)
    assert not report.ok and "'read'" in report.problems[0] and "differs" in report.problems[0]


def test_a_model_that_is_gone_or_another_is_an_error_of_the_store(
    store: Path, llama: Path, tiny_adata: Callable[..., Any], tmp_path: Path
) -> None:
    new = tiny_adata(6, 3, seed=5)
    other = save_llama(tmp_path / "other", seed=3)
    with pytest.raises(StoreError) as caught:
        query(store, new, reference="read", llm=str(other))
    assert caught.value.code == "model-changed" and "--llm" in caught.value.fix
    with pytest.raises(InputError) as caught_input:
        query(store, new, reference="read", llm=str(tmp_path / "nowhere"))
    assert caught_input.value.code == "model-not-found"
    with pytest.raises(InputError) as caught_input:
        query(store, new, reference="told", llm=str(llama))
    assert caught_input.value.where == f"--llm {llama}"
    aside = llama.with_name("aside")
    llama.rename(aside)
    try:
        for name in ("read", "told"):
            with pytest.raises(StoreError) as caught:
                query(store, new, reference=name)
            assert caught.value.code == "model-not-found" and caught.value.exit_code == 3 and caught.value.fix
        assert not verify(store).ok
    finally:
        aside.rename(llama)


@pytest.mark.parametrize(
    ("options", "code", "where"),
    [
        ({"llm": "nowhere/at/all"}, "model-not-found", "--llm nowhere/at/all"),
        ({"llm": "nothing.gguf"}, "model-not-found", "--llm nothing.gguf"),
        ({"prompt_order": "backwards"}, "unknown-choice", "--prompt-order"),
        ({"n_genes": 4096}, "option-out-of-range", "tokens"),
        ({"encoder": "adapted", "epochs": None, "llm": "x", "n_genes": None}, "usage", "--llm"),
        ({"encoder": "sentence", "epochs": 3}, "usage", "--epochs"),
        ({"encoder": "sentence", "epochs": None}, "input", "--backbone"),
        ({"encoder": "sentence", "epochs": None, "backbone": "openai:m"}, "input", "--backbone"),
        ({"prompt_order": "none", "llm": "x"}, "input", "--llm x"),
        ({"device": "cuda"}, "no-gpu", "torch"),
        ({"device": "tpu"}, "unknown-choice", "--device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_refused_before_a_file_is_read(
    options: dict[str, Any], code: str, where: str, llama: Path, tmp_path: Path
) -> None:
    import torch

    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    given = {**OPTIONS, "llm": None if "encoder" in options or "prompt_order" in options else str(llama)}
    if options.get("prompt_order") == "backwards":
        given["llm"] = str(llama)
    with pytest.raises(InputError) as caught:
        ingest_cells(tmp_path / "store", [tmp_path / "missing.h5ad"], name="x", **{**given, **options})
    assert caught.value.exit_code == 2 and caught.value.fix
    assert caught.value.code == code and where in caught.value.where


def test_folders_that_hold_no_causal_model_are_refused(tmp_path: Path, llama: Path) -> None:
    from scvec.backbones.hf import load_language_model

    with pytest.raises(InputError, match="no config"):
        load_language_model(str(tmp_path))
    bert = Path(shutil.copytree(llama, tmp_path / "bert"))
    from transformers import BertConfig

    BertConfig(hidden_size=24, num_attention_heads=2).save_pretrained(bert)
    with pytest.raises(InputError, match=r"not a causal language model"):
        load_language_model(str(bert))
    pickled = Path(shutil.copytree(llama, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_language_model(str(pickled))
    fake = tmp_path / "model.gguf"
    fake.write_bytes(b"PK no model")
    with pytest.raises(InputError, match="not a GGUF file"):
        load_language_model(str(fake))
    fake.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InputError, match="cannot be unpacked"):
        load_language_model(str(fake))
