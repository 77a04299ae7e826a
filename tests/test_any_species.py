"""Species as data: names, detection that refuses, orthologs over several species, ids of their own kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvec
from scvec.base.errors import InputError
from scvec.base.species import id_species, known_species, species_key
from scvec.ingest.cells.source import CellSource
from scvec.model.matching import match_genes
from scvec.model.resolvers import GeneResolver, snapshot_resolver
from scvec.stores.knowledge.knowledge import KnowledgeBase

DATA = Path(scvec.__file__).parent / "data"
EIGHT = ("rat", "rhesus", "cynomolgus", "pig", "zebrafish", "chicken", "fruit fly", "worm")
#: Ids as files of each species have them, of the kinds that Ensembl and the authorities give.
IDS = {
    "rat": "ENSRNOG000000{:05d}",
    "rhesus": "ENSMMUG000000{:05d}",
    "cynomolgus": "ENSMFAG000000{:05d}",
    "pig": "ENSSSCG000000{:05d}",
    "zebrafish": "ENSDARG000000{:05d}",
    "chicken": "ENSGALG000000{:05d}",
    "fruit fly": "FBgn00{:05d}",
    "worm": "WBGene000{:05d}",
    "arabidopsis": "AT1G{:05d}",
    "sheep": "ENSOARG000000{:05d}",
}


@pytest.fixture(scope="module")
def resolver() -> GeneResolver:
    return snapshot_resolver()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> GeneResolver:
    path = tmp_path_factory.mktemp("kb") / "genes.duckdb"
    with KnowledgeBase.open(path) as kb:
        kb.load_snapshot()
        kb.load_snapshot(EIGHT)
        return GeneResolver(kb.aliases(), kb.orthologs())


@pytest.fixture(scope="module")
def renamed(resolver: GeneResolver) -> dict[str, list[str]]:
    """Symbols of the genes of real cells, renamed through the shipped tables, by species."""
    genes = pd.read_parquet(DATA / "snapshot" / "more_genes.parquet")
    pairs = pd.read_parquet(DATA / "snapshot" / "more_orthologs.parquet")
    symbols = dict(zip(genes["gene_id"], genes["symbol"], strict=True))
    found = {}
    for species in EIGHT:
        other = "mouse" if species == "rat" else "human"
        cells = anndata.read_h5ad(DATA / f"baron_{other}.h5ad", backed="r")
        own = pairs[(pairs["species"] == species) & (pairs["other_species"] == other)]
        partner = dict(zip(own["other_id"], own["gene_id"], strict=True))
        ids = resolver.resolve(list(cells.var_names), other).gene_ids
        found[species] = [symbols[partner[g]] for g in ids if g in partner]
    return found


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Rattus norvegicus", "rat"),
        ("10116", "rat"),
        ("NCBITaxon:7955", "zebrafish"),
        ("macaque", "rhesus"),
        ("crab-eating macaque", "cynomolgus"),
        ("C. elegans", "worm"),
        ("Homo_sapiens", "human"),
        ("Other", "other"),
        ("axolotl", "axolotl"),
        ("naked mole rat", "naked mole rat"),
        ("M. fascicularis", "cynomolgus"),
        ("Gallus", "chicken"),
        ("pigs", "pig"),
        ("Homo sapiens (human)", "human"),
        ("Caenorhabditis elegans N2", "worm"),
        ("Mmul_10", "rhesus"),
        ("GRCz11", "zebrafish"),
        ("mm39", "mouse"),
        ("taxid:10090", "mouse"),
        ("9606.0", "human"),
    ],
)
def test_a_species_has_many_names(text: str, key: str) -> None:
    assert species_key(text) == key


@pytest.mark.parametrize(
    "text",
    [
        "zebrafsh",
        "humna",
        "",
        "../x",
        "9" * 80,
        "auto",
        "unknown",
        "human and mouse",
        "hg19_mm10",
        "monkey",
        "Macaca",
    ],
)
def test_what_is_no_name_of_a_species_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        species_key(text)
    assert caught.value.code == "unknown-choice"


def test_a_word_for_several_species_is_answered_with_their_names() -> None:
    with pytest.raises(InputError) as caught:
        species_key("macaca")
    assert {"rhesus", "cynomolgus"} <= set((caught.value.fix or "").replace(",", "").split())


def test_no_two_species_share_a_name_or_an_id() -> None:
    names: dict[str, str] = {}
    for key, one in known_species().items():
        for name in {n.casefold() for n in (key, one.scientific, str(one.taxon), *one.names)}:
            assert names.setdefault(name, key) == key
    for key, pattern in IDS.items():
        assert id_species(pattern.format(12345)) == key
    assert id_species("INS") is None and id_species("ENSXYZG00000000001") == ""


@pytest.mark.parametrize("species", IDS)
def test_ids_of_a_species_that_is_not_loaded_are_recognised(species: str, resolver: GeneResolver) -> None:
    names = [IDS[species].format(n) for n in range(10_000, 11_000)]
    assert resolver.resolve(names).looks_like == species
    # Files name what has a symbol by it, and the rest by its id.
    human = ["INS", "GCG", "ACTB", "TP53", "CD3E", "MALAT1"] * 100
    assert resolver.resolve(names[:200] + human).looks_like == species


@pytest.mark.parametrize("species", [s for s in EIGHT if s != "cynomolgus"])
def test_symbols_of_a_species_that_is_not_loaded_are_recognised(
    species: str, renamed: dict[str, list[str]], resolver: GeneResolver
) -> None:
    assert resolver.resolve(renamed[species]).looks_like == species


@pytest.mark.parametrize("species", ["pig", "rat"])
def test_symbols_that_were_made_unique_are_recognised(
    species: str, renamed: dict[str, list[str]], resolver: GeneResolver
) -> None:
    table = pd.DataFrame(index=renamed[species])
    cells = anndata.AnnData(sp.csr_matrix((1, len(table))), var=table)
    cells.var_names_make_unique()
    assert resolver.resolve(list(cells.var_names)).looks_like == species


@pytest.mark.parametrize("species", ["rat", "fruit fly", "worm"])
@pytest.mark.parametrize("form", ["gene:{}", "Ins1_{}", "{}_Ins1", "{}.2|Ins1", "lower"])
def test_ids_within_names_are_recognised(species: str, form: str, resolver: GeneResolver) -> None:
    ids = [IDS[species].format(n) for n in range(10_000, 10_300)]
    names = [i.lower() if form == "lower" else form.format(i) for i in ids]
    with CellSource.open(cells_named(names)) as source, pytest.raises(InputError) as caught:
        match_genes(source, resolver)
    assert caught.value.code == "species-not-loaded" and species in caught.value.what


@pytest.mark.parametrize("species", ["rat", "pig", "zebrafish", "worm"])
def test_symbols_in_another_case_are_recognised(
    species: str, renamed: dict[str, list[str]], resolver: GeneResolver
) -> None:
    for change in (str.lower, str.upper, str.capitalize):
        assert resolver.resolve([change(name) for name in renamed[species]]).looks_like == species


def test_genes_without_symbols_hide_no_species(renamed: dict[str, list[str]], resolver: GeneResolver) -> None:
    names = [f"LOC{100_000_000 + i}" if i % 2 else name for i, name in enumerate(renamed["rat"])]
    assert resolver.resolve(names).looks_like == "rat"


def test_human_and_mouse_in_another_case_are_no_strangers(resolver: GeneResolver) -> None:
    for species in ("human", "mouse"):
        names = list(anndata.read_h5ad(DATA / f"baron_{species}.h5ad", backed="r").var_names)
        for change in (str.lower, str.upper, str.capitalize):
            assert not resolver.resolve([change(name) for name in names]).looks_like


@pytest.mark.parametrize("species", ["pig", "chicken", "arabidopsis"])
def test_ids_that_do_not_ship_are_loaded_from_a_file(species: str, resolver: GeneResolver) -> None:
    names = [IDS[species].format(n) for n in range(10_000, 10_400)]
    with CellSource.open(cells_named(names)) as source, pytest.raises(InputError) as caught:
        match_genes(source, resolver)
    assert caught.value.code == "species-not-loaded"
    assert "--source FILE" in (caught.value.fix or "")


@pytest.mark.parametrize("form", ["{}", "gene:{}"])
@pytest.mark.parametrize(("species", "prefix"), [("worm", "WB:"), ("fruit fly", "FB:"), ("rhesus", "")])
def test_ids_that_ship_are_loaded_from_what_ships(
    species: str, prefix: str, form: str, resolver: GeneResolver
) -> None:
    genes = pd.read_parquet(DATA / "snapshot" / "more_genes.parquet")
    ids = genes.loc[genes["species"] == species, "gene_id"].iloc[:400]
    cells = cells_named([form.format(i.removeprefix(prefix)) for i in ids])
    with CellSource.open(cells) as source, pytest.raises(InputError) as caught:
        match_genes(source, resolver)
    assert caught.value.code == "species-not-loaded"
    assert "--source" not in (caught.value.fix or "")


def test_a_counter_behind_an_unknown_id_is_no_gene(resolver: GeneResolver) -> None:
    match = resolver.resolve(["ENSRNOG00000008012-1", "ENSG00000121410-2", "INS"], "human")
    assert match.gene_ids == (None, "HGNC:5", "HGNC:6081")


def test_symbols_of_the_only_loaded_species_are_recognised(
    tmp_path: Path, renamed: dict[str, list[str]]
) -> None:
    with KnowledgeBase.open(tmp_path / "genes.duckdb") as kb:
        kb.load_snapshot(["zebrafish"])
        match = GeneResolver(kb.aliases(), kb.orthologs()).resolve(renamed["zebrafish"])
    assert match.species == "zebrafish" and not match.looks_like
    assert match.n_matched > 0.99 * len(match.names)


@pytest.mark.slow
@pytest.mark.parametrize("species", [s for s in EIGHT if s != "cynomolgus"])
def test_symbols_of_a_loaded_species_are_recognised(
    species: str, renamed: dict[str, list[str]], loaded: GeneResolver
) -> None:
    match = loaded.resolve(renamed[species])
    assert match.species == species and not match.looks_like
    assert match.n_matched > 0.99 * len(match.names)


@pytest.mark.slow
def test_symbols_of_cynomolgus_are_those_of_human_and_that_is_said(
    renamed: dict[str, list[str]], loaded: GeneResolver
) -> None:
    match = loaded.resolve(renamed["cynomolgus"])
    assert match.species == "cynomolgus" or any("fit cynomolgus" in note for note in match.notes)


@pytest.mark.slow
@pytest.mark.parametrize("species", ["human", "mouse"])
def test_human_and_mouse_stay_what_they_are(
    species: str, resolver: GeneResolver, loaded: GeneResolver
) -> None:
    names = list(anndata.read_h5ad(DATA / f"baron_{species}.h5ad", backed="r").var_names)
    plain, among = resolver.resolve(names), loaded.resolve(names)
    assert plain.species == among.species == species
    assert plain.gene_ids == among.gene_ids and not plain.looks_like and not among.looks_like
    some = np.random.default_rng(0).choice(names, 300, replace=False)
    assert loaded.resolve(list(some)).species == species and not resolver.resolve(list(some)).looks_like


def cells_named(names: list[str]) -> anndata.AnnData:
    counts = np.random.default_rng(0).poisson(1.0, (30, len(names))).astype(np.float32)
    return anndata.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=names))


def test_worms_are_refused_at_once_with_what_to_load(
    renamed: dict[str, list[str]], resolver: GeneResolver
) -> None:
    with CellSource.open(cells_named(renamed["worm"])) as source:
        started = time.process_time()
        with pytest.raises(InputError) as caught:
            match_genes(source, resolver)
        assert time.process_time() - started < 2
    assert caught.value.code == "species-not-loaded"
    assert "ingest genes --species worm" in (caught.value.fix or "")


def test_few_names_of_a_species_are_chance(resolver: GeneResolver) -> None:
    known = [f"XB{i}q" for i in range(900)] + list(snapshot_symbols()[:100])
    with CellSource.open(cells_named(known)) as source:
        with pytest.raises(InputError) as caught:
            match_genes(source, resolver, species="human")
        assert caught.value.code == "genes-not-recognised"
        assert match_genes(source, resolver, species="human", force=True).match.n_matched >= 100


@pytest.mark.parametrize("species", ["human", "mouse"])
def test_names_on_the_wrong_columns_are_warned_of(species: str, resolver: GeneResolver) -> None:
    cells = anndata.read_h5ad(DATA / f"baron_{species}.h5ad")[:100].copy()
    for names, wrong in (
        (list(cells.var_names), False),
        (list(np.random.default_rng(0).permutation(cells.var_names)), True),
    ):
        cells.var_names = names
        with CellSource.open(cells) as source:
            notes = match_genes(source, resolver).notes
        assert any("do the names belong to these columns" in note for note in notes) == wrong


@pytest.mark.parametrize(("one", "other"), [("GRCh38_", "mm10___"), ("GRCh38-", "mm10-")])
def test_a_species_whose_genome_was_dropped_is_refused(one: str, other: str, resolver: GeneResolver) -> None:
    names = list(snapshot_symbols()[:400])
    cells = cells_named([one + n for n in names] + [other + n.capitalize() for n in names[:200]])
    with CellSource.open(cells) as source:
        assert match_genes(source, resolver).match.species == "human"
        with pytest.raises(InputError) as caught:
            match_genes(source, resolver, species="mouse")
        assert match_genes(source, resolver, species="other").match.species == "other"
    assert caught.value.code == "genes-not-recognised"


def snapshot_symbols() -> list[str]:
    genes = pd.read_parquet(DATA / "snapshot" / "genes.parquet")
    return list(genes.loc[(genes["species"] == "human") & (genes["gene_type"] == "protein-coding"), "symbol"])


def tiny(pairs: list[tuple[str, str, str, str, str, float]], many: str = "mean") -> GeneResolver:
    """A resolver over genes called as their ids, ``h1`` of human, ``m1`` of mouse, ``w1`` of worm."""
    species = {"h": "human", "m": "mouse", "w": "worm"}
    ids = sorted({g for pair in pairs for g in (pair[0], pair[2])})
    rows = [(g, species[g[0]], f"{g}-symbol", "symbol") for g in ids]
    aliases = pd.DataFrame(rows, columns=["gene_id", "species", "name", "kind"])
    columns = ["gene_id", "species", "other_id", "other_species", "kind", "confidence"]
    return GeneResolver(aliases, pd.DataFrame(pairs, columns=columns), many=many)


PAIRS = [
    ("h1", "human", "m1", "mouse", "one2one", 1.0),
    ("h2", "human", "m2", "mouse", "one2many", 0.9),
    ("h2", "human", "m3", "mouse", "one2many", 0.4),
    ("w1", "worm", "h1", "human", "one2one", 0.5),
    ("w2", "worm", "h1", "human", "one2many", 0.5),
    ("w2", "worm", "h2", "human", "one2many", 0.5),
]


@pytest.mark.parametrize(
    ("many", "expected"), [("mean", [0.5, 0.5]), ("sum", [1.0, 1.0]), ("best", [1.0, 0.0])]
)
def test_a_gene_counts_for_its_partners_by_policy(many: str, expected: list[float]) -> None:
    resolver = tiny(PAIRS, many)
    genes = resolver.map_to(resolver.resolve(["h2"], "human"), ["m2", "m3"], "mouse")
    assert genes.weights.toarray()[0].tolist() == expected


def test_species_are_joined_through_others_and_that_is_said() -> None:
    resolver = tiny(PAIRS)
    assert resolver.path("worm", "mouse") == ("worm", "human", "mouse")
    match = resolver.resolve(["w1-symbol", "w2-symbol"], "worm")
    genes = resolver.map_to(match, ["m1", "m2", "m3"], "mouse")
    assert genes.weights.toarray().tolist() == [[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]]
    [note] = genes.notes
    assert "by way of human" in note and "1 one to one, 1 among several" in note
    assert genes.crossed["path"] == ["worm", "human", "mouse"]
    counts = ("genes", "crossed", "one_to_one", "several", "symbol_alone", "reference_genes")
    assert [genes.crossed[k] for k in counts] == [2, 2, 1, 1, 0, 3]
    # Shares of partners that the reference lacks go to those that it has.
    fewer = resolver.map_to(match, ["m2"], "mouse")
    assert fewer.weights.toarray().tolist() == [[0.0], [1.0]]


def test_species_without_common_orthologs_are_refused() -> None:
    resolver = tiny(PAIRS[:3])
    match = resolver.resolve(["g1"], "other")
    with pytest.raises(InputError) as caught:
        resolver.map_to(match, ["m1"], "mouse")
    assert caught.value.code == "species-not-joined"


def test_unchanged_ids_stay_valid_when_their_species_is_loaded() -> None:
    resolver = tiny(PAIRS)
    match = resolver.resolve(["w1-symbol"], "worm")
    assert resolver.map_to(match, ["w1-symbol"], "worm").measured.all()


def test_a_better_pair_takes_the_place_of_one_that_is_known(tmp_path: Path) -> None:
    import pyarrow as pa

    def table(first: tuple[str, str], second: tuple[str, str], kind: str, sure: float | None) -> pa.Table:
        (a, species), (b, other) = first, second
        row = {"gene_id": a, "species": species, "other_id": b, "other_species": other, "kind": kind}
        return pa.table({k: [v] for k, v in row.items()} | {"confidence": pa.array([sure], pa.float32())})

    fish, man = ("ZFIN:1", "zebrafish"), ("HGNC:1", "human")
    with KnowledgeBase.open(tmp_path / "genes.duckdb") as kb:
        assert kb.put_orthologs(table(fish, man, "one2many", 0.5), "a.tsv") == 1
        assert kb.put_orthologs(table(man, fish, "symbol", 1.0), "b.tsv") == 0
        assert kb.orthologs()["kind"].tolist() == ["one2many"]
        assert kb.put_orthologs(table(man, fish, "one2one", None), "c.tsv") == 0
        assert kb.orthologs()[["gene_id", "kind", "source"]].values.tolist() == [
            ["HGNC:1", "one2one", "c.tsv"]
        ]


@pytest.mark.slow
def test_unchanged_ids_work_from_ingest_to_query(tmp_path: Path, new_store: Callable[[Path], Path]) -> None:
    cells = anndata.read_h5ad(DATA / "baron_human.h5ad")
    kept = np.argsort(-np.asarray(cells.X.sum(axis=0)).ravel())[:2000]
    cells = cells[:, kept].copy()
    cells.var = pd.DataFrame(index=[f"g{i:05d}" for i in range(cells.n_vars)])
    known = cells.obs["donor"].isin(["human1", "human2"]).to_numpy()
    store = new_store(tmp_path / "store")
    with pytest.raises(InputError):
        scvec.ingest_cells(store, [cells[known].copy()], name="r", label_key="cell_type")
    scvec.ingest_cells(store, [cells[known].copy()], name="r", label_key="cell_type", species="other")
    new = cells[~known].copy()
    found = scvec.query(store, new)  # the species is that of the reference
    assert found.parameters["species"] == "other"
    assert np.mean(found.label == new.obs["cell_type"].to_numpy().astype(str)) > 0.9
    assert any("the genes of other are not in the store" in note for note in found.notes)
    top = found.explain(label="beta")
    assert "g0" in "\n".join(top.lines())
    for call in (
        lambda: scvec.search_cells(store, "insulin", reference="r"),
        lambda: scvec.search_genes(store, "insulin", species="other"),
        lambda: scvec.gene_info(store, ["g00001"], species="other"),
        lambda: scvec.ingest_cells(
            store, [new], name="t", label_key="cell_type", species="other", encoder="weighted"
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == "species-not-loaded"
    other = new[:, :1000].copy()
    other.var_names = [f"x{i:05d}" for i in range(other.n_vars)]
    with pytest.raises(InputError) as caught:
        scvec.query(store, other, reference="r")
    assert caught.value.code == "genes-not-recognised" and "same ids" in (caught.value.fix or "")
    packed = scvec.pack(store, "r", output=tmp_path / "r.scvec")
    assert packed.n_cells == int(known.sum())


@pytest.mark.slow
def test_a_reference_of_three_species_answers_a_fourth(
    tmp_path: Path, renamed: dict[str, list[str]], new_store: Callable[[Path], Path]
) -> None:
    human = anndata.read_h5ad(DATA / "baron_human.h5ad")
    resolver = snapshot_resolver()
    genes = pd.read_parquet(DATA / "snapshot" / "more_genes.parquet").set_index("gene_id")["symbol"]
    pairs = pd.read_parquet(DATA / "snapshot" / "more_orthologs.parquet")
    ids = resolver.resolve(list(human.var_names), "human").gene_ids

    def as_species(cells: anndata.AnnData, species: str) -> anndata.AnnData:
        own = pairs[(pairs["species"] == species) & (pairs["other_species"] == "human")]
        partner = dict(zip(own["other_id"], own["gene_id"].map(genes), strict=True))
        kept = [i for i, g in enumerate(ids) if g in partner]
        found = cells[:, kept].copy()
        found.var = pd.DataFrame(index=[partner[ids[i]] for i in kept])
        found.var_names_make_unique()
        return found

    donors = human.obs["donor"].astype(str).to_numpy()
    parts = [human[donors == f"human{i}"].copy() for i in (1, 2, 3, 4)]
    store = new_store(tmp_path / "store")
    scvec.ingest_genes(store, species=("zebrafish", "pig", "chicken"))
    three = [parts[0], as_species(parts[1], "pig"), as_species(parts[2], "zebrafish")]
    scvec.ingest_cells(store, three, name="r", label_key="cell_type", batch_key="donor")
    new = as_species(parts[3], "chicken")
    found = scvec.query(store, new, reference="r")
    assert found.parameters["species"] == "chicken"
    crossed = found.parameters["orthologs"]
    assert crossed["path"][0] == "chicken" and 0 < crossed["crossed"] <= crossed["genes"]
    truth = new.obs["cell_type"].astype(str).to_numpy()
    known = np.isin(truth, found.classes)
    assert np.mean(found.label[known] == truth[known]) > 0.85
