"""Gene identity, against facts about real genes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.model.resolvers import GeneResolver

if TYPE_CHECKING:
    import pandas as pd

INS, INS1, INS2 = "HGNC:6081", "MGI:96572", "MGI:96573"
TP53, TRP53 = "HGNC:11998", "MGI:98834"


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    from scvec.stores.knowledge.snapshot import Snapshot

    snapshot = Snapshot.open()
    genes = snapshot.table("genes").to_pandas()
    species = genes.set_index("gene_id").species
    aliases = snapshot.table("aliases").to_pandas()
    numbered = genes.dropna(subset=["entrez_id"])
    aliases = pd.concat(
        [
            aliases,
            genes.assign(name=genes.symbol, kind="symbol")[["gene_id", "kind", "name"]],
            numbered.assign(name=numbered.entrez_id.astype(int).astype(str), kind="entrez")[
                ["gene_id", "kind", "name"]
            ],
        ]
    )
    return aliases.assign(species=aliases.gene_id.map(species)), snapshot.table("orthologs").to_pandas()


@pytest.fixture(scope="module")
def resolver(tables: tuple[pd.DataFrame, pd.DataFrame]) -> GeneResolver:
    return GeneResolver(*tables)


@pytest.mark.parametrize(
    ("name", "gene_id", "how"),
    [
        ("INS", INS, "symbol"),
        ("ENSG00000254647", INS, "ensembl"),
        ("ENSG00000254647.7", INS, "ensembl"),
        ("ensg00000254647", INS, "ensembl"),
        ("3630", INS, "entrez"),
        ("IDDM2", INS, "previous"),
        ("ins", INS, "case"),
        ("Ins", INS, "case"),
        ("MARCH1", "HGNC:26077", "previous"),
        ("MARCHF1", "HGNC:26077", "symbol"),
        ("RNF171", "HGNC:26077", "alias"),
        ("HLA-A", "HGNC:4931", "symbol"),
        ("NKX2-2", "HGNC:7835", "symbol"),
        ("HLA-A_ENSG00000206503", "HGNC:4931", "composite"),
        ("ENSG00000206503_HLA-A", "HGNC:4931", "composite"),
        ("ENSG00000206503.14|HLA-A", "HGNC:4931", "composite"),
        ("nonsense_ENSG00000206503", "HGNC:4931", "composite"),
        ("GRCh38_INS", INS, "composite"),
        ("hg19_INS", INS, "composite"),
        ("GRCh38______ENSG00000254647", INS, "composite"),
        # R's make.names; NKX6.1 is also an alias of NKX6-2.
        ("HLA.A", "HGNC:4931", "composite"),
        ("NKX6.1", "HGNC:7839", "composite"),
        ("TBCE-1", "HGNC:11582", "unique-suffix"),
        ("TBCE.1", "HGNC:11582", "unique-suffix"),
        (" INS ", INS, "symbol"),
        ("no such gene", None, ""),
        ("mm10_INS", None, ""),
        ("1-Mar", None, ""),
        ("Mar-1", None, ""),
        ("", None, ""),
        ("ENSG99999999999", None, ""),
    ],
)
def test_human_names(resolver: GeneResolver, name: str, gene_id: str | None, how: str) -> None:
    match = resolver.resolve([name], "human")
    assert (match.gene_ids[0], match.how[0]) == (gene_id, how)


@pytest.mark.parametrize(
    ("name", "gene_id"),
    [("Ins1", INS1), ("Ins2", INS2), ("Trp53", TRP53), ("ENSMUSG00000035804.5", INS1), ("mm10___Ins1", INS1),
     ("INS1", INS1), ("March1", "MGI:1920175"), ("H2.K1", "MGI:95904"), ("Ins1-1", INS1)],
)  # fmt: skip
def test_mouse_names(resolver: GeneResolver, name: str, gene_id: str) -> None:
    assert resolver.resolve([name], "mouse").gene_ids == (gene_id,)


@pytest.mark.parametrize(
    ("names", "species", "id_type"),
    [
        (["INS", "GCG", "PRSS1", "KRT19"], "human", "symbols"),
        (["Ins1", "Ins2", "Gcg", "Krt19"], "mouse", "symbols"),
        (["ENSG00000254647.7", "ENSG00000115263"], "human", "Ensembl ids"),
        (["ENSMUSG00000035804"], "mouse", "Ensembl ids"),
        (["3630", "2641", "7157"], "human", "Entrez ids"),
        (["mm10_Ins1", "mm10_Gcg"], "mouse", "symbols"),
        (["MARCH1", "FLJ20668"], "human", "symbols"),
        ([], "human", "symbols"),
    ],
)
def test_species_and_kind_are_detected(
    resolver: GeneResolver, names: list[str], species: str, id_type: str
) -> None:
    match = resolver.resolve(names)
    assert (match.species, match.id_type) == (species, id_type)


def test_two_species_in_one_file_are_noted(resolver: GeneResolver) -> None:
    human = ["INS", "GCG", "PPY", "SST", "KRT19", "PRSS1", "CD3D", "CD19", "LYZ", "NKG7", "ALB", "TTR"]
    match = resolver.resolve([*human, *(n.capitalize() for n in human[:-1]), "Ins1", "Ins2"])
    assert any("are of" in note for note in match.notes)


def test_a_misspelled_species_is_refused(resolver: GeneResolver) -> None:
    with pytest.raises(InputError) as caught:
        resolver.resolve(["INS"], "zebrafsh")
    assert caught.value.code == "unknown-choice"


@pytest.mark.parametrize("species", ["other", "axolotl", "sheep"])
def test_names_of_an_unknown_species_are_used_unchanged(resolver: GeneResolver, species: str) -> None:
    match = resolver.resolve(["g00001", "INS"], species)
    assert match.species == species and match.gene_ids == ("g00001", "INS")
    assert any("are not in the store" in note for note in match.notes)


def test_ambiguous_names_are_reported_never_guessed(resolver: GeneResolver) -> None:
    # HGNC: QARS was a symbol of QARS1 and of EPRS1.
    match = resolver.resolve(["QARS", "INS", "QARS1"], "human")
    assert match.gene_ids == (None, INS, "HGNC:9751")
    assert match.how[0] == "ambiguous"
    assert match.ambiguous == {"QARS": ("HGNC:3418", "HGNC:9751")}
    assert any("QARS" in note for note in match.notes)


def test_composites_that_contradict_are_ambiguous(resolver: GeneResolver) -> None:
    match = resolver.resolve(["TP53_ENSG00000254647"], "human")
    assert match.gene_ids == (None,)
    assert set(match.ambiguous["TP53_ENSG00000254647"]) == {INS, TP53}


def test_two_names_of_one_gene_keep_it_and_say_so(resolver: GeneResolver) -> None:
    match = resolver.resolve(["INS", "ENSG00000254647", "GCG"], "human")
    assert match.gene_ids[:2] == (INS, INS)
    assert any(note.startswith("summed the counts of 2 names that belong to 1 gene") for note in match.notes)


def test_dates_of_a_spreadsheet_are_noted(resolver: GeneResolver) -> None:
    assert any("dates" in n for n in resolver.resolve(["1-Mar", "2-Sep", "INS"], "human").notes)


def test_kinds_of_names_and_unmatched_names_in_a_small_table() -> None:
    import pandas as pd

    rows = [
        ("a", "symbol", "AAA"), ("b", "symbol", "BBB"), ("b", "previous", "AAA"), ("c", "symbol", "CCC"),
        ("c", "alias", "OLD"), ("a", "alias", "OLD"), ("b", "previous", "OLD2"), ("c", "alias", "OLD2"),
    ]  # fmt: skip
    aliases = pd.DataFrame(rows, columns=["gene_id", "kind", "name"]).assign(species="human")
    pairs = pd.DataFrame(
        [], columns=["gene_id", "species", "other_id", "other_species", "kind", "confidence"]
    )
    match = GeneResolver(aliases, pairs).resolve(["AAA", "OLD", "OLD2", "bbb"], "human")
    assert match.gene_ids == ("a", None, "b", "b")
    assert match.ambiguous == {"OLD": ("a", "c")}


NAMES = [
    "INS",
    "ins",
    "QARS",
    "HLA.A",
    "TBCE-1",
    "3630",
    "ENSG00000254647.7",
    "MARCH1",
    "x",
    "",
    "1-Mar",
    "MT-CO1",
]


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(NAMES) | st.text(max_size=12), max_size=12), st.randoms(use_true_random=False)
)
def test_a_name_has_the_same_gene_alone_and_among_others(
    resolver: GeneResolver, names: list[str], rng: random.Random
) -> None:
    alone = {n: resolver.resolve([n], "human") for n in names}
    order = names.copy()
    rng.shuffle(order)
    match = resolver.resolve(order, "human")
    for name, gene_id, how in zip(match.names, match.gene_ids, match.how, strict=True):
        assert (gene_id,) == alone[name].gene_ids
        assert (how,) == alone[name].how
    assert set(match.ambiguous) == {n for n in names if alone[n].ambiguous}


@settings(max_examples=50)
@given(st.data())
def test_official_symbols_match_in_any_case(
    resolver: GeneResolver, tables: tuple[pd.DataFrame, pd.DataFrame], data: st.DataObject
) -> None:
    aliases, _ = tables
    official = aliases[(aliases.kind == "symbol") & (aliases.species == "human")]
    row = official.iloc[data.draw(st.integers(0, len(official) - 1))]
    assert resolver.resolve([row["name"]], "human").gene_ids == (row.gene_id,)
    cased = data.draw(st.sampled_from([str.lower, str.upper, str.swapcase]))(row["name"])
    match = resolver.resolve([cased], "human")
    assert match.gene_ids[0] == row.gene_id or match.how[0] in ("ambiguous", "symbol", "previous", "alias")


def weights(resolver: GeneResolver, names: Sequence[str], targets: Sequence[str], species: str) -> np.ndarray:
    gene_map = resolver.map_to(resolver.resolve(names), targets, species)  # type: ignore[arg-type]
    assert gene_map.weights.dtype == np.float32
    assert gene_map.weights.shape == (len(names), len(targets))
    assert (gene_map.measured == (gene_map.weights.toarray() > 0).any(axis=0)).all()
    return np.asarray(gene_map.weights.toarray())


def test_within_a_species_a_gene_is_itself(resolver: GeneResolver) -> None:
    got = weights(resolver, ["TP53", "INS", "KRT19", "nothing"], [INS, TP53], "human")
    assert got.tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]
    assert not resolver.map_to(resolver.resolve(["INS"]), [INS], "human").crossed


def test_ins1_and_ins2_are_summed_to_human_ins(resolver: GeneResolver) -> None:
    got = weights(resolver, ["Ins1", "Trp53", "Ins2"], [INS, TP53], "human")
    assert got.tolist() == [[1, 0], [0, 1], [1, 0]]
    gene_map = resolver.map_to(resolver.resolve(["Ins1", "Ins2"]), [INS], "human")
    assert gene_map.crossed
    assert gene_map.used.all()
    assert "orthologs" in gene_map.notes[0]


def test_one_gene_of_many_is_split_unless_a_namesake_is_there(resolver: GeneResolver) -> None:
    assert weights(resolver, ["INS"], [INS1, INS2], "mouse").tolist() == [[0.5, 0.5]]
    assert weights(resolver, ["INS"], [INS2, TRP53], "mouse").tolist() == [[1, 0]]
    prss1, prss2 = "HGNC:9475", "HGNC:9483"
    assert weights(resolver, ["Prss1"], [prss2, prss1], "human").tolist() == [[0, 1]]
    assert weights(resolver, ["Try4"], [prss1], "human").tolist() == [[1]]


def test_a_repeated_target_is_refused(resolver: GeneResolver) -> None:
    with pytest.raises(InputError, match="repeated id"):
        resolver.map_to(resolver.resolve(["INS"]), [INS, INS], "human")


@settings(max_examples=20)
@given(st.data())
def test_no_gene_counts_more_than_once(
    resolver: GeneResolver, tables: tuple[pd.DataFrame, pd.DataFrame], data: st.DataObject
) -> None:
    _, pairs = tables
    rows = pairs.iloc[data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=20))]
    aliases, _ = tables
    symbols = aliases[aliases.kind == "symbol"].set_index("gene_id").name
    names = [symbols[g] for g in rows.other_id.unique()]
    targets = sorted(rows.gene_id.unique())
    gene_map = resolver.map_to(resolver.resolve(names, "mouse"), targets, "human")
    total = np.asarray(gene_map.weights.sum(axis=1)).ravel()
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("file", "column", "species", "share"),
    [
        ("pancreas_baron_human.h5ad", None, "human", 0.999),
        ("pancreas_baron_mouse.h5ad", None, "mouse", 0.998),
        ("pbmc3k_10x.h5ad", None, "human", 0.99),
        ("pbmc3k_10x.h5ad", "ensembl", "human", 0.99),
    ],
)
def test_real_data(
    resolver: GeneResolver, shared_data: Path, file: str, column: str | None, species: str, share: float
) -> None:
    import anndata

    data = anndata.read_h5ad(shared_data / file)
    names = data.var_names if column is None else data.var[column]
    match = resolver.resolve(list(names))
    counts = np.asarray(data.X.sum(axis=0), dtype=np.float64).ravel()
    assert match.species == species
    assert match.count_share(counts) > share
