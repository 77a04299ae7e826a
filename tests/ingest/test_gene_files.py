"""Gene files: their content, and the errors for bad files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.ingest.genes import GeneRecord, read_gene_file

ROW: dict[str, Any] = {
    "entrez_id": 3630,
    "symbol": "INS",
    "ensembl_id": "ENSG00000254647",
    "ensembl_ids": ["ENSG00000254647"],
    "authority_id": "HGNC:6081",
    "name": "insulin",
    "aliases": ["IDDM", "ILPR"],
    "previous_symbols": ["IDDM2"],
    "gene_type": "protein-coding",
    "summary": "This gene encodes insulin. [provided by RefSeq, Dec 2019]",
    "go_terms": [{"id": "GO:0005179", "name": "hormone activity", "aspect": "MF", "evidence": ["IDA"]}],
    "source": "NCBI gene_info; GeneSummary/RefSeq 2026-01",
}


def read(path: Path, **options: Any) -> list[GeneRecord]:
    return [record for batch in read_gene_file(path, **options) for record in batch]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pandas as pd

    flat = pd.DataFrame(rows)
    for column in ("aliases", "previous_symbols", "ensembl_ids"):
        if column in flat:
            flat[column] = flat[column].map("|".join)
    if "go_terms" in flat:
        flat["go_terms"] = flat["go_terms"].map(json.dumps)
    flat.to_csv(path, index=False, na_rep="-")
    return path


@pytest.mark.parametrize(
    ("write", "name"), [(write_parquet, "g.parquet"), (write_jsonl, "g.jsonl"), (write_csv, "g.csv")]
)
def test_every_format_gives_the_same_genes(tmp_path: Path, write: Any, name: str) -> None:
    [(gene, [text])] = read(write(tmp_path / name, [ROW]), retrieved_at="2026-02-03")
    assert gene.gene_id == "HGNC:6081"
    assert (gene.species, gene.symbol, gene.entrez_id, gene.name) == ("human", "INS", 3630, "insulin")
    assert gene.ensembl_ids == ("ENSG00000254647",)
    assert gene.aliases == ("IDDM", "ILPR")
    assert gene.previous == ("IDDM2",)
    assert text.text == "This gene encodes insulin."
    assert (text.kind, text.source, text.source_version) == ("human", "refseq", "Dec 2019")
    assert (text.gene_id, text.retrieved_at) == ("HGNC:6081", "2026-02-03")


def test_a_gene_with_terms_and_no_summary_gets_a_composed_text(tmp_path: Path) -> None:
    [(_, [text])] = read(write_jsonl(tmp_path / "g.jsonl", [{**ROW, "summary": None}]))
    assert text.kind == "composed"
    assert "hormone activity" in text.text
    [(_, texts)] = read(write_jsonl(tmp_path / "h.jsonl", [{**ROW, "summary": "-", "go_terms": []}]))
    assert texts == []


def test_refseq_version_from_the_source_column(tmp_path: Path) -> None:
    [(_, [text])] = read(write_jsonl(tmp_path / "g.jsonl", [{**ROW, "summary": "Encodes insulin."}]))
    assert text.source_version == "GeneSummary/RefSeq 2026-01"


def test_gzip_missing_values_and_arrays_as_pandas_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "g.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("entrez_id,symbol,species,aliases,name\n3630.0,INS,Homo sapiens,['IDDM' 'ILPR'],-\n")
    [(gene, _)] = read(path)
    assert (gene.gene_id, gene.aliases, gene.name) == ("entrez:3630", ("IDDM", "ILPR"), "")


def test_species_of_the_row_of_the_file_or_of_the_caller(tmp_path: Path) -> None:
    plain = {"entrez_id": 1, "symbol": "X"}
    mouse = {**plain, "authority_id": "MGI:96572"}
    path = write_jsonl(tmp_path / "g.jsonl", [plain, mouse, {**mouse, "entrez_id": 2}])
    assert [g.species for g, _ in read(path)] == ["mouse"] * 3
    assert [g.species for g, _ in read(path, species="human")] == ["human", "mouse", "mouse"]
    with pytest.raises(InputError, match="species"):
        read(write_jsonl(tmp_path / "h.jsonl", [plain]))


def test_batches_do_not_change_what_is_read(tmp_path: Path) -> None:
    rows = [{"entrez_id": i, "symbol": f"G{i}", "species": "human"} for i in range(1, 26)]
    path = write_jsonl(tmp_path / "g.jsonl", rows)
    assert [len(b) for b in read_gene_file(path, batch_size=10)] == [10, 10, 5]
    assert [g.entrez_id for g, _ in read(path, batch_size=7)] == list(range(1, 26))


@pytest.mark.parametrize(
    ("change", "what", "where"),
    [
        ({"entrez_id": "abc"}, "not an Entrez id", "row 2, column entrez_id"),
        ({"entrez_id": -3}, "not an Entrez id", "row 2, column entrez_id"),
        ({"entrez_id": 1e300}, "not an Entrez id", "row 2"),
        ({"symbol": ""}, "no symbol", "row 2"),
        ({"symbol": "-"}, "no symbol", "row 2"),
        ({"authority_id": "HGNC 6081"}, "not an authority id", "row 2, column authority_id"),
        ({"species": "yeasst"}, "unknown species", "row 2, column species"),
        ({"entrez_id": None, "authority_id": None}, "neither", "row 2"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], what: str, where: str) -> None:
    path = write_jsonl(tmp_path / "g.jsonl", [ROW, {**ROW, **change}])
    with pytest.raises(InputError, match=what) as caught:
        read(path, species="human")
    assert where in caught.value.where
    assert caught.value.fix
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("g.txt", b"x", "unknown format"),
        ("g", b"x", "unknown format"),
        ("g.jsonl", b"", "no rows"),
        ("g.csv", b"", "no column"),
        ("g.csv", b"entrez_id,symbol\n", "no rows"),
        ("g.csv", b"entrez_id,name\n1,x\n", "no column 'symbol'"),
        ("g.csv", b"symbol,name\nA,x\n", "no column 'entrez_id'"),
        ("g.csv", b"entrez_id,symbol\n1,A,B\n", "3 columns, but the header has 2"),
        ("g.csv", b"entrez_id,symbol\n1,\xff\xfe\n", "not UTF-8"),
        ("g.csv", b'entrez_id,symbol\n1,"' + b"A" * 200_000 + b'"\n', "csv cannot be read"),
        ("g.csv.gz", b"not gzip", "damaged"),
        ("g.csv.gz", gzip.compress(b"entrez_id,symbol\n" + b"1,A\n" * 9999, mtime=0)[:60], "damaged"),
        ("g.jsonl", b"{oops\n", "not JSON"),
        ("g.jsonl", b"[1, 2]\n", "not a JSON object"),
        ("g.jsonl", b"[" * 100_000, "not JSON"),
        ("g.jsonl", b'{"symbol": "A"}\n', "no column"),
        ("g.jsonl", b"x" * 4_100_000, "longer than 4 MB"),
        ("g.parquet", b"PAR1 but no more", "parquet"),
        ("g.parquet", b"", "parquet"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=what) as caught:
        read(path, species="human")
    assert len(caught.value.lines()) <= 3
    assert caught.value.fix


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            read(path)


def test_a_parquet_file_without_the_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'symbol'"):
        read(write_parquet(tmp_path / "g.parquet", [{"a": 1}]))


def test_escape_codes_and_line_breaks_do_not_get_through(tmp_path: Path) -> None:
    row = {**ROW, "symbol": "IN\x1b[31mS\n", "summary": "a\r\nb\x00c", "name": "x" * 9999}
    [(gene, [text])] = read(write_jsonl(tmp_path / "g.jsonl", [row]))
    assert gene.symbol.isprintable()
    assert text.text == "a  b c"
    assert len(gene.name) == 300


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
nested = values | st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3)


@settings(max_examples=100)
@given(st.fixed_dictionaries({}, optional={key: nested for key in (*ROW, "species")}))
def test_any_value_is_read_or_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "g.jsonl", [{"symbol": "A", "entrez_id": 1, **row}])
    try:
        [(gene, _)] = read(path, species="human")
    except InputError as err:
        assert err.where
    else:
        assert gene.symbol and gene.gene_id


@pytest.mark.slow
def test_the_real_files(shared_data: Path) -> None:
    human = read(shared_data / "genes" / "human_gene_descriptions.parquet")
    assert len(human) == 77_614
    assert {g.species for g, _ in human} == {"human"}
    by_kind = [t.kind for _, texts in human for t in texts]
    assert by_kind.count("human") == 15_136
    [ins] = [texts for g, texts in human if g.gene_id == "HGNC:6081"]
    assert ins[0].text.startswith("This gene encodes insulin")
