"""The prompt encoder around a small random LLaMA: what it reads, in any company, and how it trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from tiny_llama import N_GENES, WIDTH, planted, save_llama

from scvec.backbones.causal import CausalModel
from scvec.encoders.prompt import PromptEncoder
from scvec.encoders.prompt_options import ORDERS, PromptOptions
from scvec.errors import InputError, ResourceError, StoreError
from scvec.types import CellChunk

pytest.importorskip("accelerate", reason="needs the extra llm")

TINY = PromptOptions(n_genes=24, warm_steps=3, epochs=2, epoch_cells=48, batch_size=12, micro_batch=5)
#: Cells with 1 to 24 genes to read, and one without any.
CELLS = planted(40, seed=7, sparse=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, CausalModel]:
    return {p: CausalModel(folder, "tiny", precision=p) for p in ("fp32", "bf16")}


@pytest.fixture(scope="module")
def trained(models: dict[str, CausalModel]) -> dict[str, PromptEncoder]:
    made = {}
    for order in ORDERS:
        encoder = make(models["fp32"], order=order)
        data = planted()
        encoder.fit([data.chunk], data.labels)
        made[order] = encoder
    return made


def make(model: CausalModel, **options: Any) -> PromptEncoder:
    chosen = replace(TINY, **options)
    return PromptEncoder(planted().text, chosen, None if chosen.order == "none" else model)


def rows(numbers: Any) -> CellChunk:
    return CELLS.chunk.take(np.asarray(numbers))


def cosines(a: Any, b: Any) -> Any:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def padded_further(encoder: PromptEncoder) -> Any:
    """Vectors of all cells, each with more padding than it ever gets: the mask alone makes up for it."""
    import torch

    from scvec.encoders.prompt_network import Batch
    from scvec.encoders.slots import ranked

    network = encoder._network
    assert network is not None and encoder._ready is not None
    slots = ranked(CELLS.chunk.X, encoder.options.n_genes)
    with torch.inference_mode():
        batch = Batch.of(slots.take(np.arange(40), encoder.options.n_genes + 5), "cpu")
        return network(batch, *encoder._ready).numpy()


def company(encoder: PromptEncoder, *, further: bool = True) -> Iterator[Any]:
    """Vectors of all cells: alone, in odd batches, turned round, padded further, and without the prefix."""
    yield np.concatenate([encoder.encode(rows([i])) for i in range(40)])
    yield np.concatenate([encoder.encode(rows(part)) for part in np.array_split(np.arange(40), 7)])
    yield encoder.encode(rows(np.arange(40)[::-1]))[::-1]
    encoder.micro_batch = 40
    yield encoder.encode(rows(np.arange(40)))
    if further:
        yield padded_further(encoder)
    encoder.use_prefix, encoder._ready, encoder.micro_batch = False, None, 5
    yield encoder.encode(rows(np.arange(40)))
    encoder.use_prefix, encoder._ready = True, None


@pytest.mark.parametrize("order", ORDERS)
def test_a_cell_has_one_vector_in_any_company(trained: dict[str, PromptEncoder], order: str) -> None:
    whole = trained[order].encode(CELLS.chunk)
    assert whole.shape == (40, trained[order].embed_dim) and whole.dtype == np.float32
    assert np.isfinite(whole).all() and len(np.unique(whole[:, 0])) > 30
    for vectors in company(trained[order]):
        assert cosines(vectors, whole).min() > 1 - 1e-6


@pytest.mark.parametrize("order", ["paper", "code"])
def test_so_it_has_in_bf16(
    models: dict[str, CausalModel], trained: dict[str, PromptEncoder], order: str
) -> None:
    # A random model of large weights is harsher on bf16 than a trained one.
    tensors, meta = trained[order].state()
    encoder = PromptEncoder.from_state(tensors, meta, models["bf16"])
    whole = encoder.encode(CELLS.chunk)
    for vectors in company(encoder):
        assert cosines(vectors, whole).min() >= 0.999


@pytest.mark.parametrize("order", ["paper", "code"])
def test_the_vector_is_that_of_the_plain_sequence(
    models: dict[str, CausalModel], trained: dict[str, PromptEncoder], order: str
) -> None:
    """The sequence written out for one cell: no padding, no mask, no shared prefix, positions by default."""
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
    """Learned positions, and layers of which each other one sees a window shorter than the prompt."""
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
    # A window counts the padding within it. How much a cell has depends on that cell alone.
    for vectors in company(encoder, further=kind != "gemma2"):
        assert cosines(vectors, whole).min() > 1 - 1e-6


def test_the_order_and_the_values_of_genes_matter(trained: dict[str, PromptEncoder]) -> None:
    X = np.zeros((3, N_GENES), np.float32)
    X[0, :3], X[1, :3], X[2, :3] = (3, 2, 1), (1, 2, 3), (8, 2, 1)
    for order in ("paper", "code"):
        vectors = trained[order].encode(CellChunk(sp.csr_matrix(X), np.ones(N_GENES, bool)))
        order_, value = 1 - cosines(vectors[:1], vectors[1:])
        # Rounding is a hundred times smaller. A model that normalises what it reads, as LLaMA does, hardly
        # hears a factor on it: in the order of the code, values tell next to nothing but the rank.
        assert order_ > 1e-4 and value > (1e-4 if order == "paper" else 0.0)


def test_without_a_language_model_order_is_nothing_and_training_works(models: dict[str, CausalModel]) -> None:
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


def test_whole_batches_tell_when_to_stop() -> None:
    from scvec.encoders.prompt_training import held_out_rows

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


TRAINED = """
import json, os, signal, sys
import numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_prompt import CausalModel, make, planted
folder, checkpoint, killed_at, out = sys.argv[2:]
encoder = make(CausalModel(Path(folder), "tiny", precision="fp32"), epochs=3)
encoder.checkpoint = Path(checkpoint) if checkpoint else None
data, steps = planted(), []

