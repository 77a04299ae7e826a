"""A new backbone is one file with one registration, like this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scvec
from scvec import backbones
from scvec.backbones import BackboneSpec, LoadOptions, backbone, load_backbone, parse_spec
from scvec.base.errors import InputError
from scvec.base.types import Space
from scvec.stores.store.store import Store


class Toy:
    """Counts of the first letters of the alphabet in a text."""

    def __init__(self, dim: int, upper: bool, template: str) -> None:
        self.upper = upper
        self.space = Space(f"toy:{dim}", "1", "", template, "none", dim, False)

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> Toy:
        return cls(int(spec.argument), spec.option("case") == "upper", spec.template)

    def encode(self, texts: Sequence[str]) -> Any:
        letters = [chr(ord("A" if self.upper else "a") + i) for i in range(self.space.dim)]
        return np.array([[text.count(x) for x in letters] for text in texts], dtype=np.float32)


@pytest.fixture
def toy() -> Iterator[type]:
    yield backbone("toy:DIM", options={"case": "upper|lower", "max_tokens": 9})(Toy)
    backbones._registered.pop("toy:DIM", None)


@pytest.mark.usefixtures("toy")
def test_a_toy_in_one_file_is_ingested_stored_and_queried(
    tmp_path: Path, tiny_adata: Callable[..., Any], new_store: Callable[[Path], Path]
) -> None:
    store = new_store(tmp_path / "store")
    report = scvec.ingest_cells(
        store, [tiny_adata(60)], name="r", label_key="cell_type", encoder="weighted", backbone="toy:20"
    )
    assert report.texts["encoded"] > 0
    stored = Store(store).reference("r")
    assert stored.meta["space"]["backbone"] == "toy:20" and stored.dim == 20
    assert [space.backbone for space in scvec.info(store).spaces] == ["toy:20"]
    assert set(scvec.query(store, tiny_adata(30, seed=1)).label) <= set(stored.meta["classes"])


@pytest.mark.usefixtures("toy")
def test_the_grammar_is_read_from_the_registry() -> None:
    made = load_backbone(parse_spec("toy:3,case=upper"))
    assert made.encode(["CAB A"]).tolist() == [[2.0, 1.0, 1.0]]
    assert parse_spec("permuted:toy:3").needs_text and not parse_spec("toy:3").is_remote
    for wrong in ("toy", "toy:x", "toys"):
        with pytest.raises(InputError) as caught:
            parse_spec(wrong)
        assert "toy:DIM, permuted:SPEC" in caught.value.fix
    for wrong in ("toy:3,case=odd", "toy:3,max_tokens=10", "toy:3,dim=2"):
        with pytest.raises(InputError) as caught:
            parse_spec(wrong)
        assert "toy:DIM[,case=upper|lower][,max_tokens=N]" in caught.value.fix


def test_every_form_of_the_table_is_registered_by_its_module() -> None:
    kinds = {form: backbones._kind(form.partition(":")[0]) for form in backbones.MODULES}
    assert {form: kind.form for form, kind in kinds.items() if kind} == {f: f for f in backbones.MODULES}
    assert [form for form, kind in kinds.items() if kind and kind.asks_server] == ["openai:MODEL"]
