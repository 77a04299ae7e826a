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
from scvec.workflows.import_legacy import LegacyEntry, LegacyMatch, match_entries, read_legacy

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


def match(*entries: LegacyEntry, species: str = "auto") -> LegacyMatch:
    return match_entries(entries, resolver(), GENE_IDS, species)


def write(path: Path, value: Any) -> Path:
    if not isinstance(value, bytes):
        value = pickle.dumps(value) if path.suffix == ".pkl" else json.dumps(value).encode()
        value = gzip.compress(value) if path.suffix == ".gz" else value
    path.write_bytes(value)
    return path


# -- reading --------------------------------------------------------------------------------------------


def test_the_fields_of_a_page_by_token_id(tmp_path: Path) -> None:
    model = {"error": "x", "Official Symbol": "NKG7", "Organism": "Homo sapiens", "gpt_Summary": "NKG7 is."}
    file = read_legacy(
        write(tmp_path / "human.json", {"17": PAGE, "18": {}, "19": model, "20": {"error": "y"}})
    )
    assert (file.kind, file.dim, file.n_records) == ("scinterpreter", 0, 4)
    ins, nkg7 = file.entries
    assert (ins.key, ins.symbol, ins.species) == ("17", "INS", "human")
    assert set(ins.ids) == {"HGNC:6081", "ENSG00000254647"}
    assert ins.text == "This gene encodes insulin, a peptide hormone."
    assert ins.provenance == {"provided_by": "RefSeq", "provided_at": "Dec 2019"}
    assert not ins.by_model and ins.vector is None
    assert (nkg7.text, nkg7.by_model) == ("NKG7 is.", True)
    assert file.refused == {"18": "it is empty", "20": "it has no summary"}


def test_the_vectors_by_token_id(tmp_path: Path) -> None:
    records = {
        17: {"gene_name": "INS", "embedding": VECTOR},
        18: {"error": "x", "gene_name": "Gcg", "species": "Mus musculus", "gpt_embedding": [1.0, 0, 0, 1]},
        19: {"gene_name": "X", "species": "Danio rerio", "embedding": VECTOR},
    }
    file = read_legacy(write(tmp_path / "v.pkl", records))
    assert [(e.symbol, e.species) for e in file.entries] == [("INS", None), ("Gcg", "mouse")]
    assert all(e.vector is not None and e.vector.dtype == np.float32 for e in file.entries)
    np.testing.assert_array_equal([e.vector for e in file.entries], [VECTOR, [1, 0, 0, 1]])
    assert list(file.refused) == ["19"] and "species" in file.refused["19"]


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
    file = read_legacy(path)
    assert [e.symbol for e in file.entries] == list(want) and file.kind == "genept"
    np.testing.assert_array_equal([e.vector for e in file.entries], list(want.values()))


def test_a_csv_without_names_of_columns(tmp_path: Path) -> None:
    file = read_legacy(write(tmp_path / "e.csv", b"INS,0.5,0.25\nGCG,1,2\nbad,x,1\nshort\n"))
    assert [e.key for e in file.entries] == ["INS", "GCG"]
    assert set(file.refused) == {"bad", "short"}


def test_texts_by_symbol_and_in_groups(tmp_path: Path) -> None:
    plain = read_legacy(write(tmp_path / "t.json.gz", {"INS": "Insulin.", "GCG": "", "TTR": 5}))
    assert [(e.symbol, e.text, e.group) for e in plain.entries] == [("INS", "Insulin.", "")]
    assert set(plain.refused) == {"GCG", "TTR"}
    grouped = read_legacy(
        write(tmp_path / "g.json", {"ncbi": {"INS": "a text"}, "uniprot": {"INS": "another"}})
    )
    assert [(e.group, e.text) for e in grouped.entries] == [("ncbi", "a text"), ("uniprot", "another")]


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
    file = read_legacy(write(tmp_path / "e.pkl", {"INS": VECTOR, "GCG": np.ones((1, 4)), **bad}))
    assert [e.key for e in file.entries] == ["INS", "GCG"]
    assert set(file.refused) == set(bad)
    np.testing.assert_array_equal([e.vector for e in file.entries], [VECTOR, [1, 1, 1, 1]])
    assert "3 dimensions, most have 4" in file.refused["SHORT"]
    text = read_legacy(write(tmp_path / "e.json", {"INS": VECTOR, "VAST": [10**400, 1, 1, 1]}))
    assert list(text.refused) == ["VAST"]


def test_of_a_key_that_stands_there_twice_the_last_counts(tmp_path: Path) -> None:
    file = read_legacy(write(tmp_path / "t.json", b'{"INS": "one", "INS": "two", "GCG": "three"}'))
    assert [e.text for e in file.entries] == ["two", "three"]
    [ins] = read_legacy(write(tmp_path / "e.csv", b"x,a,b\nINS,1,2\nINS,3,4\n")).entries
    np.testing.assert_array_equal(ins.vector, [3, 4])


