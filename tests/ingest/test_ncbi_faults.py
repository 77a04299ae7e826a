"""NCBI: answers that are faulty, cut, hostile or old, checked field by field."""

import json
from dataclasses import replace

import pytest
from fake_eutils import docsum
from fake_faults import Faults
from fake_genes import fake_gene, fake_genes
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from ncbi_parts import ask, by_id, by_name, collect

from scvec.ingest.sources.ncbi import Summary, check_search, check_summaries, read_summaries
from scvec.ingest.sources.retry import ServiceError


@pytest.mark.parametrize("fault", ["error200", "esummaryresult", "short", "swapped", "reorder", "unasked"])
@pytest.mark.parametrize("details", [False, True])
def test_no_fault_puts_a_text_on_the_wrong_gene(fault, details):
    genes = fake_genes(40)
    wanted = {k: v for g in genes for k, v in by_id(g).items()}
    with FakeServer(genes, faults=Faults.random(0.3, seed=3, kinds=[fault])) as server:
        _, answers, failures = collect(server, wanted, batch_size=4, details=details)
    assert not failures and len(answers) == 40
    for answer in answers:
        number = answer.job.gene_id.partition(":")[2]
        assert str(answer.gene.entrez_id) == number
        assert answer.descriptions[0].text.endswith(f"number {number}.")
        assert not details or answer.note.facts["lineage"].endswith(f"of {number}")


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
