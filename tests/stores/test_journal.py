"""The journal: what has arrived is there, once, whatever happens to the process or the file."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_answers import answer, failure, job, written

from scvec.errors import LockedError, ResourceError
from scvec.records import Answer, Job, Note
from scvec.stores.journal import Journal
from scvec.types import Description, Gene


def all_answers(journal: Journal, n: int = 5000) -> list[Answer]:
    return [a for batch in journal.answers(n) for a in batch]


def all_failures(journal: Journal) -> list:
    return [f for batch in journal.failures() for f in batch]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.duckdb"


def test_there_is_no_file_until_something_is_written(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([], [])
        assert all_answers(journal) == all_failures(journal) == []
        assert journal.done_jobs() == journal.failed_jobs() == set()
        journal.absorbed([])
        journal.clear()
    assert not path.exists()


def test_what_is_written_comes_back_in_one_order(path: Path) -> None:
    asked, model = answer(3, ask=True), written(1)
    with Journal(path) as journal:
        journal.write([model, asked, answer(2)], [failure(9), failure(4, final=True, attempts=3)])
        journal.write([answer(1, "mygene"), answer(1)], [])
        # Those that tell facts first, of those the ones about a gene; then by job.
        expected = [answer(1, "mygene"), answer(1), answer(2), asked, model]
        assert all_answers(journal) == expected
        assert all_answers(journal, 2) == expected
        assert [len(batch) for batch in journal.answers(2)] == [2, 2, 1]
    with Journal(path) as journal:
        assert all_answers(journal) == expected
        assert journal.done_jobs() == {a.job for a in expected}
        assert all_failures(journal) == [failure(4, final=True, attempts=3), failure(9)]
        assert journal.failed_jobs() == {job(4), job(9)}


def test_an_answer_counts_before_any_failure(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([answer(1)], [failure(2)])
        journal.write([answer(2)], [failure(1, final=True)])
        assert all_failures(journal) == []
        assert journal.done_jobs() == {job(1), job(2)}


def test_of_equal_jobs_the_answer_retrieved_last_counts(path: Path) -> None:
    late, early = answer(1, text="late", at="2026-11-23"), answer(1, text="early", at="2026-11-22")
    with Journal(path) as journal:
        journal.write([late])
        journal.write([early])
        assert all_answers(journal) == [late]


@settings(max_examples=15)
@given(data=st.data())
def test_order_and_repeats_do_not_count(
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
        with Journal(folder / f"{i}.duckdb") as journal:
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
def test_any_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, text: str, facts: dict
) -> None:
    asked = Job("HGNC:1", "ncbi")
    whole = Answer(
        asked,
        Gene("HGNC:1", "human", text, aliases=(text, "b")),
        (Description("HGNC:1", text, "ncbi", "", "", "human"),),
        Note("HGNC:1", "ncbi", "", "", facts),
    )
    with Journal(tmp_path_factory.mktemp("texts") / "a.duckdb") as journal:
        journal.write([whole])
        assert all_answers(journal) == [whole]


def test_half_a_character_costs_no_batch(path: Path) -> None:
    with Journal(path) as journal:
        journal.write([answer(1, text="half \ud83d of one"), answer(2)], [failure(3, reason="\udc00")])
        first, second = all_answers(journal)
        assert first.descriptions[0].text == "half ? of one" and second == answer(2)
        assert all_failures(journal)[0].reason == "?"


def test_a_write_is_all_or_nothing(path: Path) -> None:
    bad = failure(7, attempts=2**70)
    with Journal(path) as journal:
        journal.write([answer(1)])
        with pytest.raises(OverflowError):
            journal.write([answer(2)], [bad])
        assert all_answers(journal) == [answer(1)]
        journal.write([answer(3)])
        assert journal.done_jobs() == {job(1), job(3)}


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
from scvec.stores.journal import Journal
from some_answers import answer
journal = Journal(sys.argv[1])
journal.write([answer(1)])
print("open", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time(path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with Journal(path) as journal, pytest.raises(LockedError, match=f"process {other.pid}") as caught:
            journal.write([answer(2)])
        assert caught.value.exit_code == 7 and len(caught.value.lines()) == 3
    finally:
        other.communicate("")
    with Journal(path) as journal:
        assert all_answers(journal) == [answer(1)] and journal.notes == []


KILLED = """
import os, signal, sys
from scvec.stores.journal import Journal
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
        assert Path(f"{path}.wal").exists()
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


