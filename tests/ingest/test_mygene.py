"""MyGene: matched by query, scalars and lists alike, one gene or none."""

import asyncio
import json

import pytest
from fake_faults import Faults
from fake_genes import fake_gene, fake_genes
from fake_mygene import mygene_hit
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st

from scvec.base.settings import ServiceSettings
from scvec.base.types import Job, Wanted
from scvec.ingest.sources.mygene import Hit, MyGeneSource
from scvec.ingest.sources.run import harvest


def job_of(gene_id, species="human", entrez=None, ensembl=()):
    return {Job.of(gene_id, "mygene", gene_id): Wanted(gene_id, species, "", entrez, tuple(ensembl))}


def by_id(gene, gene_id=None):
    return job_of(gene_id or gene.authority, gene.species, gene.entrez_id)


def ask(server, wanted, *, settings=None):
    async def main():
        async with MyGeneSource(wanted, settings, base_url=server.url, per_second=0, pace=0.001) as source:
            return await source.ask(list(wanted))

    answers, failures = asyncio.run(main())
    return {a.job.gene_id: a for a in answers}, {f.job.gene_id: f for f in failures}


class Replies(FakeServer):
    """Gives one reply to all."""

    def __init__(self, reply):
        from aiohttp import web

        async def gene(request):
            return web.json_response(reply)

        super().__init__(extra=[lambda app, server: app.router.add_post("/other/gene", gene)])

    def __enter__(self):
        super().__enter__()
        self.url += "/other"
        return self


def test_a_gene_with_its_facts():
    gene = fake_gene(1017, symbol="CDK2", name="cyclin dependent kinase 2", aliases=("CDKN2",))
    with FakeServer([gene]) as server:
        answers, failures = ask(server, by_id(gene), settings=ServiceSettings(email="a@b.org"))
        form = server.requests[0].body
    assert failures == {}
    answer = answers["HGNC:1017"]
    assert answer.gene.symbol == "CDK2" and answer.gene.entrez_id == 1017
    assert answer.gene.aliases == ("CDKN2",) and answer.gene.ensembl_ids == ("ENSG00000001017",)
    (text,) = answer.descriptions
    assert (text.text, text.kind, text.source) == (
        "This gene encodes protein number 1017.",
        "human",
        "mygene",
    )
    assert json.loads(text.provenance) == {"provided_by": "RefSeq", "provided_at": "Jul 2008"}
    assert answer.note.facts == {
        "official_symbol": "CDK2",
        "official_full_name": "cyclin dependent kinase 2",
        "primary_source": "HGNC:1017",
        "see_related": ["Ensembl:ENSG00000001017", "MIM:101017"],
        "gene_type": "protein-coding",
        "organism": "Homo sapiens (human)",
        "aliases": ["CDKN2"],
        "summary": "This gene encodes protein number 1017.",
    }
    assert form["ids"] == "1017" and form["email"] == "a@b.org" and form["dotfield"] == "false"


def test_the_recorded_gene_is_read(shared_data):
    body = json.loads((shared_data / "api_samples" / "mygene_v3_gene_1017.json").read_text())
    with Replies([{"query": "1017", **body}]) as server:
        answers, _ = ask(server, job_of("HGNC:1771", entrez=1017))
    answer = answers["HGNC:1771"]
    assert answer.gene.symbol == "CDK2" and answer.gene.aliases == ("CDKN2", "p33(CDK2)")
    assert answer.gene.ensembl_ids == ("ENSG00000123374",)
    assert answer.note.facts["primary_source"] == "HGNC:1771"
    assert "UniProtKB/Swiss-Prot:P24941" in answer.note.facts["see_related"]
    assert "[provided by" not in answer.descriptions[0].text and len(answer.descriptions[0].text) > 100


def test_recorded_index_documents_are_read(shared_data):
    lines = (shared_data / "api_samples" / "mygene_indexed_docs_test.ndjson").read_text().splitlines()
    documents = [d for d in map(json.loads, lines) if "index" not in d]
    hits = [Hit.of(d) for d in documents]
    assert [(h.entrez_id, h.symbol) for h in hits if h.symbol == "CDK2"] == [(1017, "CDK2")]
    assert len(hits) == 4


def test_genes_without_an_entrez_id_are_asked_by_ensembl_id():
    gene = fake_gene(5, "mouse")
    with FakeServer([gene]) as server:
        answers, _ = ask(server, job_of("MGI:5", "mouse", ensembl=[f"{gene.ensembl_ids[0]}.3", "bad id"]))
        assert server.requests[0].body["ids"] == gene.ensembl_ids[0]
    assert answers["MGI:5"].gene.entrez_id == 5
    assert answers["MGI:5"].note.facts["primary_source"] == "MGI:5"


def test_a_gene_of_two_ensembl_ids_of_which_one_is_known():
    gene = fake_gene(5)
    with FakeServer([gene]) as server:
        answers, _ = ask(server, job_of("HGNC:5", ensembl=["ENSG00000999999", gene.ensembl_ids[0]]))
    assert answers["HGNC:5"].gene.entrez_id == 5


def test_a_gene_without_any_id_is_a_failure_and_not_asked():
    with FakeServer() as server:
        _, failures = ask(server, job_of("ask:human:INS"))
        assert server.requests == []
    assert failures["ask:human:INS"].final and "Entrez or Ensembl id" in failures["ask:human:INS"].reason


