"""Files of earlier systems: their content, and the gene of each record."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scvec.base.errors import InputError, ResourceError
from scvec.model.resolvers import GeneResolver
from scvec.workflows.import_legacy import LegacyRecord, match_records, read_legacy

PAGE = {
    "Official Symbol": "INS",
    "Official Full Name": "insulin",
    "Primary source": "HGNC:HGNC:6081",
    "See related": "Ensembl:ENSG00000254647 MIM:176730; AllianceGenome:HGNC:6081",
    "Gene type": "protein coding",
    "RefSeq status": "REVIEWED",
    "Organism": "Homo sapiens",
    "Lineage": "Eukaryota; Metazoa",
    "Also known as": "IDDM; ILPR",
    "Summary": "This gene encodes insulin, a peptide hormone. [provided by RefSeq, Dec 2019]",
    "Annotation information": "Note: x",
    "Expression": "Restricted expression toward pancreas (RPKM 20.0).",
    "Orthologs": "mouse",
}
VECTOR = [0.5, -0.25, 1.0, 0.0]

ALIASES = [
    ("HGNC:6081", "human", "INS", "symbol"),
    ("HGNC:6081", "human", "ENSG00000254647", "ensembl"),
    ("HGNC:6081", "human", "3630", "entrez"),
    ("HGNC:6081", "human", "IDDM2", "previous"),
    ("HGNC:6081", "human", "ILPR", "alias"),
    ("HGNC:4191", "human", "GCG", "symbol"),
    ("HGNC:4191", "human", "ENSG00000115263", "ensembl"),
    ("HGNC:9751", "human", "QARS1", "symbol"),
    ("HGNC:9751", "human", "QARS", "alias"),
    ("HGNC:3418", "human", "EPRS1", "symbol"),
    ("HGNC:3418", "human", "QARS", "alias"),
    ("MGI:96573", "mouse", "Ins2", "symbol"),
    ("MGI:96572", "mouse", "Ins1", "symbol"),
]
GENE_IDS = {a[0] for a in ALIASES}


def resolver() -> GeneResolver:
    orthologs = pd.DataFrame(
        columns=["gene_id", "species", "other_id", "other_species", "kind", "confidence"]
    )
    return GeneResolver(pd.DataFrame(ALIASES, columns=["gene_id", "species", "name", "kind"]), orthologs)


class Match:
    """Genes of records, and the records that were skipped."""

    def __init__(self, records: dict[str, LegacyRecord | str], species: str = "auto") -> None:
        found, self.skipped = match_records(records, resolver(), GENE_IDS, species)
        self.genes = {group: {g: key for g, (key, _) in genes.items()} for group, genes in found.items()}

    def why(self, kind: str) -> dict[str, str]:
        return {key: why for key, (found, why) in self.skipped.items() if found == kind}


def match(*records: tuple[str, LegacyRecord], species: str = "auto") -> Match:
    return Match({f"{r.group}/{key}".strip("/"): r for key, r in records}, species)


def usable(path: Path) -> dict[str, LegacyRecord]:
    return {key: r for key, r in read_legacy(path).items() if isinstance(r, LegacyRecord)}


def refused(path: Path) -> dict[str, str]:
    return {key: why for key, why in read_legacy(path).items() if isinstance(why, str)}


def write(path: Path, value: Any) -> Path:
    if not isinstance(value, bytes):
        value = pickle.dumps(value) if path.suffix == ".pkl" else json.dumps(value).encode()
        value = gzip.compress(value) if path.suffix == ".gz" else value
    path.write_bytes(value)
    return path


# -- reading --------------------------------------------------------------------------------------------


def test_the_fields_of_a_page_by_token_id(tmp_path: Path) -> None:
    model = {"error": "x", "Official Symbol": "NKG7", "Organism": "Homo sapiens", "gpt_Summary": "NKG7 is."}
    path = write(tmp_path / "human.json", {"17": PAGE, "18": {}, "19": model, "20": {"error": "y"}})
    (key, ins), (_, nkg7) = usable(path).items()
    assert (key, ins.symbol, ins.species) == ("17", "INS", "human")
    assert set(ins.ids) == {"HGNC:6081", "ENSG00000254647"}
    assert ins.value == "This gene encodes insulin, a peptide hormone."
    assert ins.provenance == {"provided_by": "RefSeq", "provided_at": "Dec 2019"}
    assert not ins.by_model and ins.dim == 0
    assert (nkg7.value, nkg7.by_model) == ("NKG7 is.", True)
    assert refused(path) == dict.fromkeys(["18", "20"], "it has neither a text nor a vector")


def test_the_vectors_by_token_id(tmp_path: Path) -> None:
    records = {
        17: {"gene_name": "INS", "embedding": VECTOR},
        18: {"error": "x", "gene_name": "Gcg", "species": "Mus musculus", "gpt_embedding": [1.0, 0, 0, 1]},
        19: {"gene_name": "X", "species": "Homo erectus", "embedding": VECTOR},
    }
    path = write(tmp_path / "v.pkl", records)
    found = list(usable(path).values())
    assert [(r.symbol, r.species) for r in found] == [("INS", None), ("Gcg", "mouse")]
    assert all(not isinstance(r.value, str) and r.value.dtype == np.float32 for r in found)
    np.testing.assert_array_equal([r.value for r in found], [VECTOR, [1, 0, 0, 1]])
    assert list(refused(path)) == ["19"] and "species" in refused(path)["19"]


@pytest.mark.parametrize(
    "how", ["pickle of lists", "pickle of arrays", "json", "csv", "csv.gz", "long pickle"]
)
def test_vectors_by_symbol_in_every_format(tmp_path: Path, how: str) -> None:
    dim = 1536 if how == "long pickle" else 4
    rng = np.random.default_rng(0)
    want = {name: rng.normal(size=dim).astype(np.float32) for name in ("INS", "GCG", "TTR")}
    lists = {k: v.tolist() for k, v in want.items()}
    frame = pd.DataFrame(lists).T
    if how.startswith("csv"):
        text = frame.to_csv().encode()
        path = write(tmp_path / f"e.{how}", text)
    elif how == "json":
        path = write(tmp_path / "e.json", lists)
    else:
        path = write(tmp_path / "e.pkl", want if how == "pickle of arrays" else lists)
    found = usable(path)
    assert [r.symbol for r in found.values()] == list(want) and not refused(path)
    np.testing.assert_array_equal([r.value for r in found.values()], list(want.values()))


def test_a_csv_without_names_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", b"INS,0.5,0.25\nGCG,1,2\nbad,x,1\nshort\n")
    assert list(usable(path)) == ["INS", "GCG"]
    assert set(refused(path)) == {"bad", "short"}


def test_texts_by_symbol_and_in_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json.gz", {"INS": "Insulin.", "GCG": "", "TTR": 5})
    assert [(r.symbol, r.value, r.group) for r in usable(path).values()] == [("INS", "Insulin.", "")]
    assert set(refused(path)) == {"GCG", "TTR"}
    grouped = usable(write(tmp_path / "g.json", {"ncbi": {"INS": "a text"}, "uniprot": {"INS": "another"}}))
    assert [(r.group, r.value) for r in grouped.values()] == [("ncbi", "a text"), ("uniprot", "another")]


def test_vectors_that_cannot_be_used(tmp_path: Path) -> None:
    bad = {
        "NAN": [float("nan"), 1.0, 1, 1],
        "INF": [float("inf"), 1.0, 1, 1],
        "HUGE": [1e300, 1.0, 1, 1],
        "VAST": [10**305, 1.0, 1, 1],
        "ZERO": [0.0] * 4,
        "SHORT": [1.0, 2.0, 3.0],
        "EMPTY": [],
        "WORDS": ["0.5"] * 4,
        "BOOLS": [True] * 4,
        "NONE": None,
        "TABLE": np.ones((2, 2)),
        "TEXT": "Insulin.",
        "NAMES": np.array(["a", "b"]),
    }
    path = write(tmp_path / "e.pkl", {"INS": VECTOR, "GCG": np.ones((1, 4)), **bad})
    assert list(usable(path)) == ["INS", "GCG"]
    assert set(refused(path)) == set(bad)
    np.testing.assert_array_equal([r.value for r in usable(path).values()], [VECTOR, [1, 1, 1, 1]])
    assert "3 dimensions, most have 4" in refused(path)["SHORT"]
    text = write(tmp_path / "e.json", {"INS": VECTOR, "VAST": [10**400, 1, 1, 1]})
    assert list(refused(text)) == ["VAST"]


def test_of_a_key_that_stands_there_twice_the_last_counts(tmp_path: Path) -> None:
    found = usable(write(tmp_path / "t.json", b'{"INS": "one", "INS": "two", "GCG": "three"}'))
    assert [r.value for r in found.values()] == ["two", "three"]
    [ins] = usable(write(tmp_path / "e.csv", b"x,a,b\nINS,1,2\nINS,3,4\n")).values()
    np.testing.assert_array_equal(ins.value, [3, 4])


@pytest.mark.parametrize(
    ("name", "content", "code", "names"),
    [
        ("x.json", b"{oops", "damaged-file", ""),
        ("x.json", b"[1, 2]", "wrong-format", "neither texts nor vectors"),
        ("x.json", b'{"a": ' * 100_000, "damaged-file", ""),
        ("x.json", b"{}", "wrong-format", "neither texts nor vectors"),
        ("x.json", b'{"INS": null}', "wrong-format", "neither texts nor vectors"),
        ("x.json", b'\xff\xfe{"', "wrong-format", "UTF-8"),
        ("x.json.gz", gzip.compress(b'{"INS": "x"}', mtime=0)[:-9], "damaged-file", ""),
        ("x.csv", b"INS\n", "wrong-format", "neither texts nor vectors"),
        ("x.csv", b"", "wrong-format", "neither texts nor vectors"),
        ("x.csv", b"INS," + b"1," * 800_000, "wrong-format", "neither texts nor vectors"),
        ("x.pkl", pickle.dumps([1.0]), "wrong-format", "neither texts nor vectors"),
        ("x.pkl", pickle.dumps(pd.DataFrame({"a": [1.0]})), "wrong-format", "which scvec does not run"),
        ("x.pkl.gz", gzip.compress(pickle.dumps({"INS": VECTOR}), mtime=0), "wrong-format", "this format"),
        ("x.bin", b"\x93NUMPY", "wrong-format", ""),
        ("x.json", json.dumps({"a": {"INS": VECTOR}, "b": {"INS": VECTOR}}).encode(), "wrong-format", "sets"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, name: str, content: bytes, code: str, names: str) -> None:
    with pytest.raises(InputError) as caught:
        read_legacy(write(tmp_path / name, content))
    assert caught.value.code == code and names in caught.value.what
    assert len(caught.value.lines()) == 3
    assert name in caught.value.where


def test_missing_files_and_memory(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "none.json", "file-not-found"), (tmp_path, "not-a-file")):
        with pytest.raises(InputError) as caught:
            read_legacy(path)
        assert caught.value.code == code
    bomb = write(tmp_path / "bomb.json.gz", gzip.compress(b'{"INS": "' + b"x" * 30_000_000 + b'"}'))
    with pytest.raises(ResourceError) as full:
        read_legacy(bomb, memory="64M")
    assert "--memory" in full.value.fix


def test_escape_codes_do_not_get_through(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", {"IN\x1b[31mS": "a\x00text\nof <b>two</b> lines"})
    [record] = usable(path).values()
    assert record.symbol.isprintable() and str(record.value).isprintable()


# -- matching -------------------------------------------------------------------------------------------


def entry(symbol: str, *ids: str, key: str = "", **more: Any) -> tuple[str, LegacyRecord]:
    return key or symbol, LegacyRecord(symbol, "x", ids, **more)


def test_a_token_id_is_no_gene() -> None:
    # 3630 is INS at Entrez; as a key, or as a name, it is a number of somebody's vocabulary.
    found = match(entry("GCG", key="3630"), entry("3630", key="a name"), entry(""))
    assert found.genes[""] == {"HGNC:4191": "3630"}
    assert list(found.why("unknown")) == ["a name", ""]


def test_records_that_name_two_genes_are_left_out() -> None:
    found = match(
        entry("INS", "HGNC:4191"),
        entry("GCG", "HGNC:4191", "ENSG00000254647"),
        entry("INS", "HGNC:6081", key="right"),
    )
    assert list(found.genes[""]) == ["HGNC:6081"]
    refused = found.why("refused")
    assert set(refused) == {"INS", "GCG"} and "HGNC:6081" in refused["INS"] and "HGNC:4191" in refused["INS"]


def test_ids_decide_where_a_symbol_is_ambiguous_or_unknown() -> None:
    found = match(
        entry("QARS", "HGNC:3418"), entry("C99orf1", "ENSG00000115263"), entry("GLUC", "entrez:3630")
    )
    assert set(found.genes[""]) == {"HGNC:3418", "HGNC:4191", "HGNC:6081"}
    assert match(entry("QARS")).why("ambiguous") == {"QARS": "HGNC:3418 or HGNC:9751"}
    unknown = match(entry("NOSUCH"), entry("INS-1"), entry("1-Mar")).why("unknown")
    assert list(unknown) == ["NOSUCH", "INS-1", "1-Mar"]


def test_the_symbol_that_a_text_begins_with(tmp_path: Path) -> None:
    texts = {
        "QARS": "Gene Symbol QARS1 Aminoacyl.",
        "INS": "Gene Symbol GCG Glucagon.",
        "GCG": "Gene Symbol GCG x",
    }
    found = Match(read_legacy(write(tmp_path / "t.json", texts)))
    assert set(found.genes[""]) == {"HGNC:9751", "HGNC:4191"}
    assert list(found.why("refused")) == ["INS"]


@pytest.mark.parametrize("order", [("INS", "IDDM2", "ILPR", "ins"), ("ins", "ILPR", "IDDM2", "INS")])
def test_the_official_symbol_wins(order: tuple[str, ...]) -> None:
    found = match(*map(entry, order), species="human")
    assert found.genes[""] == {"HGNC:6081": "INS"}
    assert len(found.why("repeated")) == 3
    found = match(*map(entry, [s for s in order if s != "INS"]), species="human")
    assert found.genes[""]["HGNC:6081"] == "IDDM2"


def test_species_of_the_record_of_the_caller_and_of_most() -> None:
    both = match(entry("Ins2", species="mouse"), entry("INS"), entry("Ins1"))
    assert "MGI:96573" in both.genes[""]
    assert set(match(entry("Ins2"), entry("Ins1")).genes[""]) == {"MGI:96573", "MGI:96572"}
    assert set(match(entry("Ins2"), species="mouse").genes[""]) == {"MGI:96573"}
    of_rat = match(entry("INS"), species="rat")
    assert not of_rat.genes and list(of_rat.why("unknown")) == ["INS"]


def test_groups_are_matched_on_their_own() -> None:
    found = match(entry("INS", group="a"), entry("INS", group="b"), entry("GCG", group="b"))
    assert {g: list(v) for g, v in found.genes.items()} == {
        "a": ["HGNC:6081"],
        "b": ["HGNC:6081", "HGNC:4191"],
    }


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    names = ["INS", "IDDM2", "QARS", "NOSUCH", "GCG", "3630"]
    records = read_legacy(write(tmp_path / "e.json", {n: VECTOR for n in names} | {"Z": [0.0] * 4}))
    found = Match(records)
    assert len(found.genes[""]) + len(found.skipped) == len(records) == 7


def test_the_published_files(shared_data: Path) -> None:
    texts = usable(shared_data / "genes" / "genept_ncbi_uniprot_text_subset.json.gz")
    assert len(texts) == 2122 and {r.group for r in texts.values()} == {"ncbi_only", "ncbi_uniprot"}
    path = shared_data / "genes" / "genept_embeddings_small.csv.gz"
    assert [r.dim for r in usable(path).values()] == [1536] * 86
    assert list(refused(path)) == ["ctrl"]
