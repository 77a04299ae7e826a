"""``scvec name``: groups of real cells, lists, and files that it writes."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import anndata
import pandas as pd
import pytest
from click.testing import CliRunner

import scvec
from scvec.base.errors import InputError
from scvec.cli.main import cli

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