@pytest.mark.parametrize(("killed", "which"), [(False, ""), (True, ".wal"), (True, "")])
def test_flipped_bits(tmp_path: Path, killed: bool, which: str) -> None:
    """Whatever bit flips: nothing wrong is read, nothing is deleted, and what can be read goes on."""
    template = tmp_path / "template.duckdb"
    jobs = filled(template, 60, killed=killed)
    ends = [end for end in ("", ".wal") if Path(f"{template}{end}").exists()]
    whole = {end: Path(f"{template}{end}").read_bytes() for end in ends}
    rng = random.Random(1)
    size = len(whole[which])
    places = [0, 5000, 9000] + [rng.randrange(size) for _ in range(4)]
    kept = []
    for i, place in enumerate(places):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = folder / "answers.duckdb"
        for end, content in whole.items():
            Path(f"{path}{end}").write_bytes(content)
        shutil.copy(template.with_suffix(".tally"), path.with_suffix(".tally"))
        flip(Path(f"{path}{which}"), place, rng.randrange(8))
        damaged = Path(f"{path}{which}").read_bytes()
        with Journal(path) as journal:
            journal.write([answer(10**7)])
            found = {a.job: a for a in all_answers(journal)}
            assert found.pop(job(10**7)) == answer(10**7)
            for asked, got in found.items():
                n = int(asked.gene_id.split(":")[1])
                assert got == answer(n, text=f"text {n} " * 40)
            assert set(found) <= jobs
            notes = list(journal.notes)
        aside = list(folder.glob(f"answers.damaged-*.duckdb{which}"))
        if notes:
            assert f"{len(found):,} answers could be read" in notes[0] and aside[0].name in notes[0] + which
            assert damaged in [p.read_bytes() for p in aside]
        else:
            assert set(found) == jobs  # a byte that nobody reads
        kept.append(len(found) / len(jobs))
        assert {p.name for p in folder.glob("salvage-*")} == set()
    # One header of three may be damaged, and nearly all is there; of a log, what was written before.
    # Of a header there are two, of a log what is before the damage is read, of a table what is beside it.
    assert sum(share > 0.3 for share in kept) >= 3, kept


def test_what_is_no_database_is_moved_aside(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    with Journal(path) as journal:
        assert all_answers(journal) == []
        assert "0 answers could be read" in journal.notes[0]
        journal.write([answer(1)])
    (aside,) = path.parent.glob("answers.damaged-*")
    assert aside.read_bytes() == b"no database at all" * 1000


def test_a_kill_while_it_is_made_or_deleted_is_no_damage(path: Path) -> None:
    """A file appears with its tables; what was left beside it by an earlier one says nothing about it."""

    class KilledError(BaseException):
        pass

    def dies(*_: object, **__: object) -> None:
        raise KilledError

    from scvec.stores import salvage

    for name in (
        "connect",
        "publish",
        "sync_file",
    ):  # before the tables, with them, before it is in its place
        owner = duckdb if name == "connect" else salvage
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(owner, name, dies)
            Journal(path).write([answer(1)])
        assert not path.exists()
    Path(f"{path}.new").write_bytes(b"half a file")
    Path(f"{path}.new.wal").write_bytes(b"half a log")
    path.with_suffix(".tally").write_bytes(b"%020d\n" % 7)
    with Journal(path) as journal:
        journal._open()  # made, and killed before the first write
    with Journal(path) as journal:
        journal.write([answer(1)])
        assert all_answers(journal) == [answer(1)] and journal.notes == []
        journal.absorbed([])
        journal.clear()
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise duckdb.IOException('IO Error: Could not write file "x": No space left on device')

    with Journal(path) as journal:
        journal.write([answer(1)])
    monkeypatch.setattr(duckdb, "connect", full)
    with pytest.raises(ResourceError):
        Journal(path).write([answer(2)])
    monkeypatch.undo()
    assert {p.name for p in path.parent.iterdir()} == {"answers.duckdb", "answers.tally"}
    with Journal(path) as journal:
        assert all_answers(journal) == [answer(1)]
