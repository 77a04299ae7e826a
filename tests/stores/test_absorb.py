"""Absorbing answers: the gene of the job decides, the order does not matter, and repeats change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_answers import AT, answer, done_jobs, failure, genes, job, written

from scvec.base.types import Answer, Failure, Gene, Job, Marker, Note
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.journal import Journal
from scvec.stores.store.store import Store


@pytest.fixture
def kb(tmp_path: Path) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.open(tmp_path / "kb.duckdb") as base:
        base.upsert_genes(genes(8))
        yield base


def absorb(kb: KnowledgeBase, items: Iterable[Answer | Failure], path: Path | None = None) -> dict[str, int]:
    with Journal(path or kb.path.with_name("answers.log")) as journal:
        items = list(items)
        journal.write(
            [i for i in items if isinstance(i, Answer)], [i for i in items if isinstance(i, Failure)]
        )
        counts = kb.absorb(journal)
        journal.clear()
    return counts


def state(kb: KnowledgeBase) -> tuple[str, list, list]:
    jobs = kb._all("SELECT * EXCLUDE (updated_at) FROM jobs ORDER BY ALL")
    return kb.digest(), kb.failures(), jobs


def test_an_answer_is_stored_under_the_gene_of_its_job(kb: KnowledgeBase) -> None:
    counts = absorb(kb, [answer(1), answer(1, "mygene"), written(1), failure(2, final=True, attempts=3)])
    assert counts == {
        "answers": 3, "failures": 1, "genes": 0, "descriptions": 3, "notes": 2, "unplaced": 0,
    }  # fmt: skip
    row = kb.genes().set_index("gene_id").loc["HGNC:1"]
    assert (row.entrez_id, row["name"], row.symbol) == (1001, "gene 1", "G1")
    assert "A1" in set(kb.aliases("human").query("gene_id == 'HGNC:1'").name)
    texts = {d.source: d for d in kb.all_descriptions("HGNC:1")}
    assert texts["ncbi"] == replace(answer(1).descriptions[0])
    assert texts["llm"] == written(1).descriptions[0]
    assert [n.source for n in kb.notes("HGNC:1")] == ["mygene", "ncbi"]
    assert kb.notes("HGNC:1")[1] == answer(1).note
    assert kb.jobs_done([job(1), job(2), job(3)]) == {job(1)}
    assert {f.job for f in kb.failures() if f.final} == {job(2)}
    assert kb.failures() == kb.failures("ncbi") == [failure(2, final=True, attempts=3)]
    assert kb.failures("mygene") == kb.failures(gene_id="HGNC:1") == []
    assert kb.answered("ncbi") == {"HGNC:1"} and kb.answered("llm", model="m", prompt="p1") == {"HGNC:1"}


def test_a_job_about_a_name_adds_the_gene_in_the_answer(kb: KnowledgeBase) -> None:
    stranger = replace(answer(50, ask=True), gene=Gene("entrez:9050", "human", "NEW50", 9050))
    again = replace(stranger, job=Job.of("ask:human:OLD50", "ncbi", "human OLD50"))
    counts = absorb(kb, [answer(3, ask=True), stranger, again])
    assert counts["genes"] == 1
    ids = kb.genes().gene_id.tolist()
    assert "entrez:9050" in ids and "entrez:1003" not in ids and not any("ask" in i for i in ids)
    assert [d.text for d in kb.all_descriptions("entrez:9050")] == ["Gene 50 does something, says ncbi."]
    assert kb.descriptions(["HGNC:3"])["HGNC:3"].source == "ncbi"
    assert kb.jobs_done([stranger.job, again.job]) == {stranger.job, again.job}
    assert kb.answered("ncbi") >= {"HGNC:3", "entrez:9050"}
    assert kb.genes().set_index("gene_id").loc["entrez:9050"].source == "ncbi"


def test_an_entrez_id_belongs_to_one_gene(kb: KnowledgeBase) -> None:
    thief = replace(answer(2), gene=replace(answer(2).gene, entrez_id=1001))
    absorb(kb, [answer(1), thief])
    numbers = kb.genes().entrez_id.dropna().tolist()
    assert numbers == [1001]
    absorb(kb, [replace(answer(4), gene=replace(answer(4).gene, entrez_id=1001))])
    assert kb.genes().entrez_id.dropna().tolist() == [1001]


def test_answers_without_a_gene_stay_in_the_journal(kb: KnowledgeBase) -> None:
    lost = replace(written(1), job=replace(written(1).job, gene_id="entrez:77"))
    path = kb.path.with_name("answers.log")
    assert absorb(kb, [lost, answer(1)])["unplaced"] == 1
    with Journal(path) as journal:
        assert done_jobs(journal) == {lost.job}
    kb.upsert_genes([Gene("entrez:77", "human", "LATE", 77)])
    assert absorb(kb, [])["unplaced"] == 0
    assert kb.all_descriptions("entrez:77")[0].kind == "llm" and not path.exists()


def test_later_answers_and_answers_over_failures_win(kb: KnowledgeBase) -> None:
    new = answer(1, text="new", at="2026-12-01", version="2027")
    for items in ([new], [answer(1, text="old")], [failure(1, final=True)]):
        absorb(kb, items)
    assert [d.text for d in kb.all_descriptions("HGNC:1")] == ["new"]
    assert kb.notes("HGNC:1")[0].source_version == "2027" and kb.failures() == []
    absorb(kb, [failure(2, final=True)])
    absorb(kb, [failure(2, reason="gone", attempts=4)])
    assert kb.failures() == [failure(2, reason="gone", attempts=4)]
    absorb(kb, [answer(2)])
    assert kb.failures() == []


def test_of_texts_of_one_day_ncbis_wins(kb: KnowledgeBase) -> None:
    later = answer(1, "mygene", at=AT.replace("T10", "T23"))
    absorb(kb, [answer(1), later])
    assert kb.descriptions()["HGNC:1"].source == "ncbi"
    absorb(kb, [answer(1, "mygene", at="2026-12-24")])
    assert kb.descriptions()["HGNC:1"].source == "mygene"
    assert kb.descriptions(prefer=("llm", "human"))["HGNC:1"].kind == "human"


def test_times_do_not_change_the_digest(kb: KnowledgeBase, tmp_path: Path) -> None:
    absorb(kb, [answer(1), failure(2)])
    with KnowledgeBase.open(tmp_path / "other.duckdb") as other:
        other.upsert_genes(genes(8))
        absorb(other, [answer(1, at="1999-01-01"), failure(2)], tmp_path / "other-answers.log")
        assert other.digest(jobs=True) == kb.digest(jobs=True) != kb.digest()
        other._con.execute("UPDATE notes SET facts = '{}'")
        assert other.digest() != kb.digest()
        absorb(kb, [answer(1, version="2027", at="2027-01-01")])
    assert kb.notes("HGNC:1")[0].source_version == "2027"


def test_the_order_of_sources_does_not_matter(kb: KnowledgeBase, tmp_path: Path) -> None:
    """For a gene that only live sources know, NCBI's facts win, independent of the order of the runs."""
    ncbi, mygene = answer(9), answer(9, "mygene")
    mygene = replace(mygene, gene=replace(mygene.gene, name="another name", gene_type="ncRNA"))
    with KnowledgeBase.open(tmp_path / "other.duckdb") as other:
        other.upsert_genes(genes(8))
        for base, items in ((kb, (ncbi, mygene)), (other, (mygene, ncbi))):
            for i, item in enumerate(items):
                absorb(base, [item], tmp_path / f"{base.path.stem}-{i}.duckdb")
        row = other.genes().set_index("gene_id").loc["entrez:1009"]
        assert (row.source, row["name"], row.gene_type) == ("ncbi", "gene 9", "ncRNA")
        assert state(other) == state(kb)
        newer = answer(9, at="2027-01-01", version="2027")
        absorb(other, [newer], tmp_path / "newer.duckdb")
        absorb(other, [mygene], tmp_path / "again.duckdb")
        assert other.genes().set_index("gene_id").loc["entrez:1009"].source_version == "2027"


