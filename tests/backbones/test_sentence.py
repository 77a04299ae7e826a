"""Models in folders: a tiny BERT with random weights, made here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scvec.backbones import load_backbone, parse_spec
from scvec.backbones import sentence_transformer as sentence
from scvec.backbones.sentence_transformer import SentenceBackbone
from scvec.backbones.weights import weights_sha256
from scvec.base.errors import InputError, ResourceError
from scvec.base.types import Backbone

WORDS = (
    "insulin glucagon gene human mouse takes part in glucose homeostasis protein coding a the . ( )".split()
)
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
#: bf16, used on some CPUs, rounds differently in batches of another shape.
SAME = 0.9999 if sentence._has_amx() else 0.99999


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    kinds = {"0": ("", "Transformer"), "1": ("1_Pooling", "Pooling"), "2": ("2_Normalize", "Normalize")}
    modules = [
        {"idx": int(i), "name": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in kinds.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 24, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}'
    )
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "tiny-bert"))


@pytest.fixture(scope="module")
def backbone(tiny: Path) -> SentenceBackbone:
    loaded = load_backbone(parse_spec(f"st:{tiny}"))
    assert isinstance(loaded, SentenceBackbone)
    return loaded


def cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_vectors_are_the_normalised_mean_of_the_token_vectors(tiny: Path, backbone: SentenceBackbone) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    model.eval()
    expected = []
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            expected.append(model(**tokens).last_hidden_state[0].mean(dim=0).numpy())
    got = backbone.encode(TEXTS)
    assert got.shape == (len(TEXTS), 24) and got.dtype == np.float32
    assert cosine(got, np.array(expected)).min() > (0.999 if sentence._has_amx() else SAME)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)


def test_vectors_do_not_depend_on_order_and_batch(backbone: SentenceBackbone) -> None:
    whole = backbone.encode(TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert cosine(backbone.encode([TEXTS[i] for i in order]), whole[order]).min() > SAME
    alone = np.concatenate([backbone.encode([text]) for text in TEXTS])
    assert cosine(alone, whole).min() > SAME
    assert backbone.encode([]).shape == (0, 24)


def test_the_space_is_known_without_loading_the_model(tiny: Path, backbone: SentenceBackbone) -> None:
    fresh = SentenceBackbone(tiny, "st:tiny-bert", "default")
    space = fresh.space
    assert "_model" not in vars(fresh) and isinstance(fresh, Backbone)
    weights = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    assert space.weights_sha256 == weights and weights.startswith(space.revision)
    assert (space.backbone, space.template, space.dim) == ("st:tiny-bert", "default", 24)
    assert (space.pooling, space.normalized) == ("mean, 32 tokens", True)
    assert space == backbone.space


def test_the_path_of_a_folder_is_not_part_of_its_space(
    tiny: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = load_backbone(parse_spec(f"st:{tiny}")).space
    assert load_backbone(parse_spec(f"st:{copy}/")).space == here
    monkeypatch.chdir(copy)
    assert load_backbone(parse_spec("st:.")).space == here
    monkeypatch.setenv("HOME", str(copy.parent))
    assert load_backbone(parse_spec("st:~/tiny-bert")).space == here


def test_what_changes_vectors_changes_the_space(copy: Path) -> None:
    def fingerprint(template: str = "default") -> str:
        return load_backbone(parse_spec(f"st:{copy}", template)).space.fingerprint

    seen = [fingerprint(), fingerprint("name")]
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(
        pooling.read_text().replace("false", "yes").replace("true", "false").replace("yes", "true")
    )
    assert load_backbone(parse_spec(f"st:{copy}")).space.pooling == "cls, 32 tokens"
    seen.append(fingerprint())
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    seen.append(fingerprint())
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    seen.append(fingerprint())
    assert len(set(seen)) == 5


def test_pooling_is_read_in_the_new_format_too(copy: Path) -> None:
    (copy / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 24, "pooling_mode": "mean"}')
    space = load_backbone(parse_spec(f"st:{copy}")).space
    assert (space.pooling, space.dim) == ("mean, 32 tokens", 24)


# refused models


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights are not loaded"):
        _ = load_backbone(parse_spec(f"st:{copy}")).space
    with pytest.raises(InputError):
        load_backbone(parse_spec(f"st:{copy}")).encode(["insulin"])


def test_a_module_with_only_pickled_weights_is_refused(copy: Path) -> None:
    (copy / "3_Dense").mkdir()
    (copy / "3_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="pickled") as caught:
        weights_sha256(copy)
    assert caught.value.where.endswith("3_Dense")
    # A pickle beside safetensors is not read, because the libraries prefer safetensors.
    shutil.copy(copy / "model.safetensors", copy / "3_Dense" / "model.safetensors")
    assert len(weights_sha256(copy)) == 64


def test_several_weight_files_are_hashed_with_their_names(copy: Path) -> None:
    one = weights_sha256(copy)
    (copy / "3_Dense").mkdir()
    shutil.copy(copy / "model.safetensors", copy / "3_Dense" / "a.safetensors")
    two = weights_sha256(copy)
    (copy / "3_Dense" / "a.safetensors").rename(copy / "3_Dense" / "b.safetensors")
    assert len({one, two, weights_sha256(copy)}) == 3


def test_code_in_a_model_folder_is_not_run(copy: Path, tmp_path: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["type"] = "evil.Evil"
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="its own code"):
        load_backbone(parse_spec(f"st:{copy}"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("modules.json", "{"),
        ("modules.json", "[1]"),
        ("1_Pooling/config.json", "nonsense"),
        ("config.json", "[]"),
        ("model.safetensors", "short"),
        ("tokenizer.json", "{"),
    ],
)
def test_damaged_folders_get_a_message(copy: Path, name: str, text: str) -> None:
    if name == "config.json":
        (copy / "1_Pooling" / "config.json").unlink()
    (copy / name).write_text(text)
    with pytest.raises(InputError) as caught:
        load_backbone(parse_spec(f"st:{copy}")).encode(["insulin"])
    assert len(caught.value.lines()) <= 3


class Stub:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def encode(self, texts: list[str], **options: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return np.asarray(self.answer, np.float32)[: len(texts)]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (MemoryError(), ResourceError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ResourceError),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ResourceError),
        (RuntimeError("shapes cannot be multiplied"), RuntimeError),
        (np.full((1, 24), np.nan), InputError),
        (np.ones((1, 23)), InputError),
    ],
)
def test_errors_of_a_model_are_translated(tiny: Path, answer: Any, error: type[Exception]) -> None:
    fresh = SentenceBackbone(tiny, "st:tiny-bert", "default")
    vars(fresh)["_model"] = Stub(answer)
    with pytest.raises(error):
        fresh.encode(["insulin"])


# bf16


def test_bf16_is_used_if_its_vectors_agree(tiny: Path, backbone: SentenceBackbone, monkeypatch: Any) -> None:
    import torch

    monkeypatch.setattr(sentence, "_has_amx", lambda: True)
    fast = SentenceBackbone(tiny, "st:tiny-bert", "default")
    got, exact = fast.encode(TEXTS), backbone.encode(TEXTS)
    assert next(fast._model.parameters()).dtype == torch.bfloat16
    assert cosine(got, exact).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
    assert got.dtype == np.float32


def test_bf16_is_not_used_if_its_vectors_differ(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    n = len(sentence.PROBES)
    exact = np.eye(n, 24)
    off = exact.copy()
    off[-1] = off[-1] + 0.05 * np.eye(n, 24)[0]  # a cosine of 0.99875 for one text
    models = {torch.float32: Stub(exact), torch.bfloat16: Stub(off)}
    monkeypatch.setattr(sentence, "_has_amx", lambda: True)
    monkeypatch.setattr(SentenceBackbone, "_load", lambda self, dtype: models[dtype])
    assert SentenceBackbone(tiny, "x", "default")._model is models[torch.float32]
    models[torch.bfloat16].answer = exact * 1.003  # the length does not matter
    assert SentenceBackbone(tiny, "x", "default")._model is models[torch.bfloat16]


# no network

ALONE = """
import socket, sys
asked = []
def refuse(*a, **k):
    asked.append(a)
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import huggingface_hub  # it reads its settings at import; later changes have no effect
from scvec.backbones import load_backbone, parse_spec
v = load_backbone(parse_spec("st:" + sys.argv[1])).encode(["insulin", "glucagon"])
assert v.shape == (2, 24), v.shape
assert not asked, asked
print("fine")
"""


@pytest.mark.slow
def test_a_model_on_the_disk_uses_no_network(tiny: Path) -> None:
    # Run in a new process: libraries read their settings once, and the settings of the tests say "offline".
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tiny)],
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.stdout.strip() == "fine", done.stderr[-2000:]
