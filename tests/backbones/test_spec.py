"""The table of backbone names."""

from __future__ import annotations

from pathlib import Path

import pytest

from scvec.backbones.controls import RandomBackbone
from scvec.backbones.spec import BackboneSpec, load_backbone, parse_spec
from scvec.errors import InputError

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
}


@pytest.mark.parametrize("spec", TABLE)
def test_specs(spec: str) -> None:
    assert parse_spec(spec) == BackboneSpec(*TABLE[spec])


@pytest.mark.parametrize("template", ["name", "{symbol}", "default"])
def test_name_overrides_the_template_asked_for(template: str) -> None:
    assert parse_spec("minilm", template).template == template
    assert parse_spec("name:minilm", template).template == "name"


def test_random_vectors_need_no_text() -> None:
    assert not parse_spec("permuted:random:8").needs_text
    assert parse_spec("minilm").needs_text and parse_spec("st:x").needs_text


@pytest.mark.parametrize(
    "spec",
    ["", "minilmm", "MiniLM", "minilm:x", "st", "st:", "random", "random:", "random:x", "random:-1",
     "random:1.5", "random:\u00b2", "permuted:", "permuted", "name:", "permuted:permuted:minilm",
     "name:name:minilm", "openai:x", "permuted:name:permuted:minilm"],
)  # fmt: skip
def test_what_is_no_spec_is_refused_with_the_list(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(spec)
    assert repr(spec) in caught.value.what
    assert "minilm, st:FOLDER_OR_ID, random:DIM" in caught.value.fix


@pytest.mark.parametrize("dim", ["0", "65537", "9" * 40])
def test_dimensions_out_of_bounds(dim: str) -> None:
    with pytest.raises(InputError, match="no dimension"):
        load_backbone(parse_spec(f"random:{dim}"))


def test_random_is_loaded_with_its_template() -> None:
    backbone = load_backbone(parse_spec("name:random:8"))
    assert isinstance(backbone, RandomBackbone)
    assert (backbone.space.dim, backbone.space.template, backbone.space.backbone) == (8, "name", "random:8")


@pytest.mark.parametrize("where", ["missing/model", "not a folder at all", "file.txt"])
def test_a_missing_folder_is_an_input_error(where: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InputError) as caught:
        load_backbone(parse_spec(f"st:{tmp_path / where}"))
    assert "is no folder" in caught.value.what and len(caught.value.lines()) <= 3


def test_an_empty_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_backbone(parse_spec(f"st:{tmp_path}"))
