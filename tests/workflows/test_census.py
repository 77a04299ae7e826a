"""References of the Census: sampling, stored values, refused input, and killed runs."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from census_parts import write_census
from click.testing import CliRunner
from filelock import FileLock
from hypothesis import example, given
from hypothesis import strategies as st

import scvec
from scvec.base.errors import InputError, LockedError, NetworkError, ScvecError
from scvec.cli.main import cli
from scvec.model.card import card_of
from scvec.stores.store.store import Store
from scvec.workflows import ingest_census as source
from scvec.workflows.ingest_census import (
    CensusOptions,
    check_where,
    draw,
    draw_cells,
    gathered,
    open_census,
    recipes,
    value_filter,
)

PROJECT = Path(__file__).resolve().parents[2]
NORMAL = "disease == 'normal'"
MEMORY = 2**30


@pytest.fixture(scope="module")
def animals():
    """The cells that ship, over genes that vary most."""
    found = {}
    for organism in ("human", "mouse"):
        adata = anndata.read_h5ad(PROJECT / "scvec" / "data" / f"baron_{organism}.h5ad")
        sums = np.asarray(adata.X.sum(axis=0)).ravel()
        found[organism] = adata[::2, np.sort(np.argsort(-sums)[:1500])].copy()
    return found


@pytest.fixture(scope="module")
def uri(tmp_path_factory, animals) -> str:
    """A Census of them; dataset-1 did not measure the first seven genes."""
    for package in ("tiledbsoma", "cellxgene_census"):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("census") / "soma"
    return str(write_census(path, animals, absent={"dataset-1": list(range(7))}))


@pytest.fixture
def small(uri) -> CensusOptions:
    return CensusOptions(
        name="islets", tissue=("pancreas",), where=NORMAL, uri=uri, max_per_type=40, min_cells=25
    )


@pytest.fixture
def opened(uri):
    with open_census("human", uri=uri, version="stable", memory=MEMORY) as census:
        yield census


# What is drawn


def frame(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    """Cells of types, datasets and donors, by number."""
    table = pd.DataFrame(rows, columns=["t", "s", "d"])
    return pd.DataFrame(
        {
            "soma_joinid": np.arange(len(rows)),
            "cell_type": pd.Categorical("type " + table["t"].astype(str)),
            "cell_type_ontology_term_id": pd.Categorical("CL:000010" + table["t"].astype(str)),
            "dataset_id": pd.Categorical("set " + table["s"].astype(str)),
            "donor_id": pd.Categorical("donor " + table["d"].astype(str)),
        }
    )


def is_level(taken: Counter, there: Counter) -> bool:
    """Whether as many were taken of each as can be: all, or the same number but for one."""
    level = max(taken.values())
    return all(taken[k] == n or taken[k] >= level - 1 for k, n in there.items())


cells_of = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=150
)


@given(cells_of, st.integers(1, 25), st.integers(1, 12), st.integers(0, 5))
@example([(0, 0, 0)] * 30 + [(0, 1, d) for d in (0, 1, 2)] * 30, 20, 1, 0)
def test_each_type_gives_the_promised_number_of_datasets_and_donors_alike(rows, most, least, seed):
    taken, _ = draw(frame(rows), max_per_type=most, min_cells=least, seed=seed)
    assert len(set(taken)) == len(taken) and (np.diff(taken) > 0).all()
    there, got = Counter(t for t, _, _ in rows), Counter(rows[k][0] for k in taken)
    assert got == {t: min(n, most) for t, n in there.items() if n >= least}
    for t in got:
        of_sets = Counter(s for a, s, _ in rows if a == t)
        got_sets = Counter(rows[k][1] for k in taken if rows[k][0] == t)
        assert is_level(got_sets, of_sets)
        for s in got_sets:
            of_donors = Counter(d for a, b, d in rows if (a, b) == (t, s))
            assert is_level(Counter(rows[k][2] for k in taken if rows[k][:2] == (t, s)), of_donors)


def test_a_seed_draws_the_same_cells_and_another_one_others():
    table = frame([(k % 2, k % 3, k % 5) for k in range(400)])
    first, again, other = (draw(table, max_per_type=30, min_cells=1, seed=s)[0] for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_cells_without_a_type_are_left_out():
    table = frame([(k % 4, 0, 0) for k in range(40)])
    ids = table["cell_type_ontology_term_id"].cat.rename_categories(
        {"CL:0000100": "unknown", "CL:0000101": "CL:0000000"}
    )
    taken, notes = draw(table.assign(cell_type_ontology_term_id=ids), max_per_type=50, min_cells=11, seed=0)
    assert not len(taken)
    assert [n.split()[2] for n in notes] == ["20", "2"]


def test_the_draw_of_a_census(opened, small, animals):
    drawn = draw_cells(opened, small)
    whole = opened.cells("")
    obs = pd.DataFrame(animals["human"].obs)
    assert {"tissue", "tissue_general", "assay"} <= set(drawn.obs) and "is_primary_data" not in drawn.obs
    assert set(drawn.obs["disease"]) == {"normal"} and "dataset-99" not in set(drawn.obs["dataset_id"])
    normal = opened.cells(f"is_primary_data == True and {NORMAL}")
    there = normal["cell_type"].value_counts()
    assert drawn.obs["cell_type"].value_counts().to_dict() == {
        t: min(n, 40) for t, n in there.items() if n >= 25
    }
    assert len(whole) > len(obs) == opened.cells("is_primary_data == True").shape[0]
    # The cells that ship say which type, id and donor each has: obs has their order.
    rows = drawn.obs["soma_joinid"].to_numpy()
    for ours, theirs in (
        ("cell_type", "cell_ontology_class"),
        ("cell_type_ontology_term_id", "cell_ontology_id"),
        ("donor_id", "donor"),
    ):
        assert drawn.obs[ours].astype(str).tolist() == obs[theirs].iloc[rows].astype(str).tolist()
    assert drawn.obs["batch"].nunique() == 4


def test_counts_are_those_of_the_census(opened, small, animals, tmp_path):
    drawn = draw_cells(opened, small)
    with gathered(opened, drawn, tmp_path) as (path, n_bytes):
        assert n_bytes > 0
        read = anndata.read_h5ad(path)
    truth = animals["human"][drawn.obs["soma_joinid"].to_numpy()]
    # Half of the cells are of a dataset that lacks seven genes, which are left out for all.
    assert list(read.var_names) == list(truth.var_names[7:])
    assert abs(read.X - truth.X[:, 7:]).sum() == 0
    assert list(tmp_path.iterdir()) == []


# Conditions

HOSTILE = [
    "__import__('os').system('touch harm')",
    "open('/etc/passwd')",
    "disease == 'a') or (is_primary_data == False",
    "disease == 'normal' or True",
    "disease == tissue",
    "disease == f'{1}'",
    "(lambda: 1)() == 1",
    "disease.__class__ == 'x'",
    "attr('disease') == 'x'",
    "[disease == 'x' for _ in '12']",
    "disease == 'normal' if 1 else 0",
    "1 == 1",
    "disease",
    "disease in 'normal'",
    "disease in []",
    "1 < nnz < 5",
    "disease == b'x'",
    "disease == None",
    "disease == 'normal'; import os",
    "disease := 'x'",
    "not " * 900 + "disease == 'x'",
    "(" * 400 + "disease == 'x'" + ")" * 400,
    "disease == '" + "x" * 5000 + "'",
    "disease == 'nul\0'",
    "disease = 'normal'",
]


@pytest.mark.parametrize("where", HOSTILE, ids=range(len(HOSTILE)))
def test_conditions_that_are_no_comparisons_are_refused(where):
    with pytest.raises(InputError) as error:
        check_where(where)
    assert error.value.code == "bad-where" and len(error.value.lines()) <= 3


def test_a_comment_does_not_reach_soma():
    assert check_where("disease == 'x' # )") == "disease == 'x'"


def test_an_or_widens_nothing(opened):
    where = "disease == 'normal' or disease != 'normal'"
    condition = value_filter(["pancreas"], where, opened.columns)
    assert len(opened.cells(condition)) == len(opened.cells("is_primary_data == True"))
    assert len(opened.cells(value_filter([], "is_primary_data == False"))) > 0


def test_soma_gets_the_condition(opened):
    kept = opened.cells(value_filter([], "not (disease == 'normal') and donor_id in ['human1', 'zz']"))
    assert len(kept) and set(kept["donor_id"].astype(str)) == {"human1"}
    n = opened.cells(value_filter([], "nnz > 700"))
    assert (n["nnz"] > 700).all() and 0 < len(n) < len(opened.cells(value_filter([], "nnz > -1")))


def test_a_tissue_with_quotes_is_a_text(opened):
    assert len(opened.cells(value_filter(["x'] or nnz in [1"], "", opened.columns))) == 0


def test_an_unknown_column_gets_a_hint(opened):
    with pytest.raises(InputError) as error:
        value_filter([], "diseas == 'normal'", opened.columns)
    assert error.value.code == "unknown-column" and "disease" in error.value.fix


# The reference


@pytest.fixture(scope="module")
def made(uri, tmp_path_factory, new_store):
    """A store with references of the human and the mouse cells."""
    store = new_store(tmp_path_factory.mktemp("made") / "store")
    options = {"tissue": ("pancreas",), "uri": uri, "max_per_type": 40, "min_cells": 25}
    human = scvec.ingest_census(store, name="islets", where=NORMAL, **options)
    mouse = scvec.ingest_census(store, organism="mouse", **options)
    return store, human, mouse


def test_a_reference_has_labels_ids_and_batches(made):
    store, human, mouse = made
    assert (human.name, mouse.name) == ("islets", "pancreas-mouse")
    stored = Store(store).reference("islets")
    assert stored.n == human.n_cells == sum(human.classes.values()) and human.made is not None
    terms = dict(zip(stored.meta["classes"], stored.meta["ontology"]["terms"], strict=True))
    assert terms["type B pancreatic cell"] == "CL:0000169" and set(terms) == set(human.classes)
    assert len(stored.obs) == len(set(stored.obs["soma_joinid"])) == stored.n
    assert stored.meta["model"]["calibration"]["held_out"] == "batch"
    assert Store(store).reference("pancreas-mouse").meta["species"] == "mouse"
    assert not list((store / "work").glob("census*"))


def test_the_card_cites_every_dataset(made):
    store, human, _ = made
    stored = Store(store).reference("islets")
    card = card_of(stored)
    used = set(stored.obs["dataset_id"].astype(str))
    assert len(used) == human.n_datasets == 2
    assert all(any(f"10.1/{d} " in s for s in card.sources) for d in used)
    assert not any("dataset-99" in s or "dataset-10" in s for s in card.sources)
    assert card.license == "CC-BY-4.0" and card.tissue == "pancreas" and not card.gaps
    origin = stored.meta["origin"]
    assert origin["census"]["build_date"] == "2025-01-30" and origin["draw"]["seed"] == 0
    assert {d["doi"] for d in origin["datasets"]} == {f"10.1/{d}" for d in used}
    assert sum(d["n_cells"] for d in origin["datasets"]) == stored.n


def test_a_dry_run_tells_what_the_run_takes(made, uri, tmp_path):
    _, human, _ = made
    store = tmp_path / "none"
    options = {"tissue": ("pancreas",), "where": NORMAL, "max_per_type": 40, "min_cells": 25}
    told = scvec.ingest_census(store, name="islets", uri=uri, dry_run=True, **options)
    assert not store.exists() and told.made is None
    assert told.classes == human.classes and told.n_cells == human.n_cells
    assert told.megabytes == pytest.approx(human.megabytes, rel=0.1) and told.minutes > 0


def test_the_command(uri, tmp_path):
    words = f"ingest census --tissue pancreas --uri {uri} --min-cells 25 --dry-run --json".split()
    done = CliRunner().invoke(cli, [*words, "--store", str(tmp_path / "store"), "--where", NORMAL])
    assert done.exit_code == 0, done.stderr
    assert '"type B pancreatic cell"' in done.stdout and not (tmp_path / "store").exists()


# What goes wrong


@pytest.mark.parametrize("package", ["cellxgene_census", "tiledbsoma"])
def test_without_the_packages_the_extra_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    words = ["ingest", "census", "--recipe", "lung", "--dry-run", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(cli, words)
    lines = done.stderr.strip().splitlines()
    assert done.exit_code == 2 and len(lines) == 3 and "pip install 'scvec[census]'" in lines[2]
    assert not (tmp_path / "store").exists()


def refusal(**options) -> ScvecError:
    with pytest.raises(ScvecError) as error:
        scvec.ingest_census("store", **options)
    assert len(error.value.lines()) <= 3
    return error.value


def test_what_cannot_be_used_is_refused(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal().code == "input"
    assert refusal(recipe="lungs").code == refusal(tissue=("x",), organism="rat").code == "unknown-choice"
    assert refusal(tissue=("x",), max_per_type=1).code == "option-out-of-range"
    assert refusal(tissue=("x",), name="../x").code == "bad-name"
    assert refusal(tissue=("x",), uri=str(tmp_path / "none")).code == "census-not-readable"
    (tmp_path / "file").write_text("x")
    assert refusal(tissue=("x",), uri=str(tmp_path / "file")).code == "census-not-readable"
    gone = refusal(tissue=("lung",), uri=uri)
    assert gone.code == "no-cells" and "pancreas" in gone.fix
    assert refusal(tissue=("pancreas",), uri=uri, min_cells=10_000).code == "no-cells"
    assert not (tmp_path / "store").exists()


def test_a_lost_connection_is_told(uri, monkeypatch, tmp_path):
    import cellxgene_census

    def fail(**_):
        raise ConnectionError("no route")

    monkeypatch.setattr(cellxgene_census, "open_soma", fail)
    with pytest.raises(NetworkError):
        scvec.ingest_census(tmp_path / "store", recipe="lung")


def test_recipes_can_be_used():
    known = recipes()
    assert {organism: len(names) for organism, names in known.items()} == {"human": 20, "mouse": 10}
    for organism, names in known.items():
        for name, values in names.items():
            asked = CensusOptions(recipe=name, organism=organism)
            assert asked.name == f"{name}-{organism}" and asked.tissue == tuple(values["tissue"])
            assert check_where(asked.where) == NORMAL
            assert asked.max_per_type >= 500 and asked.min_cells >= 30
    asked = CensusOptions(recipe="lung", max_per_type=7, where="nnz > 1", name="mine")
    assert (asked.max_per_type, asked.where, asked.name, asked.tissue) == (7, "nnz > 1", "mine", ("lung",))


# Runs that are stopped


def test_what_was_read_is_not_read_again(opened, small, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PIECE", 32)
    drawn = draw_cells(opened, small)
    n = len(drawn.obs)
    asked: list[int] = []
    counts = opened.counts

    def counting(joinids, genes):
        if len(asked) == 4:
            raise NetworkError("gone")
        asked.append(len(joinids))
        return counts(joinids, genes)

    monkeypatch.setattr(opened, "counts", counting)
    with pytest.raises(NetworkError), gathered(opened, drawn, tmp_path):
        pass
    folder = tmp_path / f"census-{drawn.key}"
    assert len(list(folder.glob("*.safetensors"))) == 4
    # One piece is damaged, and one has lost its end: both are read again, and nothing else.
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-4] + b"abcd")
    second.write_bytes(second.read_bytes()[:100])
    (folder / "9-99-x.part").write_bytes(b"half")
    asked.clear()
    monkeypatch.setattr(opened, "counts", lambda j, g: asked.append(len(j)) or counts(j, g))
    with gathered(opened, drawn, tmp_path) as (path, _):
        assert sum(asked) == n - 64
        read = anndata.read_h5ad(path)
    monkeypatch.undo()
    assert read.n_obs == n
    whole = opened.counts(drawn.obs["soma_joinid"].to_numpy(), drawn.var["soma_joinid"].to_numpy())
    assert abs(read.X - whole).sum() == 0


def test_pieces_of_another_memory_are_used(opened, small, tmp_path, monkeypatch):
    drawn = draw_cells(opened, small)
    for size in (64, 24, 100):
        monkeypatch.setattr(source, "PIECE", size)
        pieces = source.read_pieces(opened, drawn, tmp_path)
        for lost in pieces[1::3]:
            lost.unlink()
    pieces = source.read_pieces(opened, drawn, tmp_path)
    ends = [tuple(map(int, p.name.split("-")[:2])) for p in pieces]
    assert ends[0][0] == 0 and ends[-1][1] == len(drawn.obs)
    assert all(a[1] == b[0] for a, b in pairwise(ends))


def test_two_runs_do_not_meet(opened, small, tmp_path):
    drawn = draw_cells(opened, small)
    with (
        gathered(opened, drawn, tmp_path),
        pytest.raises(LockedError),
        gathered(opened, drawn, tmp_path),
    ):
        pass


def test_compact_deletes_pieces_that_nobody_reads(tmp_path, new_store):
    store = new_store(tmp_path / "store")
    folder = store / "work" / "census-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "0-9-0123456789abcdef.safetensors").write_bytes(b"x")
    with FileLock(folder / "lock"):
        Store(store).compact()
        assert len(list(folder.glob("*.safetensors"))) == 1
    Store(store).compact()
    assert not list(folder.glob("*.safetensors"))


KILLED = """
import os, signal, sys, threading, time
import scvec.workflows.ingest_census as source
from scvec.workflows.ingest_census import ingest_census
source.PIECE = 16
store, uri, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
begun = time.perf_counter()
if seconds >= 0:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
options = {"where": "disease == 'normal'", "max_per_type": 40, "min_cells": 25}
ingest_census(store, name="islets", tissue=("pancreas",), uri=uri, **options)
print(time.perf_counter() - begun)
if seconds >= 0:
    time.sleep(60)
