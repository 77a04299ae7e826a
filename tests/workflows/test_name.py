"""``scvec name``: groups of real cells, lists, and files that it writes."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import scvec
from scvec.base.errors import InputError
from scvec.cli.main import cli
from scvec.model.known_markers import listed_genes, marker_index, ortholog_key
from scvec.workflows.name import knowledge

LISTS = (
    "group,genes,tissue,species\n"
    "b,MS4A1 CD79A CD79B CD19 BANK1 HLA-DRA CD74,blood,human\n"
    "t,CD3D CD3E TRAC IL7R LTB CD2,blood,human\n"
    "endothelial,Pecam1 Cdh5 Kdr Flt1 Eng Plvap,lung,mouse\n"
    "none,FOO BAR,,\n"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory, new_store) -> Path:
    return new_store(tmp_path_factory.mktemp("names") / "store")


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    path = files("scvec") / "data" / "baron_human.h5ad"
    return anndata.read_h5ad(str(path))


def test_lists_by_the_shipped_markers(store, tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text(LISTS)
    done = CliRunner().invoke(cli, ["name", "--markers", str(path), "--json", "--store", str(store)])
    assert done.exit_code == 0, done.output
    groups = {g["group"]: g for g in json.loads(done.stdout)["groups"]}
    assert groups["b"]["candidates"][0]["label"] == "B cell"
    assert groups["b"]["candidates"][0]["cl_id"] == "CL:0000236"
    assert "MS4A1" in [s["gene"] for s in groups["b"]["candidates"][0]["for"]]
    assert "T cell" in groups["t"]["candidates"][0]["label"] or "T cell" in groups["t"]["broad"]["label"]
    assert "endothelial" in groups["endothelial"]["candidates"][0]["label"]
    assert groups["none"]["status"] == "unknown"


def test_without_a_store_the_same_answer(store, tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text(LISTS)
    assert scvec.name(None, markers=path).to_dict() == scvec.name(store, markers=path).to_dict()


def test_ids_of_an_unknown_species_cannot_be_named(store, cells):
    other = cells[:50, :2000].copy()
    other.var = pd.DataFrame(index=[f"g{i:05d}" for i in range(other.n_vars)])
    for species, code in (("other", "species-not-loaded"), ("auto", "genes-not-recognised")):
        with pytest.raises(InputError) as caught:
            scvec.name(store, other, groupby="cell_type", species=species)
        assert caught.value.code == code


def test_groups_of_real_cells(store, cells, tmp_path):
    out = tmp_path / "named.h5ad"
    few = cells[cells.obs["cell_type"].isin(["alpha", "beta", "ductal", "endothelial", "acinar"])].copy()
    few.write_h5ad(tmp_path / "in.h5ad")
    report = scvec.name(store, tmp_path / "in.h5ad", groupby="cell_type", tissue="pancreas", output=out)
    best = {g.group: g.candidates[0].cl_id for g in report.groups}
    true = few.obs.groupby("cell_type", observed=True)["cell_ontology_id"].first().to_dict()
    assert {t: best[t] for t in ("alpha", "beta", "acinar", "endothelial")} == {
        t: true[t] for t in ("alpha", "beta", "acinar", "endothelial")
    }
    named = anndata.read_h5ad(out)
    assert named.n_obs == few.n_obs
    first = named.obs[named.obs["cell_type"] == "beta"].iloc[0]
    assert first["scvec_name_confidence"] > 0
    assert {"scvec_name", "scvec_name_cl_id", "scvec_name_broad"} <= set(named.obs.columns)
    scvec.name(store, few, groupby="cell_type", output=tmp_path / "t.csv")
    assert set(pd.read_csv(tmp_path / "t.csv")["group"]) == set(best)


def test_one_type_only_and_three_cells(store, cells):
    one = cells[cells.obs["cell_type"] == "acinar"].copy()
    report = scvec.name(store, one, groupby="cell_type", tissue="pancreas")
    assert "acinar" in report.groups[0].candidates[0].label
    assert report.groups[0].notes
    assert len(scvec.name(store, one[:3].copy()).groups) == 1


def test_only_novel_cells(store, cells):
    some = cells[cells.obs["cell_type"].isin(["alpha", "beta"])].copy()
    novel = some.obs["cell_type"] == "beta"
    some.obs["scvec_status"] = novel.map({True: "novel", False: "confident"}).astype(str)
    report = scvec.name(store, some, only="novel", groupby="cell_type", tissue="pancreas")
    assert [g.group for g in report.groups] == ["beta"]
    with pytest.raises(InputError):
        scvec.name(store, some[~novel.to_numpy()].copy(), only="novel", groupby="cell_type")
    some.obs["scvec_label"] = np.where(np.arange(some.n_obs) % 2, "delta", "gamma")
    report = scvec.name(store, some, only="novel", tissue="pancreas")
    assert sorted(g.group for g in report.groups) == ["novel, like delta", "novel, like gamma"]


@pytest.mark.parametrize(
    "given", [{}, {"groupby": "nothing"}, {"only": "other"}, {"only": "novel", "groupby": "cell_type"}]
)
def test_what_cannot_be_named(store, cells, given):
    with pytest.raises(InputError):
        scvec.name(store, None if not given else cells[:20].copy(), **given)


def test_a_table_is_read_once(store, tmp_path, new_store):
    own = new_store(tmp_path / "own")
    table = tmp_path / "mine.csv"
    table.write_text("gene,cell_type,tissue\nINS,alpha cell,moon\nXYZ1,no such type,\n")
    first = scvec.ingest_markers(own, [table])
    again = scvec.ingest_markers(own, [table])
    assert first.n_markers == 1 and first.unmapped == {"no such type": 1}
    assert first.n_stored == again.n_stored
    dry = scvec.ingest_markers(own, [table], dry_run=True)
    assert dry.generation == ""


@pytest.mark.parametrize(
    ("genes", "tissue", "species", "label"),
    [
        ("Cd79a Ms4a1 Cd19", "spleen", "mouse", "B cell"),  # mouse case
        ("MS4A1 CD20 CD79A", "PBMC", "", "B cell"),  # an alias beside its symbol
        ("GCG TTR ARX IRX2", "islets", "", "pancreatic A cell"),
        ("KIAA0101 MKI67 FOO", "moon", "", ""),  # nothing known, in an unknown tissue
        ("RPL10 RPS6 MS4A1 RPL13 CD79A RPLP1 CD79B", "blood", "human", "B cell"),  # ribosomal genes between
        ("ALB APOA1 TTR", "liver", "human", "hepatocyte"),
        ("NPHS1 NPHS2 WT1 PODXL", "kidney", "human", "podocyte"),
        ("ADIPOQ PLIN1 LEP CIDEC", "adipose", "", "adipocyte"),
        ("NKG7 GNLY KLRD1 NCAM1 KLRF1", "blood", "human", "natural killer cell"),
    ],
)
def test_short_and_noisy_lists(store, tmp_path, genes, tissue, species, label):
    path = tmp_path / "lists.csv"
    path.write_text(f"group,genes,tissue,species\na,{genes},{tissue},{species}\n")
    [group] = scvec.name(store, markers=path).groups
    if label:
        assert group.candidates[0].label == label
    else:
        assert group.status in ("unknown", "broad", "named")


def test_a_name_by_one_gene_is_less_sure(store, tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text("group,genes\n1,MS4A1\n5,MS4A1 CD79A CD79B CD19 BANK1\n")
    one, five = (g.candidates[0] for g in scvec.name(store, markers=path).groups)
    assert five.label == "B cell" and one.probability < 0.7 < five.probability


def test_a_group_without_specific_genes_and_a_species_without_markers(store, cells, tmp_path):
    some = cells[cells.obs["cell_type"] == "alpha"].copy()
    some.obs["half"] = ["a", "b"] * (some.n_obs // 2) + ["a"] * (some.n_obs % 2)
    report = scvec.name(store, some, groupby="half")
    assert len(report.groups) == 2
    path = tmp_path / "lists.csv"
    path.write_text("group,genes,species\na,MS4A1 CD79A,zebrafish\n")
    [group] = scvec.name(store, markers=path).groups
    assert (group.status, group.candidates) == ("unknown", ()) and "zebrafish" in group.notes[0]


@pytest.fixture(scope="module")
def lacking(tmp_path_factory, cells):
    """A query by a reference that has no acinar cells."""
    kinds = cells.obs["cell_type"].astype(str)
    few = cells[(kinds.groupby(kinds).cumcount() < 80).to_numpy()]
    first = np.arange(few.n_obs) % 2 == 0
    reference = few[first & (few.obs["cell_type"] != "acinar").to_numpy()].copy()
    query = few[~first].copy()
    store = tmp_path_factory.mktemp("lacking") / "store"
    report = scvec.ingest_cells(store, [reference], name="islets", label_key="cell_type")
    page = store.parent / "report.html"
    found = scvec.query(store, query, name_novel=True, tissue="pancreas", report=page)
    return store, reference, query, found, page, report


@pytest.mark.slow
def test_groups_of_novel_cells_are_named_in_a_query(lacking):
    store, _, query, found, page, _ = lacking
    table = found.to_table()
    novel = (table["scvec_status"] == "novel").to_numpy()
    assert novel.any() and (table["scvec_name"][novel] != "").all()
    assert (table["scvec_name"][~novel] == "").all()
    assert table["scvec_name_confidence"][~novel].isna().all()
    acinar = novel & (query.obs["cell_type"] == "acinar").to_numpy()
    assert table["scvec_name"][acinar].astype(str).str.contains("acinar").mean() > 0.8
    groups = found.to_dict()["novel_groups"]
    assert sum(g["n_cells"] for g in groups) == novel.sum()
    assert any("acinar" in line for line in found.lines())
    text = page.read_text(encoding="utf-8")
    assert "Names for novel cells" in text and "known marker (" in text
    annotated = found.to_adata(query, copy=True)
    again = scvec.query(store, annotated, reference="islets").to_adata(annotated, copy=True)
    assert "scvec_name" not in again.obs.columns  # what an earlier answer left goes


@pytest.mark.slow
def test_markers_are_evidence_for_labels(lacking):
    found = lacking[3]
    genes = {g.symbol: g.marker_of for g in found.explain(label="beta", n_genes=20).genes}
    assert genes["INS"] and not all(genes.values())


@pytest.mark.slow
def test_swapped_labels_give_a_warning(lacking):
    store, reference, *_, good = lacking
    assert not [n for n in good.notes if "known markers of labels" in n]
    swapped = reference.copy()
    # Ids of terms beside the labels would say what the cells are.
    swapped.obs = swapped.obs.drop(columns=["cell_ontology_id", "cell_ontology_class"])
    other = {"alpha": "ductal", "ductal": "alpha"}
    swapped.obs["cell_type"] = [other.get(t, t) for t in reference.obs["cell_type"].astype(str)]
    [note] = [
        n
        for n in scvec.ingest_cells(store, [swapped], name="bad", label_key="cell_type").notes
        if "known markers of labels" in n
    ]
    assert note.startswith("warning: ") and "'alpha'" in note and "'ductal'" in note


@pytest.fixture(scope="module")
def known(store):
    with knowledge(store) as (kb, resolver):
        key = ortholog_key(resolver)
        return resolver, marker_index(kb, resolver, key), key


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("CD3", {"CD3D", "CD3E", "CD3G"}),  # a complex
        ("CD16", {"FCGR3A"}),  # an alias of two genes
        ("VE-cadherin", {"CDH5"}),  # a protein
        ("CD45RO", {"PTPRC"}),  # an isoform
        ("KRT5/14", {"KRT5", "KRT14"}),
        ("CD19/MS4A1", {"CD19", "MS4A1"}),
        ("ICAM-1", {"ICAM1"}),
    ],
)
def test_names_of_proteins_in_lists_stand_for_their_genes(said, meant, known):
    resolver, index, key = known
    ids = dict(zip(resolver.resolve(sorted(meant), "human").gene_ids, sorted(meant), strict=True))
    found, left = listed_genes([said, "NKG7", "nonsense"], "human", resolver, index, key)
    assert left == ["nonsense"]
    assert {ids.get(gene) for gene, name in found.items() if name == said} == meant


def test_genes_with_a_minus_speak_against(store, tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text("group,genes,tissue\na,CD79A+ CD79B+ MS4A1- CD3-,blood\n")
    best = scvec.name(store, markers=path).groups[0].candidates[0]
    assert best.label == "B cell" and best.against == ("MS4A1",)
