"""The journal keeps each arrived answer once, whatever happens to the process or the file."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_answers import answer, done_jobs, failure, job, written

from scvec.base.errors import InputError, LockedError, ResourceError, StoreError
from scvec.base.types import Answer, Description, Gene, Job, Note
from scvec.stores.store import journal as journal_file
from scvec.stores.store.journal import Journal
from scvec.stores.store.store import Store


def all_answers(journal: Journal, n: int = 5000) -> list[Answer]:
    return [a for batch in journal.answers(n) for a in batch]


def all_failures(journal: Journal) -> list:
    return [f for batch in journal.failures() for f in batch]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.log"


def test_there_is_no_file_until_something_is_written(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([], [])
        assert all_answers(journal) == all_failures(journal) == []
        assert done_jobs(journal) == journal.failed_jobs() == set()
        journal.absorbed([])
        journal.clear()
    assert not path.exists()


def test_written_answers_come_back_in_a_fixed_order(path: Path) -> None:
    asked, model = answer(3, ask=True), written(1)
    with Journal(path) as journal:
        journal.write([model, asked, answer(2)], [failure(9), failure(4, final=True, attempts=3)])
        journal.write([answer(1, "mygene"), answer(1)], [])
        # Answers with facts first, among those the jobs about a gene; then by job.
        expected = [answer(1, "mygene"), answer(1), answer(2), asked, model]
        assert all_answers(journal) == expected
        assert all_answers(journal, 2) == expected
        assert [len(batch) for batch in journal.answers(2)] == [2, 2, 1]
    with Journal(path) as journal:
        assert all_answers(journal) == expected
        assert done_jobs(journal) == {a.job for a in expected}
        assert all_failures(journal) == [failure(4, final=True, attempts=3), failure(9)]
        assert journal.failed_jobs() == {job(4), job(9)}


def test_an_answer_wins_over_a_failure(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([answer(1)], [failure(2)])
        journal.write([answer(2)], [failure(1, final=True)])
        assert all_failures(journal) == []
        assert done_jobs(journal) == {job(1), job(2)}


def test_the_answer_retrieved_last_wins(path: Path) -> None:
    late, early = answer(1, text="late", at="2026-11-23"), answer(1, text="early", at="2026-11-22")
    with Journal(path) as journal:
        journal.write([late])
        journal.write([early])
        assert all_answers(journal) == [late]


@settings(max_examples=15)
@given(data=st.data())
def test_order_and_repeats_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    one_of = st.sampled_from
    answers = data.draw(
        st.lists(
            st.builds(answer, st.integers(0, 3), text=one_of(["a", "b"]), at=one_of(["2026-01", "2026-02"])),
            max_size=6,
        )
    )
    failures = data.draw(
        st.lists(
            st.builds(
                failure,
                st.integers(0, 4),
                final=st.booleans(),
                reason=one_of(["x", "y"]),
                attempts=one_of([1, 3]),
            ),
            max_size=6,
        )
    )
    folder = tmp_path_factory.mktemp("orders")
    seen = []
    for i in range(2):
        items = [*answers, *failures]
        if i:
            items = data.draw(st.permutations(items)) + data.draw(
                st.lists(one_of(items), max_size=3) if items else st.just([])
            )
        with Journal(folder / f"{i}.log") as journal:
            for item in items:
                as_answer = isinstance(item, Answer)
                journal.write([item] if as_answer else [], [] if as_answer else [item])
            seen.append((all_answers(journal), all_failures(journal)))
    assert seen[0] == seen[1]
    found, lost = seen[0]
    assert {a.job for a in found} == {a.job for a in answers}
    assert {f.job for f in lost} == {f.job for f in failures} - {a.job for a in answers}
    assert len({a.job for a in found}) == len(found) and len({f.job for f in lost}) == len(lost)


@settings(max_examples=20)
@given(text=st.text(max_size=60), facts=st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.none()))
def test_any_text_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, text: str, facts: dict
) -> None:
    asked = Job("HGNC:1", "ncbi")
    whole = Answer(
        asked,
        Gene("HGNC:1", "human", text, aliases=(text, "b")),
        (Description("HGNC:1", text, "ncbi", "", "", "human"),),
        Note("HGNC:1", "ncbi", "", "", facts),
    )
    with Journal(tmp_path_factory.mktemp("texts") / "a.log") as journal:
        journal.write([whole])
        assert all_answers(journal) == [whole]


def test_half_a_surrogate_pair_does_not_lose_a_batch(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([answer(1, text="half \ud83d of one"), answer(2)], [failure(3, reason="\udc00")])
        first, second = all_answers(journal)
        assert first.descriptions[0].text == "half ? of one" and second == answer(2)
        assert all_failures(journal)[0].reason == "?"


def test_a_write_is_all_or_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(path) as journal:
        journal.write([answer(1)])
        with pytest.raises(TypeError):
            journal.write([answer(2)], [replace(failure(7), reason=object())])
        assert all_answers(journal) == [answer(1)]
        with monkeypatch.context() as patch:  # everything is written, but fsync fails
            patch.setattr(os, "fsync", full)
            with pytest.raises(ResourceError):
                journal.write([answer(2)], [failure(7)])
        assert all_answers(journal) == [answer(1)] and all_failures(journal) == []
        journal.write([answer(3)])
        assert done_jobs(journal) == {job(1), job(3)}
    with Journal(path) as journal:
        assert done_jobs(journal) == {job(1), job(3)} and journal.notes == []


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kept", [1, 8, 9, 40, 73, 74, 100, -1])
def test_an_incomplete_record_is_not_damage(path: Path, kept: int) -> None:
    """The incomplete record of a killed write is ignored, is not extended, and is not reported."""
    with Journal(path) as journal:
        journal.write([answer(1)])
    whole = path.read_bytes()
    with Journal(path) as journal:
        journal.write([answer(2), answer(3)])
    line = path.read_bytes()[len(whole) :].splitlines(keepends=True)[0]
    path.write_bytes(whole + line[:kept])
    with Journal(path, writable=False) as journal:
        assert done_jobs(journal) == {job(1)} and journal.notes == []
    with Journal(path) as journal:
        assert all_answers(journal) == [answer(1)]
        journal.write([answer(4)])
        assert all_answers(journal) == [answer(1), answer(4)]
    assert list(path.parent.iterdir()) == [path] and journal.notes == []
    with Journal(path) as journal:
        assert all_answers(journal) == [answer(1), answer(4)] and journal.notes == []


def test_only_what_was_absorbed_is_cleared(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([answer(1), answer(2), written(3)], [failure(4)])
        journal.clear()  # nothing was absorbed
        assert len(all_answers(journal)) == 3
        journal.absorbed([written(3).job])
        journal.write([answer(5)], [failure(6)])
        journal.clear()
        assert all_answers(journal) == [answer(5), written(3)]
        assert all_failures(journal) == [failure(6)]
        journal.absorbed([])
        journal.clear()
        assert not path.exists()
        journal.write([answer(1)])
        assert all_answers(journal) == [answer(1)]


HOLDER = """
import sys
from scvec.stores.store.store import Store
from some_answers import answer
with Store.open(sys.argv[1]).begin("ingest genes") as txn:
    txn.journal().write([answer(1)])
    print("open", flush=True)
    sys.stdin.readline()
    txn.journal().write([answer(2)])
    print("more", flush=True)
    sys.stdin.read()
