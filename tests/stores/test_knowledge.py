"""The knowledge base: no duplicate rows, loads are all or nothing, and facts are not changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import LockedError, StoreError
from scvec.base.types import Description, Gene
from scvec.stores.knowledge import tables as schema
from scvec.stores.knowledge.knowledge import KnowledgeBase

INS = Gene("entrez:3630", "human", "INS", 3630, "insulin")
INS1 = Gene("entrez:16333", "mouse", "Ins1", 16333, "insulin I", ensembl_ids=("ENSMUSG00000035804",))
TEXT = Description("entrez:3630", "Makes insulin.", "refseq", "2026-01", "2026-01-01", "human")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kb") / "kb.duckdb"
    with KnowledgeBase.open(path) as kb:
        kb.load_snapshot()
    return path


@pytest.fixture
def kb(loaded: Path, tmp_path: Path) -> Iterator[KnowledgeBase]:
    shutil.copy(loaded, tmp_path / "kb.duckdb")
    with KnowledgeBase.open(tmp_path / "kb.duckdb") as base:
        yield base


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.open(tmp_path / "empty.duckdb") as base:
        yield base


@pytest.mark.slow
def test_loading_twice_changes_nothing(kb: KnowledgeBase) -> None:
    digest, counts = kb.digest(), kb.counts()
    assert set(kb.load_snapshot().values()) == {0}
    # Simulate another version, so that the load meets every row again.
    kb._con.execute("DELETE FROM meta")
    assert kb.load_snapshot()["genes"] == 0
    assert (kb.digest(), kb.counts()) == (digest, counts)


@pytest.mark.slow
def test_species_one_by_one_or_together_is_the_same(loaded: Path, empty: KnowledgeBase) -> None:
    assert empty.load_snapshot(["mouse"])["genes"] > 50_000
    assert set(empty.genes().species) == {"mouse"}
    empty.load_snapshot(["human"])
    with KnowledgeBase.open(loaded, read_only=True) as other:
        assert empty.digest() == other.digest()


def test_rows_are_exactly_once(kb: KnowledgeBase) -> None:
    for table, key in (
        ("aliases", "gene_id, kind, name"),
        ("orthologs", "gene_id, other_id"),
        ("go_terms", "go_id"),
        ("go_annotations", "gene_id, go_id"),
        ("go_parents", "go_id, parent_id, relation"),
        ("cl_terms", "cl_id"),
        ("cl_synonyms", "cl_id, synonym"),
        ("cl_ancestors", "cl_id, ancestor_id"),
    ):
        total, unique = kb._one(f"SELECT count(*), count(DISTINCT ({key})) FROM {table}")
        assert total == unique > 0, table


@pytest.mark.slow
def test_the_digest_covers_all_content_but_not_times(kb: KnowledgeBase) -> None:
    before = kb.digest()
    kb._con.execute("UPDATE descriptions SET retrieved_at = '1999-01-01' WHERE gene_id = 'HGNC:6081'")
    assert kb.digest() == before
    kb._con.execute("UPDATE descriptions SET text = text || '.' WHERE gene_id = 'HGNC:6081'")
    assert kb.digest() != before


def test_the_digest_equals_one_computed_by_hand(empty: KnowledgeBase) -> None:
    # Stores keep digests, so other code or another DuckDB must give the same ones.
    empty.upsert_genes([INS, INS1])
    with_jobs, digest = empty.digests()
    assert with_jobs == digest == empty.digest() == empty.digest(jobs=True)
    parts = [f"schema {schema.SCHEMA_VERSION}"]
    for table in schema.CONTENT_TABLES:
        columns = sorted({row[0] for row in empty._all(f"DESCRIBE {table}")} - schema.TIME_COLUMNS)
        sums = [0, 0]
        rows = empty._all(f"SELECT {', '.join(f'{c}::VARCHAR' for c in columns)} FROM {table}")
        for row in rows:
            cells = "".join("-" if cell is None else f"{len(cell)}:{cell}" for cell in row)
            number = hashlib.md5(cells.encode()).digest()
            for i, half in enumerate((number[8:], number[:8])):
                sums[i] += int.from_bytes(half, "little")
        low, high = sums if rows else (None, None)
        parts.append(f"{table} {','.join(columns)} {len(rows)} {low} {high}")
    assert hashlib.sha256("\n".join(parts).encode()).hexdigest() == digest


def test_a_file_gene_merges_by_entrez_ensembl_or_symbol(kb: KnowledgeBase) -> None:
    zyx = Gene("entrez:22793", "mouse", "Zyx", 22793)
    new = Gene("entrez:999999999", "human", "NEW1", 999999999)
    stored = kb.upsert_genes([INS, INS1, zyx, new])
    assert stored == {
        "entrez:3630": "HGNC:6081",
        "entrez:16333": "MGI:96572",
        "entrez:22793": "MGI:103072",
        "entrez:999999999": "entrez:999999999",
    }
    genes = kb.genes().set_index("gene_id")
    assert genes.loc["MGI:96572"].entrez_id == 16333
    assert genes.loc["MGI:96572"]["name"] == "insulin I"
    assert genes.loc["HGNC:6081"].source == "scvec-snapshot"
    assert "16333" in set(kb.aliases("mouse").query("kind == 'entrez'").name)


def test_a_symbol_of_a_gene_with_another_entrez_id_does_not_merge(kb: KnowledgeBase) -> None:
    stranger = Gene("entrez:888888888", "human", "INS", 888888888)
    assert kb.upsert_genes([stranger]) == {"entrez:888888888": "entrez:888888888"}
    kinds = kb.aliases("human").query("name == 'INS'").set_index("gene_id").kind
    assert kinds["HGNC:6081"] == "symbol"
    assert kinds["entrez:888888888"] == "alias"
    # A second load must not make it official.
    kb.upsert_genes([stranger])
    assert (kb.aliases("human").query("name == 'INS' and kind == 'symbol'").gene_id == "HGNC:6081").all()


@pytest.mark.slow
def test_records_before_or_after_the_snapshot(kb: KnowledgeBase, empty: KnowledgeBase) -> None:
    batch = [(INS, [TEXT])]
    kb.upsert_records([batch])
    empty.upsert_records([batch])
    assert empty.counts()["genes"] == 1
    empty.load_snapshot()
    assert empty.counts() == kb.counts()
    for base in (kb, empty):
        assert base.descriptions(["HGNC:6081"])["HGNC:6081"].text == "Makes insulin."
        assert {d.kind for d in base.all_descriptions("HGNC:6081")} == {"human", "composed"}


@pytest.mark.slow
def test_records_load_once(kb: KnowledgeBase) -> None:
    batch = [(INS, [TEXT]), (INS1, [])]
    assert kb.upsert_records([batch]) == {
        "records": 2, "described": 1, "genes": 0, "aliases": 0, "descriptions": 1,
    }  # fmt: skip
    digest = kb.digest()
    again = kb.upsert_records([batch[:1], batch[1:]])
    assert (again["genes"], again["aliases"], again["descriptions"]) == (0, 0, 0)
    assert kb.digest() == digest


@pytest.mark.slow
def test_a_load_that_fails_leaves_nothing(kb: KnowledgeBase) -> None:
    digest = kb.digest()

    def broken() -> Iterator[list[tuple[Gene, list[Description]]]]:
        yield [(INS, [TEXT])]
        raise ValueError("the second batch is bad")

    with pytest.raises(ValueError, match="second batch"):
        kb.upsert_records(broken())
    assert kb.digest() == digest
    kb.upsert_records([[(INS, [TEXT])]])  # the connection still works
    assert kb.digest() != digest


def test_a_killed_load_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kb.duckdb"
    code = (
        "import os, sys\n"
        "from scvec.stores.knowledge.knowledge import KnowledgeBase\n"
        "from scvec.base.types import Gene\n"
        "kb = KnowledgeBase.open(sys.argv[1])\n"
        "def batches():\n"
        "    yield [(Gene(f'entrez:{i}', 'human', f'G{i}', i), []) for i in range(1, 5000)]\n"
        "    os._exit(9)\n"
        "kb.upsert_records(batches())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, env=dict(os.environ))
    assert done.returncode == 9
    with KnowledgeBase.open(path) as kb:
        assert kb.counts()["genes"] == kb.counts()["aliases"] == 0


def test_best_description_by_kind_and_then_date(kb: KnowledgeBase) -> None:
    llm = replace(
        TEXT, gene_id="HGNC:6081", kind="llm", model="m", prompt="p", text="LLM text", source="openai"
    )
    old = replace(TEXT, gene_id="HGNC:6081", source="older", retrieved_at="2020-01-01", text="Old text")
    assert kb.upsert_descriptions([llm, old, replace(TEXT, gene_id="HGNC:6081")]) == 3
    assert kb.upsert_descriptions([replace(llm, text="LLM text 2")]) == 0
    best = kb.descriptions(["MGI:96572", "HGNC:6081", "no such gene"])
    assert list(best) == ["MGI:96572", "HGNC:6081"]
    assert best["HGNC:6081"].text == "Makes insulin."
    assert kb.descriptions(["HGNC:6081"], prefer=("llm",))["HGNC:6081"].text == "LLM text 2"
    assert kb.descriptions(["HGNC:6081"], prefer=("borrowed",)) == {}


@settings(max_examples=15)
@given(text=st.text(max_size=200), name=st.text(min_size=1, max_size=20))
def test_any_text_survives_a_round_trip(empty: KnowledgeBase, text: str, name: str) -> None:
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    label = name.encode("utf-8", "replace").decode("utf-8")
    empty.upsert_genes([Gene("entrez:1", "human", label, 1)])
    empty.upsert_descriptions([replace(TEXT, gene_id="entrez:1", text=encodable)])
    assert empty.all_descriptions("entrez:1")[0].text == encodable
    assert empty.counts()["descriptions"] == 1


def test_cell_ontology_names_and_ancestors(kb: KnowledgeBase) -> None:
    names = kb.cl_names()
    assert ("CL:0000236", "B cell", True) in names
    assert ("CL:0000169", "pancreatic beta cell", False) in names
    own = [mine for _, _, mine in names]
    assert own == sorted(own, reverse=True), "labels come first"
    assert next(iter(kb.cl_ancestors("CL:0000236").values())) == 1
    assert kb.cl_label("CL:0000236") == "B cell" and kb.cl_label("CL:9999999") == "CL:9999999"


def test_counts_for_info(kb: KnowledgeBase) -> None:
    counts = kb.counts()
    assert counts["genes"] == counts["genes human"] + counts["genes mouse"]
    assert counts["descriptions"] == counts["descriptions composed"] + counts["descriptions borrowed"]


def test_no_file_of_the_machine_can_be_read(kb: KnowledgeBase, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for sql in (f"SELECT * FROM read_csv('{tmp_path / 'secret.csv'}')", "SET enable_external_access = true"):
        with pytest.raises(duckdb.Error):
            kb._con.execute(sql).fetchall()


def test_no_progress_bar_is_shown(loaded: Path) -> None:
    # With -c DuckDB assumes an interactive program, like a notebook, and shows the bar.
    code = (
        "import sys, duckdb\n"
        "from scvec.stores.knowledge.knowledge import KnowledgeBase\n"
        "from scvec.stores.knowledge.tables import connect\n"
        "shown = \"SELECT current_setting('enable_progress_bar')\"\n"
        "assert duckdb.connect().execute(shown).fetchone()[0]\n"
        "kbs = [KnowledgeBase.open(sys.argv[1], read_only=True) for _ in range(2)]\n"
        "for con in (*(kb._con for kb in kbs), connect(':memory:')):\n"
        "    assert not con.execute(shown).fetchone()[0]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(loaded)], check=True, timeout=120)


def test_duckdb_is_opened_in_one_place() -> None:
    package = Path(schema.__file__).parents[2]
    users = [p.name for p in sorted(package.rglob("*.py")) if "duckdb.connect(" in p.read_text("utf-8")]
    assert users == ["tables.py"]


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kb.duckdb"
    with KnowledgeBase.open(path) as kb:
        kb._con.execute("INSERT INTO schema_version VALUES (1000)")
    for read_only in (False, True):
        with pytest.raises(StoreError, match="schema 1000") as caught:
            KnowledgeBase.open(path, read_only=read_only)
        assert caught.value.exit_code == 3


def test_files_that_are_not_a_knowledge_base_are_refused(tmp_path: Path) -> None:
    noise = tmp_path / "noise.duckdb"
    noise.write_bytes(bytes(range(256)) * 64)
    with pytest.raises(StoreError, match="damaged"):
        KnowledgeBase.open(noise)
    with pytest.raises(StoreError, match="knowledge base"):
        KnowledgeBase.open(tmp_path / "missing.duckdb", read_only=True)
    assert not (tmp_path / "missing.duckdb").exists()
    other = tmp_path / "other.duckdb"
    with duckdb.connect(str(other)) as con:
        con.execute("CREATE TABLE mine (a INTEGER)")
    for read_only in (False, True):
        with pytest.raises(StoreError, match="knowledge base"):
            KnowledgeBase.open(other, read_only=read_only)


def test_a_file_in_use_names_the_process(tmp_path: Path) -> None:
    path = tmp_path / "kb.duckdb"
    KnowledgeBase.open(path).close()
    code = (
        "import sys\nfrom scvec.stores.knowledge.knowledge import KnowledgeBase\n"
        "kb = KnowledgeBase.open(sys.argv[1])\nprint('open', flush=True)\nsys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(LockedError, match=str(other.pid)):
            KnowledgeBase.open(path)
    finally:
        other.communicate("")


def test_names_come_in_a_fixed_order(tmp_path: Path) -> None:
    """The order of names changes the prompt, and paid answers are found again by their prompt."""
    names = [f"N{i}" for i in range(300)]
    found = []
    for turn in range(2):
        with KnowledgeBase.open(tmp_path / f"{turn}.duckdb") as kb:
            for part in (names, names[::-1])[turn][:150], (names, names[::-1])[turn][150:]:
                kb.upsert_genes([Gene("HGNC:1", "human", "A", aliases=tuple(part), previous=("P", "O"))])
            found.append(kb.aliases().values.tolist())
    assert found[0] == found[1] and len(found[0]) == 303
