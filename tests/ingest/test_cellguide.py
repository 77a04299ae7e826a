"""Markers of CellGuide, from a fake server with bodies of the published shapes; and a toy source."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_cellguide import SNAPSHOT, add_cellguide, canonical, computed
from fake_faults import Faults
from fake_server import FakeServer

import scvec
from scvec.base.errors import InputError, NetworkError
from scvec.ingest.sources import MARKER_SOURCES, load_marker_source
from scvec.ingest.sources.cellguide import BEST
from scvec.stores.store.store import Store

B, T, N = "CL:0000236", "CL:0000084", "CL:0000540"
TYPES = {B: ["UBERON:0002048", "UBERON:0000178"], T: ["UBERON:0000178"], N: ["UBERON:0002048"]}
FILES = {
    "computational_marker_genes/CL_0000236.json": [
        computed("CD79A", 2.3, tissue="lung"),
        computed("MS4A1", 2.9),
        computed("Cd79a", 1.9, organism="Mus musculus"),
    ],
    "canonical_marker_genes/CL_0000236.json": [canonical("CD19"), canonical("CD19", "All Tissues")],
    "computational_marker_genes/CL_0000084.json": [computed("CD3D", 3.0)],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from scvec.ingest.sources import retry

    monkeypatch.setattr(retry, "LAST_WAITS", (0.01, 0.01, 0.05))
    monkeypatch.setitem(retry.Caller.__init__.__kwdefaults__, "pace", 0.02)


@pytest.fixture
def store(tmp_path, names_store) -> Path:
    return names_store(tmp_path / "store")


def ask(store: Path, server: FakeServer, **options):
    given = {"base_url": f"{server.url}/cg", "requests_per_second": 0, **options}
    return scvec.ingest_markers(store, ["cellguide"], **given)


def markers(store: Path) -> list[tuple]:
    with Store(store).knowledge() as kb:
        return [row for row in kb.markers() if row[6].startswith("cellguide")]


def test_markers_of_all_types_are_kept_with_their_source(store):
    with FakeServer(extra=[add_cellguide(TYPES, FILES)]) as server:
        report = ask(store, server)
    assert (report.live.n_wanted, report.live.n_answered) == (3, 2)
    assert report.live.failed[0].gene == N and report.live.failed[0].final
    assert "3 types" in report.lines()[0]
    assert markers(store) == [
        (T, "", "human", "CD3D", "positive", 3.0, "cellguide: computed"),
        (B, "", "human", "CD19", "positive", 1.0, "cellguide: canonical"),
        (B, "", "human", "MS4A1", "positive", pytest.approx(2.9), "cellguide: computed"),
        (B, "", "mouse", "Cd79a", "positive", pytest.approx(1.9), "cellguide: computed"),
        (B, "blood", "human", "CD19", "positive", 1.0, "cellguide: canonical"),
        (B, "lung", "human", "CD79A", "positive", pytest.approx(2.3), "cellguide: computed"),
    ]
    with Store(store).knowledge() as kb:
        assert kb.notes(B)[0].source_version == SNAPSHOT
    # What else is known of markers stays, and names are made with both.
    names = scvec.name(store, markers=lists(store))
    sources = {s for g in names.groups for c in g.candidates for m in c.supports for s in m["sources"]}
    assert {"test", "cellguide: computed"} <= sources


def lists(store: Path) -> Path:
    path = store.parent / "lists.csv"
    path.write_text('group,genes\nb,"MS4A1 CD79A"\n')
    return path


def test_a_second_run_asks_for_the_index_only_and_a_new_snapshot_for_all(store):
    with FakeServer(extra=[add_cellguide(TYPES, FILES)]) as server:
        ask(store, server)
        n = len(server.requests)
        again = ask(store, server)
        assert (again.live.n_known, again.live.n_asked) == (2, 0)
        assert len(server.requests) == n + 3  # snapshot, and the types of two species
        before = markers(store)
        assert ask(store, server, refresh=True).live.n_answered == 2 and markers(store) == before
    with FakeServer(extra=[add_cellguide(TYPES, {}, snapshot="1800000000"), newer]) as server:
        report = ask(store, server)
    assert report.live.n_answered == 1
    # The new answer takes the place of the old; what the new snapshot lacks stays.
    assert [m[3] for m in markers(store) if m[0] == T] == ["CD3E"] and len(markers(store)) == len(before)


def newer(app, server) -> None:
    from aiohttp import web

    async def file(request):
        path = request.match_info["path"]
        if path.endswith("9606/celltype_to_tissue_mapping.json"):
            return web.json_response({T: []})
        if path == "computational_marker_genes/CL_0000084.json":
            return web.json_response([computed("CD3E")])
        return web.Response(status=404)

    app.router.add_get("/cg/1800000000/{path:.*}", file)


def test_types_of_a_tissue_and_a_species(store):
    with FakeServer(extra=[add_cellguide(TYPES, FILES)]) as server:
        assert ask(store, server, tissues=["Lung"]).live.n_wanted == 2
        with pytest.raises(InputError):  # nothing is listed for mice, and nothing is no answer
            ask(store, server, species="mouse")
        with pytest.raises(InputError) as caught:
            ask(store, server, tissues=["lnug"])
    assert caught.value.code == "unknown-choice" and "lung" in caught.value.fix


@pytest.mark.parametrize("status", [200, 404])
def test_an_absent_file_is_empty_or_404(store, status):
    with FakeServer(extra=[add_cellguide(TYPES, FILES, status=status)]) as server:
        assert ask(store, server).live.n_answered == 2


def test_types_that_are_not_in_the_ontology_are_noted(store):
    odd = {"CL:9999999": [], "nonsense": [], "CL:12; DROP": [], **TYPES}
    with FakeServer(extra=[add_cellguide(odd, FILES)]) as server:
        report = ask(store, server)
    assert report.live.n_wanted == 3 and any("CL:9999999" in note for note in report.notes)
    assert not any("nonsense" in r.path for r in server.requests)


HOSTILE = {
    "rows of all kinds": [None, 3, "x", [], {}, {"symbol": 5}, {"symbol": "A", "groupby_dims": "x"}],
    "scores of all kinds": [computed("A", s) for s in ("2", None, True, -1, 0, 1e300, [1])],
    "names of all kinds": [
        computed(g) for g in ("", "A B", "A;DROP", "\x1b[31m", "x" * 500, "../../x", "=1+1")
    ],
    "other species": [computed("A", organism=o) for o in ("Danio rerio", "", "\n")],
}


@pytest.mark.parametrize("rows", HOSTILE.values(), ids=HOSTILE)
def test_rows_that_are_not_markers_are_skipped(store, rows):
    files = {"computational_marker_genes/CL_0000236.json": [*rows, computed("MS4A1")]}
    with FakeServer(extra=[add_cellguide({B: []}, files)]) as server:
        ask(store, server)
    assert [m[3] for m in markers(store)] == ["MS4A1"]


def test_a_file_without_end_is_bounded(store):
    rows = [computed(f"G{i}", 1 + i / 1e5, tissue=f"t{i % 3}\x1b\n" + "y" * 300) for i in range(3000)]
    files = {"computational_marker_genes/CL_0000236.json": rows}
    with FakeServer(extra=[add_cellguide({B: []}, files)]) as server:
        ask(store, server)
    found = markers(store)
    assert len(found) == 3 * BEST
    assert all(len(m[1]) <= 80 and m[1].isprintable() for m in found)
    assert "G2999" in {m[3] for m in found}


@pytest.mark.parametrize("body", ['{"a": 1}', "[1, 2", "<html>", '"x"', "[NaN]", "[" * 5000])
def test_bodies_that_are_no_lists_fail_for_their_type_alone(store, body):
    files = {**FILES, "computational_marker_genes/CL_0000236.json": body}
    with FakeServer(extra=[add_cellguide(TYPES, files)]) as server:
        report = ask(store, server)
    assert report.live.n_answered == 1 and {f.gene for f in report.live.failed} == {B, N}
    assert not next(f for f in report.live.failed if f.gene == B).final


@pytest.mark.parametrize("snapshot", ["", "latest", "../../etc", "1" * 50, "<html>", "12\n34"])
def test_a_snapshot_that_is_no_number_is_refused(store, snapshot):
    with FakeServer(extra=[add_cellguide(TYPES, FILES, snapshot=snapshot)]) as server:
        with pytest.raises(InputError):
            ask(store, server)
        assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["429-after", "500", "reset", "malformed"])
def test_faults_pass(store, fault):
    faults = Faults.script([None, None, None, None, fault, None, fault])
    with FakeServer(faults=faults, extra=[add_cellguide(TYPES, FILES)]) as server:
        assert ask(store, server).live.n_answered == 2


@pytest.mark.parametrize("fault", ["huge", "redirect"])
def test_what_is_too_large_or_leads_elsewhere_is_refused(store, fault):
    faults = Faults.script([None, None, None], then=fault)
    server = FakeServer(faults=faults, extra=[add_cellguide({B: []}, FILES)])
    with server, suppress(InputError, NetworkError):
        assert ask(store, server).live.n_answered == 0
    assert markers(store) == []


def test_a_service_that_goes_silent_is_an_error_and_the_next_run_goes_on(store):
    with FakeServer(faults=Faults.after(5, "500"), extra=[add_cellguide(TYPES, FILES)]) as server:
        with pytest.raises(NetworkError):
            ask(store, server, concurrency=1)
        assert len(markers(store)) == 1  # that of the first type, T
        server.faults = Faults.none()
        assert ask(store, server).live.n_known == 1
    assert len(markers(store)) == 6


def test_a_dry_run_asks_nothing(store):
    generation = Store(store).generation.number
    with FakeServer(extra=[add_cellguide(TYPES, FILES)]) as server:
        report = ask(store, server, dry_run=True)
        assert server.requests == []
    assert report.live.dry_run and report.live.cost.requests == 2 * 8
    assert Store(store).generation.number == generation and markers(store) == []


def test_on_the_command_line(store):
    from scvec.cli.main import cli

    words = [
        "--store",
        str(store),
        "--json",
        "ingest",
        "markers",
        "--source",
        "cellguide",
        "--tissue",
        "lung",
    ]
    with FakeServer(extra=[add_cellguide(TYPES, FILES)]) as server:
        done = CliRunner().invoke(cli, [*words, "--base-url", f"{server.url}/cg", "--species", "human"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["live"]["n_answered"] == 1


def test_options_of_a_live_source_need_one(store, tmp_path):
    (tmp_path / "m.csv").write_text("gene,cell_type\nMS4A1,B cell\n")
    with pytest.raises(InputError):
        scvec.ingest_markers(store, [tmp_path / "m.csv"], tissues=["lung"])


TOY = '''
from scvec.base.types import Answer, Marker, Note
from scvec.ingest.sources import marker_source
from scvec.ingest.sources.http import MarkerSource


@marker_source("toy")
class ToySource(MarkerSource):
    """Knows that B cells have MS4A1."""

    url = "https://toy.example/v1"

    async def index(self, species, tissues):
        return "toy 1", ["CL:0000236"]

    async def ask(self, jobs):
        note = lambda job: Note(job.gene_id, "toy", job.prompt, "2026-01-01", {})
        marker = lambda job: (Marker(job.gene_id, "", "human", "MS4A1", source="toy"),)
        return [Answer(job, note=note(job), markers=marker(job)) for job in jobs], []
'''


def test_a_toy_source_in_one_file(store, tmp_path, monkeypatch):
    (tmp_path / "toy_markers.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MARKER_SOURCES, "toy", "toy_markers")
    report = scvec.ingest_markers(store, ["toy"])
    assert report.live.n_answered == 1
    with Store(store).knowledge() as kb:
        assert (B, "", "human", "MS4A1", "positive", 1.0, "toy") in kb.markers()


def test_each_name_is_of_a_source_that_registers_under_it():
    assert {name: load_marker_source(name).name for name in MARKER_SOURCES} == {n: n for n in MARKER_SOURCES}
