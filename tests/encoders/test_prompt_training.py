"""Tests of the training of the prompt encoder: parameters, early stopping and lack of memory."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from prompt_parts import CELLS, cosines, make
from tiny_llama import WIDTH, planted

from scvec.backbones.hf import CausalModel
from scvec.base.errors import ResourceError
from scvec.encoders.prompt import PromptEncoder

pytestmark = pytest.mark.prompt


def test_without_a_language_model_the_order_does_not_matter(models: dict[str, CausalModel]) -> None:
    encoder, data = make(models["fp32"], order="none", epochs=12, epoch_cells=96, lr=5e-3), planted()
    seen: list[str] = []
    encoder.fit([data.chunk], data.labels, progress=lambda stage, done, total, detail="": seen.append(detail))
    assert encoder.history[-1]["macro_f1"] > 0.8 > encoder.history[0]["macro_f1"]
    assert encoder.history[-1]["loss"] < 0.7 * encoder.history[0]["loss"]
    assert "held-out macro-F1" in seen[-1] and seen[-1].startswith("loss ")
    W, b = encoder.W, encoder.b
    assert W is not None and b is not None and W.shape == (3, encoder.embed_dim)


def test_training_moves_all_that_is_trained_and_nothing_of_the_model(models: dict[str, CausalModel]) -> None:
    model, data = models["fp32"], planted()
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    encoder = make(model, epochs=1)
    encoder.fit([data.chunk], data.labels)
    start = encoder._new_network(3, 0)
    assert encoder._network is not None
    parameters = zip(encoder._network.named_parameters(), start.parameters(), strict=True)
    for (name, new), old in parameters:
        assert not np.array_equal(new.detach().numpy(), old.detach().numpy()), name
    for name, p in model.module.named_parameters():
        assert np.array_equal(p.numpy(), before[name].numpy()) and not p.requires_grad


def test_no_epochs_leave_the_head_to_others(models: dict[str, CausalModel]) -> None:
    encoder, data = make(models["fp32"], epochs=0), planted(30)
    encoder.fit([data.chunk], data.labels)
    assert encoder.W is None and encoder.b is None and encoder.encode(data.chunk).shape == (30, WIDTH)


def test_one_seed_gives_one_encoder(models: dict[str, CausalModel]) -> None:
    data, made = planted(), []
    for seed in (3, 3, 4):
        encoder = make(models["fp32"], order="none")
        encoder.fit([data.chunk], data.labels, seed=seed)
        made.append(encoder.encode(data.chunk))
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.allclose(made[0], made[2], atol=1e-3)


def test_held_out_batches_decide_when_to_stop() -> None:
    from scvec.encoders.prompt import held_out_rows

    labels = np.arange(120) % 3
    batches = np.repeat(["a", "b", "c", "d"], [50, 40, 20, 10])
    held, how = held_out_rows(labels, batches, most=99, seed=0)
    assert how == "batch" and held.tolist() == list(range(90, 110))
    for few in (None, np.repeat(["a", "b"], [100, 20])):
        held, how = held_out_rows(labels, few, most=99, seed=0)
        assert how == "cells" and np.bincount(labels[held]).tolist() == [4, 4, 4]
    # The last class is in the held-out batch alone: it tells nothing.
    labels[90:95] = 3
    held, how = held_out_rows(labels, batches, most=99, seed=0)
    assert how == "batch" and held.tolist() == list(range(95, 110))
    assert len(held_out_rows(labels, batches, most=7, seed=0)[0]) == 7


class Small:
    """A model that runs out of memory for more than ``most`` cells, except in its first call."""

    def __init__(self, run: Any, most: int) -> None:
        self.run, self.most, self.sizes = run, most, []  # type: ignore[var-annotated]

    def __call__(self, vectors: Any, *args: Any, **options: Any) -> Any:
        self.sizes.append(len(vectors))
        if len(vectors) > self.most and (self.most == 0 or len(self.sizes) > 1):  # in the middle of a step
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return self.run(vectors, *args, **options)


def test_memory_that_runs_out_halves_the_batch(models: dict[str, CausalModel], monkeypatch: Any) -> None:
    data, wanted = planted(), []
    for most in (99, 2):
        model = models["fp32"]
        small = Small(CausalModel.run.__get__(model), most)
        monkeypatch.setattr(model, "run", small)
        encoder = make(model, epochs=1, micro_batch=8)
        encoder.fit([data.chunk], data.labels)
        assert encoder.micro_batch == min(8, most)
        encoder.micro_batch = 8
        wanted.append(encoder.encode(data.chunk))
        assert encoder.micro_batch == min(8, most) and max(small.sizes) == 8
    assert [int(n) for note in encoder.notes for n in re.findall(r"\d+", note)] == [4, 2]
    # The steps keep their size, so the weights are equal within rounding.
    assert cosines(*wanted).min() > 0.9999
    monkeypatch.setattr(model, "run", Small(None, 0))
    with pytest.raises(ResourceError) as caught:
        encoder.fit([data.chunk], data.labels)
    assert caught.value.code == "out-of-memory"
    encoder = make(model, epochs=0)
    encoder.fit([data.chunk], data.labels)
    with pytest.raises(ResourceError) as caught:
        encoder.encode(data.chunk)
    assert caught.value.code == "out-of-memory"


def test_in_bf16_the_trained_encoder_is_the_one_that_is_loaded_again(models: dict[str, CausalModel]) -> None:
    # Mixed precision is for training only. The trained and the loaded encoder give the same vectors.
    encoder, data = make(models["bf16"]), planted()
    encoder.fit([data.chunk], data.labels)
    again = PromptEncoder.from_state(*encoder.state(), models["bf16"])
    np.testing.assert_array_equal(again.encode(CELLS.chunk), encoder.encode(CELLS.chunk))