@pytest.mark.parametrize(
    ("name", "content", "code", "names"),
    [
        ("x.json", b"{oops", "damaged-file", ""),
        ("x.json", b"[1, 2]", "wrong-format", "list"),
        ("x.json", b'{"a": ' * 100_000, "damaged-file", ""),
        ("x.json", b"{}", "wrong-format", "no records"),
        ("x.json", b'{"INS": null}', "wrong-format", "neither texts nor vectors"),
        ("x.json", b'\xff\xfe{"', "wrong-format", "UTF-8"),
        ("x.json.gz", gzip.compress(b'{"INS": "x"}', mtime=0)[:-9], "damaged-file", ""),
        ("x.csv", b"INS\n", "wrong-format", "columns"),
        ("x.csv", b"", "wrong-format", "no records"),
        ("x.csv", b"INS," + b"1," * 800_000, "wrong-format", "no records"),
        ("x.pkl", pickle.dumps([1.0]), "wrong-format", "list"),
        ("x.pkl", pickle.dumps(pd.DataFrame({"a": [1.0]})), "wrong-format", "which scvec does not run"),
        ("x.pkl.gz", gzip.compress(pickle.dumps({"INS": VECTOR}), mtime=0), "wrong-format", "gzip"),
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
    file = read_legacy(write(tmp_path / "t.json", {"IN\x1b[31mS": "a\x00text\nof <b>two</b> lines"}))
    assert file.entries[0].symbol.isprintable() and file.entries[0].text.isprintable()


# -- matching -------------------------------------------------------------------------------------------


def entry(symbol: str, *ids: str, key: str = "", **more: Any) -> LegacyEntry:
    return LegacyEntry(key or symbol, symbol, ids, text="x", **more)


def test_a_token_id_is_no_gene() -> None:
    # 3630 is INS at Entrez; as a key, or as a name, it is a number of somebody's vocabulary.
    found = match(entry("GCG", key="3630"), entry("3630"), entry(""))
    assert {g: e.key for g, e in found.genes[""].items()} == {"HGNC:4191": "3630"}
    assert list(found.why("unknown")) == ["3630", ""]


def test_records_that_name_two_genes_are_left_out() -> None:
    found = match(
        entry("INS", "HGNC:4191"), entry("GCG", "HGNC:4191", "ENSG00000254647"), entry("INS", "HGNC:6081")
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
    found = match(*read_legacy(write(tmp_path / "t.json", texts)).entries)
    assert set(found.genes[""]) == {"HGNC:9751", "HGNC:4191"}
    assert list(found.why("refused")) == ["INS"]


@pytest.mark.parametrize("order", [("INS", "IDDM2", "ILPR", "ins"), ("ins", "ILPR", "IDDM2", "INS")])
def test_the_official_symbol_wins(order: tuple[str, ...]) -> None:
    found = match(*map(entry, order), species="human")
    assert found.genes[""]["HGNC:6081"].symbol == "INS"
    assert len(found.why("repeated")) == 3 and found.n_matched == 1
    found = match(*map(entry, [s for s in order if s != "INS"]), species="human")
    assert found.genes[""]["HGNC:6081"].symbol == "IDDM2"


def test_species_of_the_record_of_the_caller_and_of_most() -> None:
    both = match(entry("Ins2", species="mouse"), entry("INS"), entry("Ins1"))
    assert set(both.genes[""]) == {"MGI:96573", "HGNC:6081"} or both.species == "mouse"
    assert match(entry("Ins2"), entry("Ins1")).species == "mouse"
    assert set(match(entry("Ins2"), species="mouse").genes[""]) == {"MGI:96573"}
    of_rat = match(entry("INS"), species="rat")
    assert of_rat.n_matched == 0 and list(of_rat.why("unknown")) == ["INS"]


def test_groups_are_matched_on_their_own() -> None:
    found = match(entry("INS", group="a"), entry("INS", group="b"), entry("GCG", group="b"))
    assert {g: list(v) for g, v in found.genes.items()} == {
        "a": ["HGNC:6081"],
        "b": ["HGNC:6081", "HGNC:4191"],
    }


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    names = ["INS", "IDDM2", "QARS", "NOSUCH", "GCG", "3630"]
    file = read_legacy(write(tmp_path / "e.json", {n: VECTOR for n in names} | {"Z": [0.0] * 4}))
    found = match(*file.entries)
    assert found.n_matched + len(found.left) + len(file.refused) == file.n_records == 7


def test_the_published_files(shared_data: Path) -> None:
    texts = read_legacy(shared_data / "genes" / "genept_ncbi_uniprot_text_subset.json.gz")
    assert len(texts.entries) == 2122 and {e.group for e in texts.entries} == {"ncbi_only", "ncbi_uniprot"}
    vectors = read_legacy(shared_data / "genes" / "genept_embeddings_small.csv.gz")
    assert (len(vectors.entries), vectors.dim) == (86, 1536)
    assert vectors.refused == {"ctrl": "its vector is zero"}
