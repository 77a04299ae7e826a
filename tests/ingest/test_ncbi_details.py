"""XML of NCBI: read record by record, and an error if cut, foreign or hostile."""

import gzip

import pytest
from fake_entrezgene import entrezgene_set
from fake_genes import fake_gene, fake_genes

from scvec.ingest.sources.ncbi import Details, parse_details
from scvec.ingest.sources.retry import ServiceError


def test_full_records_are_read_one_by_one():
    found = parse_details(entrezgene_set(fake_genes(30)).encode())
    assert sorted(found) == list(range(1001, 1031))
    assert found[1005].lineage.endswith("of 1005")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml",
        b"<html><body>Error</body></html>",
        b"<eFetchResult><ERROR>Empty result</ERROR></eFetchResult>",
        entrezgene_set(fake_genes(2)).encode()[:-500],
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Entrezgene-Set>&b;</Entrezgene-Set>',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Entrezgene-Set>&a;</Entrezgene-Set>',
        b"<Entrezgene-Set>" + b"<a>" * 10_000 + b"</a>" * 10_000 + b"</Entrezgene-Set>",
    ],
)
def test_xml_that_is_none_cut_or_hostile_is_an_error(body):
    with pytest.raises(ServiceError) as caught:
        parse_details(body)
    assert caught.value.kind == "transient" and len(caught.value.reason) < 300


def test_records_that_lack_everything_are_read():
    body = b"<Entrezgene-Set><Entrezgene/><Entrezgene><Entrezgene_track-info><Gene-track><Gene-track_geneid>5"
    body += b"</Gene-track_geneid></Gene-track></Entrezgene_track-info></Entrezgene></Entrezgene-Set>"
    assert parse_details(body) == {5: Details(5)}


def test_annotation_information_is_read_label_by_label():
    comment = (
        "<Gene-commentary><Gene-commentary_heading>Annotation Information</Gene-commentary_heading>"
        "<Gene-commentary_properties><Gene-commentary><Gene-commentary_label>Note</Gene-commentary_label>"
        "<Gene-commentary_text>partial on reference assembly</Gene-commentary_text></Gene-commentary>"
        "</Gene-commentary_properties></Gene-commentary></Entrezgene_comments>"
    )
    body = entrezgene_set([fake_gene(1)]).replace("</Entrezgene_comments>", comment)
    assert parse_details(body.encode())[1].annotation_information == "Note: partial on reference assembly"


def test_the_recorded_record_of_2014_is_read(shared_data):
    body = gzip.decompress((shared_data / "api_samples" / "eutils_efetch_gene_4747.xml.gz").read_bytes())
    found = parse_details(body)
    assert set(found) == {4747}
    details = found[4747]
    assert (details.gene_type, details.refseq_status) == ("protein-coding", "REVIEWED")
    assert details.primary_source == "HGNC:7739" and "MIM:162280" in details.see_related
    assert details.lineage.startswith("Eukaryota; Metazoa") and details.lineage.endswith("Homo")


def test_the_recorded_record_of_2024_is_read(shared_data):
    yaml = pytest.importorskip("yaml")
    packed = (shared_data / "api_samples" / "eutils_vcr_cassette_entrezgeneset.yml.gz").read_bytes()
    cassette = yaml.safe_load(gzip.decompress(packed))
    details = parse_details(cassette["interactions"][0]["response"]["body"]["string"].encode())[4747]
    assert details.primary_source == "HGNC:7739"
    assert details.see_related == ("Ensembl:ENSG00000277586", "MIM:162280", "AllianceGenome:HGNC:7739")
    assert details.ensembl_ids == ("ENSG00000277586",)
    assert details.expression == "Biased expression in brain (RPKM 94.3) and adrenal (RPKM 9.8)"
    assert details.orthologs == ({"entrez_id": 18039, "symbol": "NEFL", "organism": "mouse"},)