def test_a_gene_that_is_not_found_is_a_final_failure():
    with FakeServer([fake_gene(2, "rat")]) as server:
        _, failures = ask(server, {**job_of("HGNC:1", entrez=1), **job_of("HGNC:2", entrez=2)})
    assert {f.reason for f in failures.values()} == {"MyGene has no gene 1", "MyGene has no gene 2"}
    assert all(f.final for f in failures.values())


def hit(entrez_id, query, **more):
    return {"query": query, **mygene_hit(fake_gene(entrez_id), 0, []), **more}


@pytest.mark.parametrize(
    ("reply", "entrez_id", "failure"),
    [
        ([hit(1, "1"), hit(1, "1")], 1, None),  # a duplicate
        ([hit(1, "1", entrezgene="1")], 1, None),
        ([hit(1, "1", entrezgene=None)], 1, None),  # by _id
        ([hit(2, "1"), hit(1, "1")], 1, None),  # another gene's hit is passed over
        ([hit(2, "1", retired=1)], 2, None),
        ([hit(2, "1", retired=["7", "1"])], 2, None),
        ([hit(2, "1")], None, "another gene"),
        ([hit(1, "1", taxid=10116)], None, "taxon 10116"),
        ([hit(1, "1", taxid="10090")], None, "taxon 10090"),
        ([hit(2, "1", retired=1), hit(3, "1", retired=1)], None, "2 genes have the id 1: 2, 3"),
        ([{"query": "1", "notfound": True}], None, "no gene 1"),
        ([hit(1, "1", symbol=None)], None, "no symbol"),
        ([hit(1, "2")], None, ""),  # left out: asked again
        ([hit(1, None)], None, ""),
        ([], None, ""),
        (["x", None, 5, []], None, ""),
        ([{"query": "1", "error": "timeout"}], None, ""),
    ],
)
def test_one_hit_of_the_right_gene_is_taken_or_none(reply, entrez_id, failure):
    with Replies(reply) as server:
        answers, failures = ask(server, job_of("HGNC:1", entrez=1))
    if entrez_id is not None:
        assert answers["HGNC:1"].gene.entrez_id == entrez_id and failures == {}
        replaced = answers["HGNC:1"].note.facts.get("replaced")
        assert replaced == (None if entrez_id == 1 else [1, entrez_id])
    elif failure:
        assert failure in failures["HGNC:1"].reason and failures["HGNC:1"].final and answers == {}
    else:
        assert (answers, failures) == ({}, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"gene": "ENSG00000000001"}, ("ENSG00000000001",)),
        ([{"gene": "ENSG00000000001"}, {"gene": "ENSG00000000002"}], ("ENSG00000000001", "ENSG00000000002")),
        ({"gene": ["ENSG00000000001", "ENSG00000000001"]}, ("ENSG00000000001",)),
        ({"gene": "<script>"}, ()),
        (None, ()),
        ("ENSG00000000001", ()),
    ],
)
def test_lists_of_one_and_scalars_are_the_same(value, expected):
    assert Hit.of(hit(1, "1", ensembl=value)).ensembl_ids == expected


def test_aliases_may_be_one_text():
    assert Hit.of(hit(1, "1", alias="A")).aliases == ("A",)
    assert Hit.of(hit(1, "1", alias=["A", "B"])).aliases == ("A", "B")


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*hit(1, "1"), "retired", "uniprot"]), HOSTILE))
def test_hostile_hits_are_read_without_raising(entry):
    found = Hit.of({**hit(1, "1"), **entry})
    assert found.entrez_id is None or found.entrez_id > 0


@pytest.mark.parametrize("fault", ["duplicate", "reorder", "short", "unasked", "error200"])
def test_no_fault_puts_a_text_on_the_wrong_gene(fault):
    genes = fake_genes(40)
    wanted = {k: v for g in genes for k, v in by_id(g).items()}
    answers, failures = [], []

    async def main(server):
        source = MyGeneSource(wanted, base_url=server.url, per_second=0, pace=0.001, batch_size=4)
        async with source:
            await harvest(source, list(wanted), lambda a, f: (answers.extend(a), failures.extend(f)))

    with FakeServer(genes, faults=Faults.random(0.3, seed=2, kinds=[fault])) as server:
        asyncio.run(main(server))
    assert failures == [] and len(answers) == 40
    for answer in answers:
        number = answer.job.gene_id.partition(":")[2]
        assert answer.descriptions[0].text.endswith(f"number {number}.")


def test_an_unknown_name_by_id_becomes_a_gene():
    gene = fake_gene(5)
    with FakeServer([gene]) as server:
        answers, _ = ask(server, by_id(gene, "ask:human:5"))
    assert answers["ask:human:5"].gene.gene_id == "entrez:5"


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 1), (1000, 1), (1001, 2)])
def test_the_number_of_requests_is_known_before(n, expected):
    assert MyGeneSource.n_requests([Wanted(f"HGNC:{i}", "human", "", i + 1) for i in range(n)]) == expected
    assert MyGeneSource.n_requests([Wanted("x", "human", "INS")]) == 0


def test_a_request_never_asks_for_more_than_the_service_takes():
    # Every gene has four Ensembl ids: as many queries as 1000 genes can make.
    genes = [fake_gene(i, ensembl_ids=[f"ENSG{i * 10 + k:011d}" for k in range(4)]) for i in range(1, 501)]
    wanted = {k: v for g in genes for k, v in job_of(g.authority, ensembl=g.ensembl_ids).items()}
    with FakeServer(genes) as server:
        answers, failures = ask(server, wanted)
        assert max(len(r.body["ids"].split(",")) for r in server.requests) == 1000
        assert len(server.requests) == MyGeneSource.n_requests(list(wanted.values())) == 2
    assert len(answers) == 500 and not failures
