"""Tests of the prompt encoder with a small random LLaMA: input sequence, batches, and state."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from prompt_parts import CELLS, TINY, company, cosines, make
from tiny_llama import N_GENES, WIDTH, save_llama

from scvec.backbones.hf import CausalModel
from scvec.base.errors import InputError, StoreError
from scvec.base.types import CellChunk
from scvec.encoders.prompt import ORDERS, PromptEncoder


@pytest.mark.parametrize("order", ORDERS)
def test_a_cell_has_the_same_vector_alone_and_among_others(
    trained: dict[str, PromptEncoder], order: str
) -> None:
    whole = trained[order].encode(CELLS.chunk)
    assert whole.shape == (40, trained[order].embed_dim) and whole.dtype == np.float32
    assert np.isfinite(whole).all() and len(np.unique(whole[:, 0])) > 30
    for vectors in company(trained[order]):
        assert cosines(vectors, whole).min() > 1 - 1e-6


@pytest.mark.parametrize("order", ["paper", "code"])
def test_a_cell_has_the_same_vector_in_bf16(
    models: dict[str, CausalModel], trained: dict[str, PromptEncoder], order: str
) -> None:
    # bf16 has larger errors with the large weights of a random model than with those of a trained one.
    tensors, meta = trained[order].state()
    encoder = PromptEncoder.from_state(tensors, meta, models["bf16"])
    whole = encoder.encode(CELLS.chunk)
    for vectors in company(encoder):
        assert cosines(vectors, whole).min() >= 0.999


@pytest.mark.parametrize("order", ["paper", "code"])
def test_the_vector_is_that_of_the_plain_sequence(
    models: dict[str, CausalModel], trained: dict[str, PromptEncoder], order: str
) -> None:
    """Oracle for one cell: the plain sequence without padding, mask or shared prefix, default positions."""
    import torch
    from torch.nn import functional as F

    encoder, model = trained[order], models["fp32"]
    network = encoder._network
    assert network is not None
    vectors = encoder.encode(CELLS.chunk)
    words = model.embed(model.tokens(TINY.instruction))
    for i, x in enumerate(CELLS.chunk.X.toarray()[:12]):
        genes = sorted((j for j in range(N_GENES) if x[j] > 0), key=lambda j: (-x[j], j))[: TINY.n_genes]
        with torch.no_grad():
            told = network.project(network.text[genes])
            value = torch.tensor(x[genes])[:, None] / 5
            if order == "paper":
                slots = network.norm(told + network.value(value))
                sequence = torch.cat([words, slots, network.class_token[None]])
            else:
                sequence = torch.cat([words[:1], network.norm(told) * value, words[1:]])
            last = model.module(inputs_embeds=sequence[None], use_cache=False).last_hidden_state[0, -1]
        np.testing.assert_allclose(F.layer_norm(last, (WIDTH,)).numpy(), vectors[i], atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_other_models_read_cells_too(kind: str, folder: Path, tmp_path: Path) -> None:
    """A model with learned positions, in which every second layer has a window shorter than the prompt."""
    import transformers as t

    size = {"vocab_size": 32, "initializer_range": 0.3}
    if kind == "gpt2":
        model: Any = t.GPT2LMHeadModel(t.GPT2Config(**size, n_embd=64, n_layer=2, n_head=4, n_positions=256))
    else:
        wide = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        narrow = {"head_dim": 16, "intermediate_size": 96, "sliding_window": 16}
        model = t.Gemma2ForCausalLM(t.Gemma2Config(**size, **wide, **narrow, max_position_embeddings=256))
    copy = Path(shutil.copytree(folder, tmp_path / kind))
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy)
    encoder = make(CausalModel(copy, kind, precision="fp32"), epochs=0)
    encoder.fit([CELLS.chunk], CELLS.labels)
    whole = encoder.encode(CELLS.chunk)
    assert np.std(whole, axis=0).mean() > 0.05
    assert encoder._ready is not None and (encoder._ready[1] is None) == (kind == "gemma2")
    # A window includes padding. The amount of padding depends on the cell alone.
    for vectors in company(encoder, further=kind != "gemma2"):
        assert cosines(vectors, whole).min() > 1 - 1e-6


def test_the_order_and_the_values_of_genes_matter(trained: dict[str, PromptEncoder]) -> None:
    X = np.zeros((3, N_GENES), np.float32)
    X[0, :3], X[1, :3], X[2, :3] = (3, 2, 1), (1, 2, 3), (8, 2, 1)
    for order in ("paper", "code"):
        vectors = trained[order].encode(CellChunk(sp.csr_matrix(X), np.ones(N_GENES, bool)))
        order_, value = 1 - cosines(vectors[:1], vectors[1:])
        # Rounding is a hundred times smaller. LLaMA normalises its input, so factors on the slots have little
        # effect: in the order ``code``, values give hardly more than the rank.
        assert order_ > 1e-4 and value > (1e-4 if order == "paper" else 0.0)


def test_the_state_gives_identical_vectors(
    models: dict[str, CausalModel], trained: dict[str, PromptEncoder]
) -> None:
    for order, encoder in trained.items():
        tensors, meta = encoder.state()
        again = PromptEncoder.from_state(
            {k: np.array(v) for k, v in tensors.items()},
            json.loads(json.dumps(meta)),
            None if order == "none" else models["fp32"],
        )
        np.testing.assert_array_equal(again.encode(CELLS.chunk), encoder.encode(CELLS.chunk))
        assert not any("language" in name or "layers" in name for name in tensors)
        short = {**tensors, "network.head.weight": tensors["network.head.weight"][:, :-1]}
        with pytest.raises(ValueError, match="head"):
            PromptEncoder.from_state(short, meta, None if order == "none" else models["fp32"])


def test_another_language_model_is_refused(trained: dict[str, PromptEncoder], tmp_path: Path) -> None:
    tensors, meta = trained["paper"].state()
    for name, options, numbers in (("weights", {"seed": 1}, []), ("width", {"width": 32}, ["32", "64"])):
        other = CausalModel(save_llama(tmp_path / name, **options), "other", precision="fp32")
        with pytest.raises(StoreError) as caught:
            PromptEncoder.from_state(tensors, meta, other)
        assert caught.value.code == "model-changed" and "--llm" in caught.value.fix
        assert re.findall(r"\d+", caught.value.what) == numbers


def test_a_prompt_longer_than_the_model_can_read_is_refused(tmp_path: Path) -> None:
    model = CausalModel(save_llama(tmp_path / "short", positions=80), "short", precision="fp32")
    with pytest.raises(InputError) as caught:
        make(model, n_genes=64)
    assert caught.value.code == "option-out-of-range"
    left = int(caught.value.fix.split()[2])
    make(model, n_genes=left)
    with pytest.raises(InputError):
        make(model, n_genes=left + 1)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"order": "paperback"}, "--prompt-order"),
        ({"n_genes": 0}, "--n-genes"),
        ({"epochs": -1}, "--epochs"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], option: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(TINY, **options)
    assert caught.value.where == option and caught.value.fix