"""


def test_one_process_writes_and_others_read(store: Store) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert other.stdin is not None and other.stdout is not None
    try:
        assert other.stdout.readline() == "open\n"
        with (
            pytest.raises(LockedError, match=f"process {other.pid}") as caught,
            store.begin("ingest genes") as txn,
        ):
            txn.journal().write([answer(3)])
        assert caught.value.exit_code == 7 and len(caught.value.lines()) == 3
        reader = store.journal()
        batches = reader.answers(1)
        assert next(batches) == [answer(1)]
        with pytest.raises(InputError, match="read-only"):
            reader.write([answer(3)])
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "more\n"
        assert list(batches) == [] and done_jobs(store.journal()) == {job(1), job(2)}
    finally:
        other.communicate("")
    with store.begin("ingest genes") as txn:
        assert all_answers(txn.journal()) == [answer(1), answer(2)] and txn.journal().notes == []


def test_a_second_writer_in_the_process_loses_nothing(path: Path) -> None:
    with Journal(path) as one, Journal(path) as two:
        one.write([answer(1)])
        two.write([answer(2)])
        one.write([answer(3)])
        two.write([answer(4)])
    with Journal(path) as journal:
        assert done_jobs(journal) == {job(n) for n in (1, 2, 3, 4)}


KILLED = """
import os, signal, sys
from scvec.stores.store.journal import Journal
from some_answers import answer
journal = Journal(sys.argv[1])
for n in range(int(sys.argv[2])):
    journal.write([answer(i, text=f"text {i} " * 40) for i in range(50 * n, 50 * n + 50)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def filled(path: Path, writes: int, *, killed: bool) -> set[Job]:
    if killed:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
        subprocess.run([sys.executable, "-c", KILLED, str(path), str(writes)], check=False, env=environ)
    else:
        with Journal(path) as journal:
            for n in range(writes):
                journal.write(
                    [answer(i, text=f"text {i} " * 40) for i in range(50 * n, 50 * n + 50)], [failure(10**6)]
                )
    return {job(i) for i in range(50 * writes)}


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("killed", [False, True])
def test_flipped_bits(tmp_path: Path, killed: bool) -> None:
    """After any bit flip, no wrong record is read, nothing is deleted, and intact records stay."""
    template = tmp_path / "template.log"
    jobs = filled(template, 12, killed=killed)
    whole = template.read_bytes()
    rng = random.Random(1)
    last = len(whole) - 1
    places = [0, 5, 8, 20, 73, last, last - 1, whole.rindex(b"\n", 0, last) + 3, 5000, 9000]
    places += [rng.randrange(len(whole)) for _ in range(6)]
    for i, place in enumerate(places):
        path = tmp_path / str(i) / "answers.log"
        path.parent.mkdir()
        path.write_bytes(whole)
        flip(path, place, rng.randrange(8))
        damaged = path.read_bytes()
        with Journal(path, writable=False) as journal:
            looked = done_jobs(journal)
            assert len(journal.notes) == 1 and path.read_bytes() == damaged
        with Journal(path) as journal:
            journal.write([answer(10**7)])
            found = {a.job: a for a in all_answers(journal)}
            assert found.pop(job(10**7)) == answer(10**7)
            for asked, got in found.items():
                n = int(asked.gene_id.split(":")[1])
                assert got == answer(n, text=f"text {n} " * 40)
            assert looked == set(found) <= jobs
            (note,) = journal.notes
        (aside,) = path.parent.glob("answers.damaged-*.log")
        assert f"{len(found):,} answers could be read" in note and aside.name in note
        assert aside.read_bytes() == damaged
        # One line is lost, or two if the line end is hit.
        assert len(found) >= len(jobs) - 2
        assert {p.name for p in path.parent.iterdir()} == {path.name, aside.name}
        with Journal(path) as journal:
            assert len(all_answers(journal)) == len(found) + 1 and journal.notes == []


@given(data=st.data())
@settings(max_examples=30)
def test_any_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """After inserting, deleting or overwriting bytes anywhere, every record that is read was written."""
    path = tmp_path_factory.mktemp("damage") / "answers.log"
    with Journal(path) as journal:
        for n in range(6):
            journal.write([answer(n), written(n)], [failure(n, "mygene")])
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 400)))
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=40)) + content[stop:])
    with Journal(path) as journal:
        found, lost = all_answers(journal), all_failures(journal)
    sent = [*(answer(n) for n in range(6)), *(written(n) for n in range(6))]
    assert all(a in sent for a in found) and all(f in [failure(n, "mygene") for n in range(6)] for f in lost)
    assert len(found) + len(lost) >= 18 - 4


