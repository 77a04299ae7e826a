"""Tests of ``ingest genes --source ncbi|mygene`` with a local fake server that can fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_faults import Faults
from fake_genes import fake_genes
from fake_server import FakeServer
from live_store import digest, live_store, texts

import scvec
from scvec.base.errors import AuthError, InputError, NetworkError
from scvec.ingest.sources import ncbi, retry
from scvec.stores.store.store import Store

N = 1000
EUTILS = "/entrez/eutils"


@pytest.fixture(scope="module")
def genes():
    return [*fake_genes(N // 2), *fake_genes(N // 2, "mouse", first=5001)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Shortens the waits between requests. Tests check their order and number."""
    monkeypatch.setattr(retry, "LAST_WAITS", (0.0, 0.0, 0.01))
    real = retry.Caller.__init__
    monkeypatch.setattr(
        retry.Caller, "__init__", lambda self, *a, **k: real(self, *a, **{"pace": 0.01, "seed": 1, **k})
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory, genes):
    return live_store(tmp_path_factory.mktemp("live") / "store", genes).path


@pytest.fixture
def folder(tmp_path, template):
    return shutil.copytree(template, tmp_path / "store")


def ask(folder: Path, server: FakeServer, source: str = "ncbi", **options):
    return scvec.ingest_genes(
        folder,
        source=source,
        base_url=server.url + (EUTILS if source == "ncbi" else "/v3"),
        requests_per_second=0,
        **options,
    )


@pytest.mark.parametrize("source", ["ncbi", "mygene"])
def test_each_gene_gets_its_own_text_once(folder, genes, source):
    with FakeServer(genes) as server:
        report = ask(folder, server, source)
    assert report.live.n_answered == N and not report.live.failed
    found = texts(folder)
    assert len(found) == N
    # The text of a fake gene contains its id, which reveals a text at the wrong gene.
    assert all(str(g.entrez_id) in found[g.authority] for g in genes)
    with Store.open(folder).knowledge() as kb:
        assert len(kb.genes()) == N
        (one,) = (d for d in kb.all_descriptions(genes[0].authority) if d.kind == "human")
    assert "provided by" not in one.text
    assert '"provided_by": "RefSeq"' in one.provenance and one.source == source


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_three_calls_in_ten_fail_and_nothing_is_lost(folder, genes, seed, monkeypatch):
    monkeypatch.setattr(ncbi.NcbiSource, "most", 5)
    with FakeServer(genes, faults=Faults.random(0.3, seed)) as server:
        report = ask(folder, server)
    assert report.live.n_answered == N and not report.live.failed
    assert len(texts(folder)) == N
    assert len(server.requests) <= 1.6 * N / 5


def test_a_second_run_asks_nothing_and_a_refresh_asks_all(folder, genes):
    with FakeServer(genes) as server:
        ask(folder, server)
        first = len(server.requests)
        again = ask(folder, server)
        assert len(server.requests) == first and again.live.n_known == N
        before = digest(folder)
        ask(folder, server, refresh=True)
        assert len(server.requests) == 2 * first
    assert digest(folder) == before


def test_only_what_failed_is_asked_again(folder, genes):
    with FakeServer(genes[10:]) as server:
        report = ask(folder, server)
        assert report.live.n_answered == N - 10
        assert {f.final for f in report.live.failed} == {True} and len(report.live.failed) == 10
        asked = len(server.requests)
        ask(folder, server)
        assert len(server.requests) == asked, "genes unknown to the service must not be requested again"


def test_a_service_that_goes_away_keeps_what_arrived(folder, genes, monkeypatch):
    monkeypatch.setattr(ncbi.NcbiSource, "most", 50)
    with FakeServer(genes, faults=Faults.after(10, "503")) as server:
        with pytest.raises(NetworkError, match="500 of") as caught:
            ask(folder, server)
        assert len(server.requests) <= 15
        assert caught.value.exit_code == 4
        assert len(texts(folder)) == 500
        server.faults = Faults.none()
        assert ask(folder, server).live.n_asked == 500
    assert len(texts(folder)) == N


def test_a_refused_key_stops_at_once(folder, genes, monkeypatch):
    monkeypatch.setenv("NCBI_API_KEY", "canary-0123456789abcdef")
    with FakeServer(genes, keys={"another"}) as server, pytest.raises(AuthError) as caught:
        ask(folder, server)
    assert len(server.requests) <= 5
    assert "canary" not in str(caught.value)


def test_a_dry_run_asks_and_changes_nothing(folder, genes):
    before = Store.open(folder).generation.number
    with FakeServer(genes) as server:
        report = ask(folder, server, dry_run=True)
        assert not server.requests
    assert report.live.cost.requests == 2 and report.live.n_asked == N
    assert Store.open(folder).generation.number == before


def test_names_the_knowledge_base_lacks_are_asked_as_they_stand(folder, genes, tmp_path):
    listed = tmp_path / "genes.txt"
    new = fake_genes(3, first=9001)
    listed.write_text(f"{genes[0].symbol}\n{new[0].symbol}\n{new[1].entrez_id}\nNOSUCHGENE\n")
    with FakeServer([*genes, *new]) as server:
        report = ask(folder, server, genes=listed, species=("human",))
    assert report.live.n_answered == 3
    assert [f.gene for f in report.live.failed] == ["human:NOSUCHGENE"]
    with Store.open(folder).knowledge() as kb:
        symbols = set(kb.genes()["symbol"])
    assert {new[0].symbol, new[1].symbol} <= symbols and new[2].symbol not in symbols


def test_unknown_names_of_two_species_are_not_guessed(folder, genes, tmp_path):
    listed = tmp_path / "genes.txt"
    listed.write_text("NOSUCHGENE\n")
    with FakeServer(genes) as server, pytest.raises(InputError) as caught:
        ask(folder, server, genes=listed)
    assert caught.value.code == "unknown-gene" and caught.value.where == "NOSUCHGENE"


def test_ctrl_c_commits_what_arrived(folder, genes, monkeypatch):
    monkeypatch.setattr(ncbi.NcbiSource, "most", 50)

    def interrupt(stage, done, total, detail=""):
        if stage.startswith("asking") and done >= 200:
            raise KeyboardInterrupt

    with FakeServer(genes) as server, pytest.raises(KeyboardInterrupt, match="answers are saved"):
        ask(folder, server, progress=interrupt)
    kept = len(texts(folder))
    assert 200 <= kept < N
    with FakeServer(genes) as server:
        assert ask(folder, server).live.n_asked == N - kept
    assert len(texts(folder)) == N