@settings(max_examples=12)
@given(data=st.data())
@pytest.mark.slow
def test_order_repeats_and_splits_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Answers in one or several journals, in any order, after failures, give the same knowledge base."""
    numbers = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True))
    items: list[Answer | Failure] = [answer(n) for n in numbers]  # genes 8 and 9 are unknown, but have facts
    items += [answer(n, "mygene") for n in numbers[:3]] + [written(n) for n in numbers if n < 8]
    items += [answer(n, ask=True) for n in data.draw(st.lists(st.integers(0, 12), max_size=3, unique=True))]
    items += [failure(n, "mygene") for n in numbers[3:]]
    folder = tmp_path_factory.mktemp("orders")
    seen = []
    for i in range(2):
        with KnowledgeBase.open(folder / f"{i}.duckdb") as kb:
            kb.upsert_genes(genes(8))
            if i == 0:
                absorb(kb, items, folder / "0-answers.log")
            else:
                mixed = data.draw(st.permutations(items)) + data.draw(
                    st.lists(st.sampled_from(items), max_size=3)
                )
                noise = [failure(n, reason="later answered") for n in numbers[:2]]
                cut = data.draw(st.integers(0, len(mixed)))
                for j, part in enumerate(([*noise, *mixed[:cut]], mixed[cut:], mixed[:2])):
                    absorb(kb, part, folder / f"1-{j}.duckdb")
            seen.append(state(kb))
    assert seen[0] == seen[1]


class TestTransaction:
    def begin(self, store: Store):
        return store.begin("ingest genes", {"source": "ncbi"})

    def test_only_a_commit_clears_the_journal(self, store: Store) -> None:
        path = store.path / "work" / "answers.log"
        with self.begin(store) as txn:
            txn.open_knowledge().upsert_genes(genes(4))
            txn.journal().write([answer(1)], [failure(2)])
        assert store.generation.number == 0 and path.exists()
        with self.begin(store) as txn:  # commit another change in between
            txn.open_knowledge().upsert_genes(genes(4))
            txn.commit()
        with self.begin(store) as txn:
            txn.open_knowledge().absorb(txn.journal())
        assert path.exists() and done_jobs(store.journal()) == {job(1)}
        with self.begin(store) as txn:
            txn.open_knowledge().absorb(txn.journal())
            txn.journal().write([answer(3)])
            assert txn.commit().number == 2
        assert done_jobs(store.journal()) == {job(3)}
        with store.knowledge() as kb:
            assert kb.jobs_done([job(1), job(3)]) == {job(1)} and len(kb.failures()) == 1

    def test_failures_without_answers_are_committed(self, store: Store) -> None:
        with self.begin(store) as txn:
            txn.open_knowledge().upsert_genes(genes(4))
            txn.commit()
        for number in (2, 2):  # the second time adds nothing
            with self.begin(store) as txn:
                kb = txn.open_knowledge()
                txn.journal().write([], [failure(2, final=True)])
                kb.absorb(txn.journal())
                assert txn.commit().number == number
        one, two = store.at(1).generation.manifest.knowledge, store.generation.manifest.knowledge
        assert one.digest == two.digest and one.file != two.file
        with store.knowledge() as kb:
            assert {f.job for f in kb.failures() if f.final} == {job(2)}
        assert store.verify().ok
        assert not (store.path / "work" / "answers.log").exists()

    def test_compact_keeps_the_journal(self, store: Store) -> None:
        with self.begin(store) as txn:
            txn.journal().write([answer(1)])
        store.compact()
        assert done_jobs(store.journal()) == {job(1)}


def of_type(at: str, *names: str) -> Answer:
    """What a service says of the markers of B cells."""
    asked = Job.of("CL:0000236", "guide", at, prompt=at)
    note = Note(asked.gene_id, "guide", at, at, {"n": len(names)})
    markers = tuple(Marker(asked.gene_id, "lung", "human", g, weight=2.0, source="guide: x") for g in names)
    return Answer(asked, note=note, markers=markers)


@pytest.mark.parametrize("order", [1, -1])
def test_markers_of_a_type_take_the_place_of_older_ones_in_any_order(kb: KnowledgeBase, order: int) -> None:
    old, new = of_type("2026-01-01", "CD19", "PAX5"), of_type("2026-02-01", "MS4A1", "CD19")
    counts = absorb(kb, [old, new][::order])
    assert counts["answers"] == 2 and counts["unplaced"] == 0
    assert [row[3] for row in kb.markers()] == ["CD19", "MS4A1"]
    assert kb.markers()[0] == ("CL:0000236", "lung", "human", "CD19", "positive", 2.0, "guide: x")
    assert kb.notes("CL:0000236") == [new.note]
    assert kb.jobs_done([old.job, new.job]) == {old.job, new.job}
    before = kb.digest(jobs=True)
    absorb(kb, [new])
    assert kb.digest(jobs=True) == before and kb.counts()["genes"] == 8


def test_answers_about_a_group_are_stored_under_their_prompt(kb: KnowledgeBase) -> None:
    asked = Job.of("group:0f", "llm", "question", model="m", prompt="p")
    note = Note("group:0f", "llm", "m", AT, {"question": "q", "replies": [{"content": "\u2028 {"}]})
    counts = absorb(kb, [Answer(asked, note=note)])
    assert counts["unplaced"] == 0 and kb.notes("group:0f") == [note]
    assert kb.jobs_done([asked]) == {asked}
