"""Parsing of SPECs."""

from __future__ import annotations

from pathlib import Path

import pytest

from scvec.backbones import BackboneSpec, load_backbone, parse_spec
from scvec.backbones.controls import RandomBackbone
from scvec.base.errors import InputError

TABLE = {
    "minilm": ("minilm", "", False, "default"),
    " minilm ": ("minilm", "", False, "default"),
    "st:/models/mpnet": ("st", "/models/mpnet", False, "default"),
    "st:org/model": ("st", "org/model", False, "default"),
    "st:C:\\models": ("st", "C:\\models", False, "default"),
    "random:384": ("random", "384", False, "default"),
    "permuted:minilm": ("minilm", "", True, "default"),
    "name:minilm": ("minilm", "", False, "name"),
    "permuted:name:minilm": ("minilm", "", True, "name"),
    "name:permuted:random:8": ("random", "8", True, "name"),
    "permuted:st:/m/a": ("st", "/m/a", True, "default"),
    "st:/m/a,pooling=mean": ("st", "/m/a,pooling=mean", False, "default"),
    "hf:gpt2": ("hf", "gpt2", False, "default"),
    "hf:/m/a,b": ("hf", "/m/a,b", False, "default"),
    "hf:/m/a,b,pooling=last,max_tokens=0128": (
        "hf", "/m/a,b", False, "default", (("max_tokens", "128"), ("pooling", "last")),
    ),
    "openai:text-embedding-3-small": ("openai", "text-embedding-3-small", False, "default"),
    "openai:hf.co/org/model:Q4_K_M": ("openai", "hf.co/org/model:Q4_K_M", False, "default"),
    "permuted:name:openai:m,dimensions=256": ("openai", "m", True, "name", (("dimensions", "256"),)),
}  # fmt: skip


@pytest.mark.parametrize("spec", TABLE)
def test_specs(spec: str) -> None:
    assert parse_spec(spec) == BackboneSpec(*TABLE[spec])


@pytest.mark.parametrize("template", ["name", "{symbol}", "default"])
def test_name_overrides_the_requested_template(template: str) -> None:
    assert parse_spec("minilm", template).template == template
    assert parse_spec("name:minilm", template).template == "name"


def test_random_vectors_need_no_text() -> None:
    assert not parse_spec("permuted:random:8").needs_text
    assert parse_spec("minilm").needs_text and parse_spec("st:x").needs_text


@pytest.mark.parametrize(
    "spec",
    ["", "minilmm", "MiniLM", "minilm:x", "st", "st:", "random", "random:", "random:x", "random:-1",
     "random:1.5", "random:\u00b2", "permuted:", "permuted", "name:", "permuted:permuted:minilm",
     "name:name:minilm", "openai", "openai:", "hf:", "hf", "Openai:x", "permuted:name:permuted:minilm",
     "hf:,pooling=mean", "openai:,dimensions=3", "openai: ,dimensions=3", "ftp:x"],
)  # fmt: skip
def test_an_invalid_spec_is_refused_with_the_list(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(spec)
    assert repr(spec) in caught.value.what
    assert "minilm, st:FOLDER_OR_ID, hf:FOLDER_OR_ID, openai:MODEL, random:DIM" in caught.value.fix


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hf:m,dimensions=3", "hf: has no option 'dimensions'"),
        ("hf:m,pooling=cls", "no pooling 'cls'"),
        ("hf:m,pooling=", "no pooling ''"),
        ("hf:m,pooling=mean,pooling=last", "twice"),
        ("hf:m,max_tokens=0", "from 1 to"),
        ("openai:m,dimensions", "from 1 to 65,536"),
        ("openai:m,mean", "openai: has no option 'mean'"),
        ("openai:m,", "openai: has no option ''"),
        ("openai:m,pooling=mean", "openai: has no option 'pooling'"),
        *((f"openai:m,dimensions={n}", "from 1 to 65,536") for n in
          ("0", "-1", "1.5", "x", "", " 3", "65537", "\u00b2", "9" * 5000, "1e3", "0x10")),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_with_the_grammar(spec: str, said: str) -> None:
    kind = spec.partition(":")[0]
    with pytest.raises(InputError) as caught:
        parse_spec(spec)
    assert said in caught.value.what and len(caught.value.lines()) == 3
    expected = {
        "hf": "hf:FOLDER_OR_ID[,pooling=mean|last|eol][,max_tokens=N]",
        "openai": "openai:MODEL[,dimensions=N][,max_tokens=N]",
    }
    assert expected[kind] in caught.value.fix


def test_an_address_needs_a_server() -> None:
    spec = parse_spec("name:openai:m,dimensions=8", base_url="http://127.0.0.1:8000/v1")
    assert spec.base_url == "http://127.0.0.1:8000/v1" and spec.is_remote
    assert (spec.number("dimensions"), spec.number("max_tokens"), spec.option("pooling")) == (8, None, None)
    assert parse_spec("openai:m").base_url is None
    with pytest.raises(InputError, match=r"'minilm' .* server"):
        parse_spec("minilm", base_url="http://127.0.0.1:8000/v1")


@pytest.mark.parametrize("dim", ["0", "65537", "9" * 40])
def test_dimensions_out_of_bounds(dim: str) -> None:
    with pytest.raises(
        InputError, match=f"random:{dim[:9]}", check=lambda e: e.code == "option-out-of-range"
    ):
        load_backbone(parse_spec(f"random:{dim}"))


def test_random_is_loaded_with_its_template() -> None:
    backbone = load_backbone(parse_spec("name:random:8"))
    assert isinstance(backbone, RandomBackbone)
    assert (backbone.space.dim, backbone.space.template, backbone.space.backbone) == (8, "name", "random:8")


@pytest.mark.parametrize("kind", ["st", "hf"])
@pytest.mark.parametrize("where", ["missing/model", "not a folder at all", "file.txt"])
def test_a_missing_folder_is_an_input_error(where: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InputError) as caught:
        load_backbone(parse_spec(f"{kind}:{tmp_path / where}"))
    assert f"--backbone {kind}:FOLDER" in caught.value.fix
    assert "is not a folder" in caught.value.what and len(caught.value.lines()) <= 3


@pytest.mark.parametrize("kind", ["st", "hf"])
def test_an_empty_folder_is_an_input_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json", check=lambda e: e.code == "model-not-found"):
        load_backbone(parse_spec(f"{kind}:{tmp_path}"))
