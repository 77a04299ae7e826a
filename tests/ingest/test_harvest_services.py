"""Harvests against the fake services: faulty, gone, refusing, and with many genes."""

import asyncio

import pytest
from fake_faults import QUICK, Faults
from fake_genes import fake_genes
from fake_server import FakeServer
from harvest_parts import Journal, once_each

from scvec.ingest.sources.mygene import MyGeneSource
from scvec.ingest.sources.ncbi import NcbiSource
from scvec.ingest.sources.retry import ENOUGH
from scvec.ingest.sources.run import harvest
from scvec.records import Job, Wanted
from scvec.secrets import Secret
from scvec.settings import ServiceSettings

SOURCES = {"ncbi": NcbiSource, "mygene": MyGeneSource}


def wanted_of(genes, source):
    return {
        Job.of(g.authority, source, str(g.entrez_id)): Wanted(
            g.authority, g.species, g.symbol, g.entrez_id, g.ensembl_ids
        )
        for g in genes
    }


def harvested(name, server, wanted, settings=None, **given):
    journal = Journal()
    given = {"pace": 0.001, "per_second": 0, **given}

    async def main():
        async with SOURCES[name](wanted, settings, base_url=server.url, **given) as source:
            return await harvest(source, list(wanted), journal)

    return asyncio.run(main()), journal


@pytest.mark.parametrize("name", ["ncbi", "mygene"])
def test_a_thousand_genes_with_three_calls_in_ten_faulty(name):
    genes = fake_genes(1000)
    wanted = wanted_of(genes, name)
    kinds = (*QUICK, "error200")
    with FakeServer(genes, faults=Faults.random(0.3, seed=7, kinds=kinds)) as server:
        found, journal = harvested(name, server, wanted, batch_size=1, pace=1e-4)
    assert found.stopped is None and found.failures == ()
    assert once_each(journal, list(wanted)) and len(journal.answers) == 1000
    assert len(server.requests) == found.tally.calls <= 1.6 * 1000
    for got in journal.answers:
        number = got.job.gene_id.partition(":")[2]
        assert got.gene.entrez_id == int(number)
        assert got.descriptions[0].text == f"This gene encodes protein number {number}."


@pytest.mark.parametrize("name", ["ncbi", "mygene"])
@pytest.mark.parametrize("fault", ["503", "reset", "429", "html"])
@pytest.mark.parametrize("n_good", [0, 20])
def test_a_service_that_is_gone_is_left_after_five_calls(name, fault, n_good):
    genes = fake_genes(100)
    with FakeServer(genes, faults=Faults.after(n_good, fault)) as server:
        found, journal = harvested(name, server, wanted_of(genes, name), batch_size=1)
    assert found.stopped.kind == "gone"
    assert len(journal.answers) == n_good
    assert len(server.requests) <= n_good + ENOUGH


@pytest.mark.parametrize("fault", ["401", "403"])
def test_a_key_that_is_revoked_midway_stops_at_once(fault):
    genes = fake_genes(100)
    settings = ServiceSettings(api_key=Secret("canary-revoked-key"))
    with FakeServer(genes, faults=Faults.after(20, fault)) as server:
        found, journal = harvested("ncbi", server, wanted_of(genes, "ncbi"), settings, batch_size=1)
    assert found.stopped.kind == "auth"
    assert len(journal.answers) == 20
    assert len(server.requests) <= 20 + ENOUGH


def test_a_wrong_address_stops_at_once():
    genes = fake_genes(100)
    with FakeServer(genes, faults=Faults.always("404")) as server:
        found, _ = harvested("ncbi", server, wanted_of(genes, "ncbi"), batch_size=10)
    assert found.stopped.kind == "address" and len(server.requests) == 1


def test_five_thousand_genes_a_minute_and_many_more():
    genes = fake_genes(5000)
    with FakeServer(genes) as server:
        found, _ = harvested("ncbi", server, wanted_of(genes, "ncbi"))
    assert found.tally.done == 5000
    # At three requests a second, as without a key, less than a minute is enough for them.
    assert len(server.requests) < 3 * 60
