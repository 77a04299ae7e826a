"""A new live source is one file and one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_genes import fake_genes
from live_store import live_store, texts

import scvec
from scvec.base.errors import InputError
from scvec.ingest.sources import SOURCES, load_source

TOY = '''
from scvec.ingest.sources import gene_source
from scvec.ingest.sources.http import GeneFound, GeneSource


@gene_source("toy")
class ToySource(GeneSource):
    """Knows a text about every gene that has an even id."""

    url = "https://toy.example/v1"
    most = 3

    async def ask(self, jobs):
        answers = []
        for job in jobs:
            gene = self.wanted[job]
            if gene.entrez_id % 2 == 0:
                found = GeneFound(gene.symbol, gene.entrez_id, text=f"A toy text about {gene.symbol}.")
                answers.append(found.answer(job, gene, "toy 1"))
        return answers, []
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_source.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, "toy", "toy_source")


@pytest.mark.usefixtures("toy")
def test_a_toy_source_in_one_file(tmp_path: Path) -> None:
    genes = fake_genes(10)
    live_store(tmp_path / "store", genes)
    plan = scvec.ingest_genes(tmp_path / "store", source="toy", dry_run=True)
    assert plan.live.n_asked == 10 and plan.live.cost.requests == 4
    report = scvec.ingest_genes(tmp_path / "store", source="toy")
    assert (report.source, report.live.n_answered, len(report.live.failed)) == ("toy", 5, 5)
    even = {g.authority: g.symbol for g in genes if g.entrez_id % 2 == 0}
    found = texts(tmp_path / "store")
    assert {g: found[g] for g in even} == {g: f"A toy text about {s}." for g, s in even.items()}
    assert scvec.ingest_genes(tmp_path / "store", source="toy").live.n_known == 5


def test_each_name_is_of_a_source_that_registers_under_it(tmp_path: Path) -> None:
    assert {name: load_source(name).name for name in SOURCES} == {name: name for name in SOURCES}
    with pytest.raises(InputError, match="ncbi, mygene"):
        scvec.ingest_genes(tmp_path / "store", source="other")