def progress(stage, done, total, detail=""):
    steps.append((stage.split()[0], done))
    if done == int(killed_at):
        os.kill(os.getpid(), signal.SIGKILL)

encoder.fit([data.chunk], data.labels, progress=progress)
np.savez(out, **encoder.state()[0])
print(json.dumps([steps, encoder.history, encoder.best_epoch, encoder.notes]))
"""


def test_a_killed_training_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    """Each in a process of its own: what other tests loaded and set may change the last bits of sums."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1]), str(here.parent), str(here)])
    kept = tmp_path / "checkpoints"
    kept.mkdir()

    def train(name: str, checkpoint: str, killed_at: int) -> subprocess.CompletedProcess[str]:
        words = [str(here), str(folder), checkpoint, str(killed_at), str(tmp_path / f"{name}.npz")]
        command, env = [sys.executable, "-c", TRAINED, *words], {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)

    done = train("killed", str(kept), 9)  # in the third epoch of four steps
    assert done.returncode == -9, done.stderr
    (left,) = kept.iterdir()
    assert left.suffix == ".safetensors"
    runs = [train("whole", "", -1), train("resumed", str(kept), -1)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    (all_steps, *whole), (rest, *resumed) = (json.loads(run.stdout) for run in runs)
    assert all_steps == [["warming", 3], *(["training", i] for i in range(1, 13))]
    assert rest == [["training", i] for i in range(9, 13)]
    assert "went on after epoch 2" in resumed[-1][-1] and whole[-1] == []
    assert resumed[:2] == whole[:2]
    with np.load(tmp_path / "whole.npz") as wanted, np.load(tmp_path / "resumed.npz") as found:
        assert set(wanted) == set(found) and len(wanted)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_an_interrupted_training_says_what_is_kept(models: dict[str, CausalModel], tmp_path: Path) -> None:
    encoder, data = make(models["fp32"], order="none"), planted()

    def stop(at: int) -> Any:
        def progress(stage: str, done: int, total: int | None, detail: str = "") -> None:
            if done == at:
                raise KeyboardInterrupt

        return progress

    encoder.checkpoint = tmp_path
    for step, said in ((2, ""), (6, "the training is kept up to epoch 1")):
        with pytest.raises(KeyboardInterrupt) as caught:
            encoder.fit([data.chunk], data.labels, progress=stop(step))
        assert str(caught.value) == said


def test_a_checkpoint_of_another_training_is_refused(models: dict[str, CausalModel], tmp_path: Path) -> None:
    data = planted()
    encoder = make(models["fp32"], order="none", epochs=1)
    encoder.checkpoint = tmp_path / "mine.safetensors"
    encoder.fit([data.chunk], data.labels)
    for changed in (planted(seed=1), replace(data, labels=data.labels[::-1].copy())):
        with pytest.raises(StoreError, match="of another training"):
            encoder.fit([changed.chunk], changed.labels)
    encoder.gene_vectors = encoder.gene_vectors * np.float32(1.1)
    with pytest.raises(StoreError, match="of another training"):
        encoder.fit([data.chunk], data.labels)
    encoder.checkpoint.write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="cannot be read"):
        encoder.fit([data.chunk], data.labels)
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2)}, encoder.checkpoint)
    with pytest.raises(StoreError, match="no checkpoint of the prompt encoder"):
        encoder.fit([data.chunk], data.labels)


