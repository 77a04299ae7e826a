"""Tests of the registry, with a toy encoder that is registered in this file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scvec
from scvec import encoders
from scvec.base.errors import InputError
from scvec.encoders import Material, Models, encoder, encoder_kind, encoder_names
from scvec.model.storage import load_model
from scvec.stores.store.store import Store


class Toy:
    """Toy encoder: cells projected onto a few random directions."""

    def __init__(self, directions: Any) -> None:
        self.directions, self.embed_dim = directions, directions.shape[1]

    @classmethod
    def new(cls, material: Material) -> Toy:
        n_genes = material.cells.X.shape[1]
        rng = np.random.default_rng(0)
        return cls(rng.normal(size=(n_genes, material.prepared or 16)).astype(np.float32))

    @classmethod
    def prepare(cls, models: Models, *, n_genes: int | None) -> int | None:
        return n_genes

    @classmethod
    def from_state(cls, tensors: dict[str, Any], meta: dict[str, Any]) -> Toy:
        return cls(tensors["directions"])

    def fit(self, chunks: Any, labels: Any, **_: Any) -> None:
        pass

    def encode(self, chunk: Any) -> Any:
        return np.asarray(chunk.X @ self.directions, dtype=np.float32)

    def state(self) -> Any:
        return {"directions": self.directions}, {}


@pytest.fixture
def toy() -> Iterator[type]:
    yield encoder("toy")(Toy)
    encoders._registered.pop("toy", None)


@pytest.mark.usefixtures("toy")
def test_a_toy_in_one_file_is_ingested_stored_and_queried(
    tmp_path: Path, tiny_adata: Callable[..., Any], new_store: Callable[[Path], Path]
) -> None:
    store, new = new_store(tmp_path / "store"), tiny_adata(30, seed=1)
    report = scvec.ingest_cells(
        store, [tiny_adata(60)], name="r", label_key="cell_type", encoder="toy", n_genes=12
    )
    assert (report.encoder, report.space, report.texts) == ("toy", "none", {})
    stored = Store(store).reference("r")
    assert stored.meta["options"]["encoder"] == "toy" and stored.dim == 12
    assert isinstance(load_model(stored).members.encoder, Toy)
    found = scvec.query(store, new)
    assert (found.label == new.obs["cell_type"].to_numpy().astype(str)).mean() > 0.8
    assert scvec.verify(store).ok


@pytest.mark.usefixtures("toy")
def test_what_is_known_of_encoders_is_read_from_the_registry() -> None:
    assert encoder_names()[-1] == "toy" and encoder_kind("toy").options == {"n_genes"}
    assert not encoder_kind("toy").uses_gpu and encoder_kind("toy").texts == ""
    with pytest.raises(InputError) as caught:
        encoder_kind("toi")
    assert "'toy'?" in caught.value.fix and "residual, toy" in caught.value.fix
    models = Models(lambda: pytest.fail("no model"), lambda *_: pytest.fail("no model"), "cpu")
    with pytest.raises(InputError) as caught:
        encoder_kind("toy").prepare(models, {"n_genes": 3, "epochs": 2})
    assert caught.value.where == "--epochs" and "--encoder prompt" in caught.value.fix


def test_every_name_of_the_table_is_registered_by_its_module() -> None:
    assert {name: encoder_kind(name).name for name in encoders.MODULES} == {n: n for n in encoders.MODULES}
    on_gpu = [name for name in encoders.MODULES if encoder_kind(name).uses_gpu]
    assert on_gpu == ["prompt", "sentence"]
    assert all(encoder_kind(name).made_by.takes_turns == (name in on_gpu) for name in encoders.MODULES)
