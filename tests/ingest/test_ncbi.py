"""NCBI Gene: which gene an answer is of, and answers that are none."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest
from fake_eutils import docsum
from fake_faults import Faults
from fake_genes import fake_gene, fake_genes
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st

from scvec.base.settings import Secret, ServiceSettings
from scvec.base.types import Job, Wanted
from scvec.ingest.sources.ncbi import (
    NcbiSource,
    Summary,
    check_search,
    check_summaries,
    read_summaries,
)
from scvec.ingest.sources.retry import ServiceError
from scvec.ingest.sources.run import harvest


def by_id(gene, gene_id=None, species=None):
    gene_id = gene_id or gene.authority
    job = Job.of(gene_id, "ncbi", f"entrez:{gene.entrez_id}")
    return {job: Wanted(gene_id, species or gene.species, gene.symbol, gene.entrez_id)}


def by_name(name, species="human"):
    gene_id = f"ask:{species}:{name}"
    return {Job.of(gene_id, "ncbi", name): Wanted(gene_id, species, name)}


def ask(server, wanted, *, settings=None, **given):
    """One round of questions: answers and failures by gene id."""

    async def main():
        async with NcbiSource(
            wanted, settings, base_url=server.url, per_second=0, pace=0.001, **given
        ) as source:
            return await source.ask(list(wanted))

    answers, failures = asyncio.run(main())
    return {a.job.gene_id: a for a in answers}, {f.job.gene_id: f for f in failures}


def collect(server, wanted, **given):
    """A whole harvest."""
    answers, failures = [], []

    async def main():
        async with NcbiSource(wanted, base_url=server.url, per_second=0, pace=0.001, **given) as source:
            return await harvest(source, list(wanted), lambda a, f: (answers.extend(a), failures.extend(f)))

    return asyncio.run(main()), answers, failures


def test_a_gene_with_all_that_the_summary_says():
    gene = fake_gene(3630, symbol="INS", name="insulin", aliases=("IDDM", "ILPR"))
    with FakeServer([gene]) as server:
        answers, failures = ask(server, by_id(gene))
        form = server.requests[0].body
    assert failures == {}
    answer = answers["HGNC:3630"]
    found = answer.gene
    assert (found.gene_id, found.species, found.symbol, found.name) == (
        "HGNC:3630",
        "human",
        "INS",
        "insulin",
    )
    assert (found.entrez_id, found.aliases) == (3630, ("IDDM", "ILPR"))
    (text,) = answer.descriptions
    assert text.text == "This gene encodes protein number 3630."
    assert (text.gene_id, text.kind, text.source) == ("HGNC:3630", "human", "ncbi")
    assert text.source_version == "esummary 0.3"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", text.retrieved_at)
    assert json.loads(text.provenance) == {"provided_by": "RefSeq", "provided_at": "Jul 2008"}
    assert answer.note.facts == {
        "official_symbol": "INS",
        "official_full_name": "insulin",
        "see_related": ["MIM:103630"],
        "organism": "Homo sapiens (human)",
        "aliases": ["IDDM", "ILPR"],
        "summary": "This gene encodes protein number 3630.",
    }
    assert form == {"db": "gene", "id": "3630", "version": "2.0", "retmode": "json", "tool": "scvec"}


def test_tool_email_and_key_are_sent_in_the_body():
    gene = fake_gene(1)
    settings = ServiceSettings(api_key=Secret("canaryNcbiKey01"), email="a@b.org", tool="lab")
    with FakeServer([gene]) as server:
        ask(server, by_id(gene), settings=settings)
        for request in server.requests:
            assert request.body.items() >= {"tool": "lab", "email": "a@b.org"}.items()
            assert request.body["api_key"] == "canaryNcbiKey01"
            assert request.query == {}


def test_a_gene_without_a_summary_is_answered_all_the_same():
    gene = fake_gene(4818, symbol="NKG7", summary="")
    with FakeServer([gene]) as server:
        answers, failures = ask(server, by_id(gene))
    answer = answers["HGNC:4818"]
    assert answer.descriptions == () and answer.gene.symbol == "NKG7" and failures == {}
    assert "summary" not in answer.note.facts


# Genes that are not there, or not what they were -----------------------------------------------------------


def test_an_id_that_ncbi_does_not_have_is_a_final_failure():
    gene = fake_gene(5)
    with FakeServer([]) as server:
        answers, failures = ask(server, by_id(gene))
    assert answers == {} and failures["HGNC:5"].final
    assert failures["HGNC:5"].reason == "NCBI has no gene 5"


def test_a_replaced_id_is_asked_again_under_the_new_one():
    old, new = fake_gene(11, replaced_by=12), fake_gene(12)
    with FakeServer([old, new]) as server:
        answers, _ = ask(server, by_id(old))
    answer = answers["HGNC:11"]
    assert answer.gene.entrez_id == 12 and answer.gene.gene_id == "HGNC:11"
    assert answer.descriptions[0].text.endswith("number 12.")
    assert answer.note.facts["replaced"] == [11, 12]


def test_a_chain_of_replacements_is_followed_and_a_circle_left():
    chain = [fake_gene(i, replaced_by=i + 1) for i in (1, 2)] + [fake_gene(3)]
    circle = [fake_gene(21, replaced_by=22), fake_gene(22, replaced_by=21)]
    with FakeServer([*chain, *circle]) as server:
        answers, failures = ask(server, {**by_id(chain[0]), **by_id(circle[0])})
    assert answers["HGNC:1"].gene.entrez_id == 3
    assert "more than 3 times" in failures["HGNC:21"].reason and failures["HGNC:21"].final


def test_a_discontinued_gene_and_one_of_another_species_are_final_failures():
    gone, rat = fake_gene(31, discontinued=True), fake_gene(32, "rat")
    with FakeServer([gone, rat]) as server:
        answers, failures = ask(server, {**by_id(gone), **by_id(rat, species="mouse")})
    assert answers == {}
    assert failures["HGNC:31"].reason == "NCBI has discontinued gene 31"
    assert "Rattus norvegicus" in failures["MGI:32"].reason
    assert all(f.final for f in failures.values())


def test_two_jobs_of_one_id_are_both_answered():
    gene = fake_gene(41)
    with FakeServer([gene]) as server:
        answers, _ = ask(server, {**by_id(gene), **by_id(gene, "ask:human:41")})
        assert server.requests[0].body["id"] == "41"
    assert answers["HGNC:41"].gene.gene_id == "HGNC:41"
    assert answers["ask:human:41"].gene.gene_id == "entrez:41"
    assert answers["ask:human:41"].descriptions[0].gene_id == "entrez:41"


# Names -----------------------------------------------------------------------------------------------------


def test_a_name_is_the_gene_whose_official_symbol_it_is():
    # TTN is an alias of TTR, which sorts first; and a mouse has its own.
    ttr = fake_gene(100, symbol="TTR", aliases=("TTN", "PALB"))
    ttn = fake_gene(200, symbol="TTN", aliases=())
    mouse = fake_gene(50, "mouse", symbol="TTN")
    with FakeServer([ttr, ttn, mouse]) as server:
        answers, failures = ask(server, {**by_name("TTN"), **by_name("PALB"), **by_name("NONE")})
    assert answers["ask:human:TTN"].gene.entrez_id == 200
    assert answers["ask:human:TTN"].gene.gene_id == "entrez:200"
    assert "alias of TTR (100)" in failures["ask:human:PALB"].reason
    assert failures["ask:human:NONE"].reason == "NCBI has no human gene with the name NONE"
    assert all(f.final for f in failures.values())


def test_two_genes_of_one_symbol_are_no_answer():
    twins = [fake_gene(i, symbol="TWIN") for i in (1, 2)]
    with FakeServer(twins) as server:
        answers, failures = ask(server, by_name("TWIN"))
    assert answers == {}
    assert (
        failures["ask:human:TWIN"].reason == "2 genes have the symbol TWIN: 1, 2"
        and failures["ask:human:TWIN"].final
    )


def test_case_is_looked_through_where_it_is_the_only_difference():
    genes = [fake_gene(1, symbol="C1orf112"), fake_gene(2, symbol="abc"), fake_gene(3, symbol="ABC")]
    with FakeServer(genes) as server:
        answers, _ = ask(server, {**by_name("C1ORF112"), **by_name("ABC")})
    assert answers["ask:human:C1ORF112"].gene.entrez_id == 1
    assert answers["ask:human:ABC"].gene.entrez_id == 3


def test_many_names_take_few_requests():
    genes = fake_genes(250)
    wanted = {k: v for g in genes for k, v in by_name(g.symbol).items()}
    with FakeServer(genes) as server:
        answers, _ = ask(server, wanted)
        assert len(server.requests) == NcbiSource.n_requests(list(wanted.values())) == 4
    assert {a.gene.symbol for a in answers.values()} == {g.symbol for g in genes}


@pytest.mark.parametrize(
    "name",
    [
        'A" OR "G1002',
        "A[All Fields]",
        "G1*",
        'x"',
        "INS\nOR G1002",
        "A&B",
        "",
        " ",
        "a" * 100,
        "гены",
        "[gene]",
        "\x00",
    ],
)
def test_a_name_cannot_change_the_query(name):
    with FakeServer(fake_genes(5)) as server:
        answers, failures = ask(server, by_name(name))
        assert server.requests == []
    assert answers == {} and all(f.final for f in failures.values())


@pytest.mark.parametrize(
    "name", ["AND", "NOT", "OR", "HLA-DRB1", "HBB-3'HS1", "MCS+9.7", "Del(1)3H", "HOXA@", "zgc:173705"]
)
def test_odd_symbols_are_asked_as_they_stand(name):
    with FakeServer([fake_gene(1, symbol=name), *fake_genes(3)]) as server:
        answers, _ = ask(server, by_name(name))
        assert (
            f'("{name}"[Gene Name]) AND 9606[Taxonomy ID] AND alive[prop]' == server.requests[0].body["term"]
        )
    assert answers[f"ask:human:{name}"].gene.entrez_id == 1


def test_a_gene_with_neither_id_nor_symbol_is_a_failure():
    job = Job.of("x", "ncbi", "x")
    with FakeServer() as server:
        _, failures = ask(server, {job: Wanted("x", "human", ensembl_ids=("ENSG1",))})
        assert server.requests == []
    assert failures["x"].final


# Numbers of requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 1), (500, 1), (501, 2)])
def test_the_number_of_requests_is_known_before(n, expected):
    wanted = [Wanted(f"HGNC:{i}", "human", f"G{i}", i) for i in range(1, n + 1)]
    assert NcbiSource.n_requests(wanted) == expected


def test_a_request_never_asks_for_more_than_the_service_takes():
    genes = fake_genes(1300)
    wanted = {k: v for g in genes for k, v in by_id(g).items()}
    with FakeServer(genes) as server:
        _, answers, failures = collect(server, wanted, batch_size=10_000)
        assert max(len(r.body["id"].split(",")) for r in server.requests) == 500
        assert len(server.requests) == NcbiSource.n_requests(list(wanted.values()))
    assert len(answers) == 1300 and not failures


@pytest.mark.parametrize("fault", ["error200", "esummaryresult", "short", "swapped", "reorder", "unasked"])
def test_no_fault_puts_a_text_on_the_wrong_gene(fault):
    genes = fake_genes(40)
    wanted = {k: v for g in genes for k, v in by_id(g).items()}
    with FakeServer(genes, faults=Faults.random(0.3, seed=3, kinds=[fault])) as server:
        _, answers, failures = collect(server, wanted, batch_size=4)
    assert not failures and len(answers) == 40
    for answer in answers:
        number = answer.job.gene_id.partition(":")[2]
        assert str(answer.gene.entrez_id) == number
        assert answer.descriptions[0].text.endswith(f"number {number}.")


def test_names_are_not_decided_on_half_an_answer():
    # Of two genes with one symbol the summary of one is left out: this must not make it the only one.
    twins = [fake_gene(i, symbol="TWIN") for i in (1, 2)]
    with FakeServer(twins, faults=Faults.script([None, "short"])) as server:
        assert ask(server, by_name("TWIN")) == ({}, {})


def test_a_cut_search_is_no_answer():
    with pytest.raises(ServiceError):
        check_search({"esearchresult": {"count": "3", "idlist": ["1", "2"]}})
    with pytest.raises(ServiceError) as caught:
        check_search({"esearchresult": {"ERROR": "Search Backend failed"}})
    assert caught.value.kind == "transient"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": "Search Backend failed: timed out"}, "transient"),
        ({"error": "Too many UIDs in request. Maximum number of UIDs is 500"}, "rejected"),
        ({"esummaryresult": ["Invalid uid abc at position=0"]}, "rejected"),
        ({"esummaryresult": ["Empty id list - nothing todo"]}, "rejected"),
        ({"error": {"a": 1}}, "transient"),
        ({"header": {}}, "transient"),
        ({"result": []}, "transient"),
    ],
)
def test_errors_under_status_200_are_errors(body, kind):
    with pytest.raises(ServiceError) as caught:
        check_summaries(body)
    assert caught.value.kind == kind


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(docsum(fake_gene(1)))), HOSTILE), HOSTILE)
def test_hostile_entries_are_read_without_raising(entry, other):
    whole = {**docsum(fake_gene(1)), **entry}
    summary = Summary.of(whole)
    if summary is not None:
        assert summary.symbol and summary.entrez_id > 0 and summary.taxon > 0
        assert all(len(a) <= 80 for a in summary.aliases)
        json.dumps(summary.aliases).encode()
    read_summaries({"result": {"1": whole, "2": other}}, [1, 2, 3])


def test_lengths_and_control_characters_are_bounded():
    gene = replace(
        fake_gene(1), name="x\x00" * 10_000, summary="long " * 50_000, aliases=("a\x1b[31m" * 50,) * 2000
    )
    with FakeServer([gene]) as server:
        answers, _ = ask(server, by_id(gene))
    answer = answers["HGNC:1"]
    assert len(answer.descriptions[0].text) <= 20_000 and len(answer.gene.name) <= 400
    assert all(len(a) <= 80 and a.isprintable() for a in answer.gene.aliases)


def test_the_summary_of_2012_is_read(shared_data):
    body = json.loads((shared_data / "api_samples" / "eutils_esummary_gene_v0.3_2012.json").read_text())
    check_summaries(body)
    found = read_summaries(body, [21803])[21803]
    assert (found.symbol, found.taxon, found.live, found.current_id) == ("Tgfb1", 10090, True, None)
    assert found.organism == "Mus musculus"
    assert found.aliases == ("TGF-beta1", "TGFbeta1", "Tgfb", "Tgfb-1")