class Small:
    """Memory for so many cells at once, and no more after the first call."""

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
    assert encoder.notes == [
        f"out of memory: went on with {n} cells at once, steps as large as before" for n in (4, 2)
    ]
    # The steps are as large as they were: the weights are the same within rounding.
    assert cosines(*wanted).min() > 0.9999
    monkeypatch.setattr(model, "run", Small(None, 0))
    with pytest.raises(ResourceError, match="a single cell"):
        encoder.fit([data.chunk], data.labels)
    encoder = make(model, epochs=0)
    encoder.fit([data.chunk], data.labels)
    with pytest.raises(ResourceError, match="encoding a cell"):
        encoder.encode(data.chunk)


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


def test_in_bf16_the_trained_encoder_is_the_one_that_is_loaded_again(models: dict[str, CausalModel]) -> None:
    # Mixed precision is of the training: what is trained encodes as what is stored does.
    encoder, data = make(models["bf16"]), planted()
    encoder.fit([data.chunk], data.labels)
    again = PromptEncoder.from_state(*encoder.state(), models["bf16"])
    np.testing.assert_array_equal(again.encode(CELLS.chunk), encoder.encode(CELLS.chunk))


def test_another_language_model_is_refused(trained: dict[str, PromptEncoder], tmp_path: Path) -> None:
    tensors, meta = trained["paper"].state()
    for options, said in (
        ({"seed": 1}, "its weights differ"),
        ({"width": 32}, "32 dimensions instead of 64"),
    ):
        other = CausalModel(save_llama(tmp_path / said[:2], **options), "other", precision="fp32")
        with pytest.raises(StoreError, match=said) as caught:
            PromptEncoder.from_state(tensors, meta, other)
        assert "--llm" in caught.value.fix


def test_a_prompt_longer_than_the_model_can_read_is_refused(tmp_path: Path) -> None:
    model = CausalModel(save_llama(tmp_path / "short", positions=80), "short", precision="fp32")
    with pytest.raises(InputError, match="more than the model can read") as caught:
        make(model, n_genes=64)
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
        ({"lora": 2, "order": "none"}, "--lora"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], option: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(TINY, **options)
    assert caught.value.where == option and caught.value.fix


def test_adapters_are_trained_beside_a_model_that_stays(models: dict[str, CausalModel]) -> None:
    pytest.importorskip("peft")
    model, data = models["fp32"], planted()
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    encoder = make(model, lora=2, epochs=1)
    encoder.fit([data.chunk], data.labels)
    tensors, meta = encoder.state()
    adapters = {name: value for name, value in tensors.items() if "lora_B" in name}
    assert adapters and all(np.abs(value).max() > 0 for value in adapters.values())  # they start at zero
    again = PromptEncoder.from_state(tensors, meta, model)
    np.testing.assert_array_equal(again.encode(CELLS.chunk), encoder.encode(CELLS.chunk))
    for vectors in company(encoder):
        assert cosines(vectors, encoder.encode(CELLS.chunk)).min() > 1 - 1e-6
    assert {name for name, _ in model.module.named_parameters()} == set(before)
    for name, p in model.module.named_parameters():
        assert np.array_equal(p.numpy(), before[name].numpy())