def test_damage_between_absorbing_and_clearing_loses_nothing(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([answer(n) for n in range(9)])
        all_answers(journal)
        journal.absorbed([])
        journal.write([answer(20)])
        flip(path, 10, 1)
        journal.clear()
        assert job(20) in done_jobs(journal) and len(done_jobs(journal)) == 9
        assert list(path.parent.glob("answers.damaged-*"))


def test_a_record_that_changes_during_reading_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([answer(1), answer(2, text="long " * 20_000)])
        batches = journal.answers(1)
        assert next(batches) == [answer(1)]
        flip(path, path.stat().st_size - 20, 1)
        with pytest.raises(StoreError, match="changed while"):
            next(batches)


def test_a_file_that_is_not_a_journal_is_kept_aside(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    with Journal(path) as journal:
        assert all_answers(journal) == []
        assert "0 answers could be read" in journal.notes[0]
        journal.write([answer(1)])
    (aside,) = path.parent.glob("answers.damaged-*")
    assert aside.read_bytes() == b"no database at all" * 1000


@pytest.mark.parametrize("at", ["sync_file", "replace", "sync_folder"])
def test_a_kill_while_it_is_rewritten_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """If a process is killed while it clears part of the journal, the rest is kept."""

    class KilledError(BaseException):
        pass

    def dies(*_: object, **__: object) -> None:
        raise KilledError

    journal = Journal(path)
    journal.write([answer(1), written(3)])
    journal.absorbed([written(3).job])
    journal.write([answer(5)], [failure(6)])
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(os if at == "replace" else journal_file, at, dies)
        journal.clear()
    journal.close()
    with Journal(path) as journal:
        assert {answer(5).job, written(3).job} <= done_jobs(journal) and journal.failed_jobs() == {job(6)}
        assert journal.notes == []
        journal.absorbed([])
        journal.clear()
    assert list(path.parent.iterdir()) == []


def test_a_kill_while_a_damaged_file_is_replaced_keeps_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in ("sync_file", "replace"):
        path.write_bytes(b"")
        with Journal(path) as journal:
            journal.write([answer(1), answer(2)])
        flip(path, 90, 1)
        damaged = path.read_bytes()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os if at == "replace" else journal_file, at, interrupted)
            done_jobs(Journal(path))
        assert path.read_bytes() == damaged
        with Journal(path) as journal:
            assert done_jobs(journal) == {job(2)}
        assert damaged in [p.read_bytes() for p in path.parent.glob("answers.damaged-*")]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_does_not_damage_the_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(path) as journal:
        journal.write([answer(1)])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError):
        Journal(path).write([answer(2)])
    monkeypatch.undo()
    assert {p.name for p in path.parent.iterdir()} == {"answers.log"}
    with Journal(path) as journal:
        assert all_answers(journal) == [answer(1)] and journal.notes == []
