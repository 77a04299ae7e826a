"""The species of a file by its gene names in any spelling; oracle: the same cells spelled plainly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

import scvec
from scvec.model.resolvers import snapshot_resolver

DATA = Path(scvec.__file__).parent / "data"
SPELLINGS = [str, str.upper, str.lower, str.title, str.swapcase]


@pytest.fixture(scope="module")
def resolver():
    return snapshot_resolver()


@pytest.fixture(scope="module")
def cells() -> dict[str, anndata.AnnData]:
    return {species: anndata.read_h5ad(DATA / f"baron_{species}.h5ad") for species in ("human", "mouse")}


def of_species(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if "used as" in note or "assumed" in note]


@pytest.mark.parametrize("species", ["human", "mouse"])
@pytest.mark.parametrize("spell", SPELLINGS)
def test_spelling_does_not_change_the_species(spell, species, cells, resolver) -> None:
    names = list(cells[species].var_names)
    plain, found = resolver.resolve(names, species), resolver.resolve([spell(n) for n in names])
    assert found.species == species
    pairs = [(a, b) for a, b in zip(plain.gene_ids, found.gene_ids, strict=True) if a is not None]
    assert np.mean([a == b for a, b in pairs]) > 0.97
    if spell is str:
        assert not of_species(found.notes)


@pytest.mark.parametrize(
    "spell",
    [
        lambda n: n.upper() + ".2" if n.startswith("C") else n.upper(),
        lambda n: n.upper().replace("-", "."),
        lambda n: " " + n.upper(),
        lambda n: n.upper().replace("MT-", "mt-"),
    ],
    ids=["some-suffixes", "R", "spaces", "mixed"],
)
def test_mouse_in_capitals_is_mouse_with_a_note(spell, cells, resolver) -> None:
    found = resolver.resolve([spell(n) for n in cells["mouse"].var_names])
    assert found.species == "mouse" and len(of_species(found.notes)) == 1


def test_suffixes_on_all_names_do_not_hide_the_mouse(cells, resolver) -> None:
    found = resolver.resolve([f"{n.upper()}.2" for n in cells["mouse"].var_names])
    assert found.species == "mouse" and found.n_matched > 0.99 * len(found.names)


def test_a_given_species_overrides_the_detection(cells, resolver) -> None:
    found = resolver.resolve([n.upper() for n in cells["mouse"].var_names], "human")
    assert found.species == "human" and not of_species(found.notes)


def test_names_in_capitals_are_the_same_genes(cells, resolver) -> None:
    names = list(cells["mouse"].var_names)
    plain = resolver.resolve(names, "mouse")
    found = resolver.resolve([n.upper() for n in names], "mouse")
    other = [n for n, a, b, h in zip(names, plain.gene_ids, found.gene_ids, plain.how, strict=True)
             if h == "symbol" and b is not None and a != b]  # fmt: skip
    assert len(other) <= 5, other


def test_names_of_both_species_give_a_note(resolver) -> None:
    human, mouse = (resolver._names[s].exact["symbol"] for s in ("human", "mouse"))
    shared = sorted(n for n in human if n.capitalize() in mouse and n.isalpha())[:300]
    capitals, small = resolver.resolve(shared), resolver.resolve([n.lower() for n in shared])
    assert capitals.species == "human"
    assert len(of_species(capitals.notes)) == len(of_species(small.notes)) == 1
    # The spelling of mouse is that of no other species, and few names are a list that somebody typed.
    title = resolver.resolve([n.capitalize() for n in shared])
    assert title.species == "mouse" and not of_species(title.notes)
    assert not of_species(resolver.resolve(shared[:20]).notes)


def test_names_of_only_one_species_decide(resolver) -> None:
    shared = ["INS", "GCG", "SST", "ACTB", "GAPDH"]
    mouse = [
        "0610007P14RIK",
        "GM1992",
        "H2-K1",
        "H2-AA",
        "H2-EB1",
        "LY6C1",
        "LY6C2",
        "XIST",
        "LYZ2",
        "KLK1B1",
    ]
    mouse += ["INS1", "INS2", "MUP3", "MUP20", "H2-AB1", "SERPINA1A", "SERPINA1B", "CYP2C29"]
    assert resolver.resolve(shared + mouse).species == "mouse"
    assert resolver.resolve(shared).species == "human"


@pytest.mark.slow
def test_capitals_are_annotated_as_plain_names_are(
    cells, tmp_path: Path, new_store: Callable[[Path], Path]
) -> None:
    mouse = cells["mouse"]
    halves = [mouse[np.arange(mouse.n_obs) % 2 == i].copy() for i in (0, 1)]
    store = new_store(tmp_path / "store")
    scvec.ingest_cells(store, [halves[0]], name="mouse", label_key="cell_type", min_cells=5)
    truth = halves[1].obs["cell_type"].astype(str).to_numpy()
    plain = scvec.query(store, halves[1])
    halves[1].var_names = halves[1].var_names.str.upper()
    found = scvec.query(store, halves[1])
    right, expected = (float(np.mean(a.label == truth)) for a in (found, plain))
    assert found.parameters["species"] == "mouse" and right >= expected > 0.8