"""


@pytest.mark.kill
@pytest.mark.timeout(3000)
@pytest.mark.slow
def test_killed_runs_are_finished_and_nothing_is_doubled(uri, made, tmp_path, new_store, monkeypatch):
    """Whatever the moment, the reference is whole or not there, and the next run reads the rest only.

    ``SCVEC_KILLS`` says how often.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, sys.path)])}
    first = Store(made[0]).reference("islets")

    def run(store, seconds):
        words = [sys.executable, "-c", KILLED, str(store), uri, str(seconds)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == (-signal.SIGKILL if seconds >= 0 else 0), done.stderr
        return done.stdout

    takes = float(run(new_store(tmp_path / "whole"), -1))
    monkeypatch.setattr(source, "PIECE", 16)
    asked: list[int] = []
    counts = source.Census.counts
    monkeypatch.setattr(
        source.Census, "counts", lambda self, j, g: asked.append(len(j)) or counts(self, j, g)
    )
    chance, found, pieces = random.Random(5), [], []
    for k in range(int(os.environ.get("SCVEC_KILLS", "4"))):
        store = new_store(tmp_path / f"store{k}")
        run(store, chance.uniform(0, takes))
        assert Store(store).verify().to_dict()["problems"] == []
        read = [p.name.split("-") for p in (store / "work").glob("census-*/*.safetensors")]
        pieces.append(len(read))
        found.append("islets" in Store(store).references())
        asked.clear()
        scvec.ingest_census(
            store, name="islets", where=NORMAL, tissue=("pancreas",), uri=uri, max_per_type=40, min_cells=25
        )
        if not found[-1]:
            assert sum(asked) == first.n - sum(int(p[1]) - int(p[0]) for p in read)
        last = Store(store).reference("islets")
        assert Store(store).verify().to_dict()["problems"] == []
        assert last.obs["soma_joinid"].tolist() == first.obs["soma_joinid"].tolist()
        assert last.n == len(set(last.obs["soma_joinid"])) and np.array_equal(last.vectors, first.vectors)
        assert not list((store / "work").glob("census-*"))
        shutil.rmtree(store)
    assert not all(found)
    print(f"{len(found)} kills within {takes:.1f} s, {sum(found)} after the reference was there; {pieces}")
