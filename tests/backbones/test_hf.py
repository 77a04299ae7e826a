"""Transformers models with random weights, made here: encoders and decoders, in batches and alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scvec.backbones import load_backbone, parse_spec
from scvec.backbones.hf import PROMPT_EOL, HfBackbone
from scvec.base.errors import InputError, ResourceError
from scvec.base.types import Backbone

WORDS = (
    'insulin glucagon gene human mouse takes part in glucose homeostasis protein coding a the . ( ) " : '
    "This sentence means one word"
).split()
TEXTS = [
    "insulin ( human gene )",
    "glucagon",
    "a protein coding mouse gene . takes part in glucose homeostasis",
    "insulin",
    "the the the",
    "",
    "unheard words",
    "glucose " * 40,
]
MAX = 32
KINDS = ["llama", "gpt2", "bert", "roberta", "t5"]


def tokenizer(*, bos: bool, eos: bool, pad: bool, side: str = "right", limit: int | None = None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # The padding token is not 0, so a mask cannot be guessed from zeros.
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "<pad>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    form = ["<s>"] * bos + ["$A"] + ["</s>"] * eos
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(form), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | (
        {"pad_token": "<pad>"} if pad else {}
    )
    limits = {"model_max_length": limit} if limit else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side=side, **names, **limits)


def make(kind: str, folder: Path) -> Path:
    import torch
    import transformers as t

    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS) + 4, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}
    wide = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    # With weights of usual size, two layers are near the identity, and masks hardly matter.
    loud = {"initializer_range": 0.5}
    if kind == "llama":  # a causal checkpoint without a padding token, padded on the left by its tokenizer
        size["pad_token_id"] = None  # type: ignore[assignment]
        config = t.LlamaConfig(**size, **wide, **loud, max_position_embeddings=64)
        model, words = t.LlamaForCausalLM(config), tokenizer(bos=True, eos=False, pad=False, side="left")
    elif kind == "gpt2":
        config = t.GPT2Config(**size, **loud, n_embd=24, n_layer=2, n_head=2, n_positions=64)
        model, words = t.GPT2LMHeadModel(config), tokenizer(bos=False, eos=False, pad=False)
    elif kind == "bert":
        config = t.BertConfig(**size, **wide, **loud, max_position_embeddings=64)
        model, words = t.BertForMaskedLM(config), tokenizer(bos=True, eos=True, pad=True, side="left")
    elif kind == "roberta":  # 32 positions, after four for the padding token
        config = t.RobertaConfig(**size, **wide, **loud, max_position_embeddings=36)
        model, words = t.RobertaModel(config), tokenizer(bos=True, eos=True, pad=True)
    else:
        config = t.T5Config(
            **size, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=3.0
        )
        model, words = t.T5Model(config), tokenizer(bos=False, eos=True, pad=True)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {kind: make(kind, home / f"tiny-{kind}") for kind in KINDS}


@pytest.fixture
def copy(models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models["llama"], tmp_path / "tiny-llama"))


def load(folder: Path, pooling: str | None = None, **options: Any) -> HfBackbone:
    spec = f"hf:{folder},max_tokens={MAX}" + (f",pooling={pooling}" if pooling else "")
    made = load_backbone(parse_spec(spec), device="cpu")
    assert isinstance(made, HfBackbone)
    for name, value in options.items():
        setattr(made, name, value)
    return made


def cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


CASES = [(kind, pooling) for kind in KINDS for pooling in ("mean", "last", "eol")
         if pooling != "eol" or kind in ("llama", "gpt2")]  # fmt: skip


def expected(folder: Path, text: str, pooling: str) -> Any:
    """Return the vector from the library: one text, no padding, no truncation."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, words = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    ids = words(PROMPT_EOL.format(text) if pooling == "eol" else text)["input_ids"]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return (states.mean(dim=0) if pooling == "mean" else states[-1]).numpy()


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_vectors_are_those_of_the_library_for_each_text_alone(
    models: dict[str, Path], kind: str, pooling: str
) -> None:
    folder = models[kind]
    whole = [t for t in TEXTS if t and len(t) < 100]
    got = load(folder, pooling).encode(whole)
    assert got.shape == (len(whole), 24) and got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    assert cosine(got, np.array([expected(folder, t, pooling) for t in whole])).min() > 0.99999


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_vectors_do_not_depend_on_order_and_batch(models: dict[str, Path], kind: str, pooling: str) -> None:
    backbone = load(models[kind], pooling)
    whole = backbone.encode(TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert cosine(backbone.encode([TEXTS[i] for i in order]), whole[order]).min() > 0.9999
    alone = np.concatenate([backbone.encode([text]) for text in TEXTS])
    assert cosine(alone, whole).min() > 0.9999
    backbone.batch_size = 3
    assert cosine(backbone.encode(TEXTS), whole).min() > 0.9999
    # The texts have different vectors; otherwise the test would prove nothing.
    assert np.triu(whole[:5] @ whole[:5].T, 1).max() < 0.999
    assert backbone.encode([]).shape == (0, 24)


def test_the_default_pooling_depends_on_the_kind_of_model(models: dict[str, Path]) -> None:
    found = {kind: load(folder).space.pooling for kind, folder in models.items()}
    eol, mean = f"eol, {MAX} tokens", f"mean, {MAX} tokens"
    assert found == {"llama": eol, "gpt2": eol, "bert": mean, "roberta": mean, "t5": mean}


def test_the_space_is_known_without_loading_the_model(models: dict[str, Path], copy: Path) -> None:
    backbone = load(models["llama"])
    space = backbone.space
    assert "_model" not in vars(backbone) and isinstance(backbone, Backbone)
    weights = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    assert space.weights_sha256 == weights and weights.startswith(space.revision)
    assert (space.backbone, space.template, space.dim, space.normalized) == (
        "hf:tiny-llama", "default", 24, True,
    )  # fmt: skip
    assert load(copy).space == space
    assert load(copy, "mean").space.fingerprint != space.fingerprint


# length


def test_the_length_is_the_requested_one_up_to_the_models_limit(models: dict[str, Path], copy: Path) -> None:
    def length(folder: Path, options: str = "") -> int:
        made = load_backbone(parse_spec(f"hf:{folder}{options}"))
        return int(made.space.pooling.split()[1])

    assert length(models["bert"]) == 64 and length(models["bert"], ",max_tokens=20") == 20
    assert length(models["roberta"]) == 32  # its position ids start after the id of the padding token
    assert length(models["t5"]) == 512
    tokenizer(bos=True, eos=False, pad=False, limit=40).save_pretrained(copy)
    assert length(copy) == 40 and length(copy, ",max_tokens=500") == 40
    with pytest.raises(InputError, check=lambda e: e.code == "option-out-of-range") as caught:
        length(copy, ",max_tokens=12")
    assert "max_tokens=" in caught.value.fix


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_long_texts_are_cut_and_counted(models: dict[str, Path], kind: str, pooling: str) -> None:
    backbone = load(models[kind], pooling)
    long = "insulin " + "glucose " * 100
    backbone.encode([long, "insulin", "glucose " * 300])
    assert backbone.notes == [f"2 texts were longer than {MAX} tokens and were cut"]
    ids = backbone._ids(long)
    assert MAX - 3 <= len(ids) <= MAX
    if pooling == "eol":
        # The text is cut, not the prompt behind it.
        assert ids[-5:] == backbone._ids("insulin")[-5:]


def test_a_text_of_exactly_the_length_is_not_cut(models: dict[str, Path]) -> None:
    backbone = load(models["bert"], "mean")
    backbone.encode(["glucose " * (MAX - 2)])
    assert backbone.notes == []
    backbone.encode(["glucose " * (MAX - 1)])
    assert len(backbone.notes) == 1


def test_special_tokens_in_a_text_are_only_text(models: dict[str, Path]) -> None:
    backbone = load(models["llama"], "last")
    ids = backbone._ids("insulin </s> <pad>")
    assert len(ids) > 4 and not {2, 3} & set(ids[1:])


def test_an_end_token_that_the_tokenizer_adds_is_not_read(copy: Path) -> None:
    without = load(copy, "eol").encode(TEXTS)
    tokenizer(bos=True, eos=True, pad=False).save_pretrained(copy)
    np.testing.assert_allclose(load(copy, "eol").encode(TEXTS), without, atol=1e-6)


# memory


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_batches_are_halved_if_memory_runs_out(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    backbone = load(models["bert"])
    whole = backbone.encode(TEXTS)
    sizes: list[int] = []
    real = backbone._forward

    def small(ids: list[list[int]]) -> Any:
        sizes.append(len(ids))
        if len(ids) > 2:
            raise error
        return real(ids)

    monkeypatch.setattr(backbone, "_forward", small)
    np.testing.assert_allclose(backbone.encode(TEXTS), whole, atol=1e-5)
    assert sizes == [8, 4, 2, 2, 2, 2]
    monkeypatch.setattr(backbone, "_forward", lambda ids: (_ for _ in ()).throw(error))
    with pytest.raises(ResourceError):
        backbone.encode(TEXTS)


def test_other_errors_are_not_taken_for_memory(models: dict[str, Path], monkeypatch: Any) -> None:
    backbone = load(models["bert"])
    bug = RuntimeError("shapes cannot be multiplied")
    monkeypatch.setattr(backbone, "_forward", lambda ids: (_ for _ in ()).throw(bug))
    with pytest.raises(RuntimeError, match="shapes"):
        backbone.encode(TEXTS)


# refused models


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for use in (lambda: load(copy).space, lambda: load(copy).encode(["insulin"])):
        with pytest.raises(InputError, match="pickled weights are not loaded") as caught:
            use()
        assert "save_pretrained" in caught.value.fix


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer") as caught:
        load(copy)
    assert "tokenizer.save_pretrained" in caught.value.fix


def test_weights_of_another_model_are_refused(models: dict[str, Path], copy: Path) -> None:
    # The library itself would use random weights instead.
    shutil.copy(models["bert"] / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(InputError, match="the weights lack"):
        load(copy).encode(["insulin"])


def test_a_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer.json").read_text())
    settings["model"]["vocab"]["insulin"] = 5000
    (copy / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="the tokenizer has tokens"):
        load(copy).encode(["insulin"])


def test_encoders_refuse_pooling_eol(models: dict[str, Path]) -> None:
    for kind in ("bert", "t5"):
        with pytest.raises(InputError, match="pooling=eol"):
            load(models[kind], "eol")


def test_code_in_a_model_folder_is_not_run(copy: Path, tmp_path: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config cannot be used"):
        load(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("config.json", '{"model_type": "vit"}'),
        ("config.json", "{}"),
        ("model.safetensors", "short"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
    ],
)
def test_damaged_folders_get_a_message(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(InputError) as caught:
        load(copy).encode(["insulin"])
    assert len(caught.value.lines()) <= 3


def test_vectors_that_are_not_finite_are_refused(models: dict[str, Path], monkeypatch: Any) -> None:
    backbone = load(models["bert"])
    monkeypatch.setattr(backbone, "_forward", lambda ids: np.full((len(ids), 24), np.nan, np.float32))
    with pytest.raises(InputError, match="not finite"):
        backbone.encode(TEXTS)


def test_a_model_with_its_own_pooling_is_noted(copy: Path) -> None:
    (copy / "modules.json").write_text("[]")
    assert any("st:" in note for note in load(copy, "mean").notes) and load(copy, "eol").notes == []
