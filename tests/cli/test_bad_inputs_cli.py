"""Bad input on the command line: three lines, an exit code, and an unchanged store."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import CASES, REFERENCE, Case
from bad_inputs.commands import FAST, assert_refused, contents, error_lines, ingest_of, scvec

PROJECT = Path(__file__).resolve().parents[2]


def words_of(case: Case, path: Path) -> list[str]:
    options = dict(case.options)
    if "output" in options:
        options["output"] = str(path.parent / options["output"])
    words = ["ingest", "cells", str(path), "--name", "new", *FAST] if case.command == "ingest" else []
    words = words or ["query", str(path)]
    return words + [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", value)]


def one(cases: Callable[[Case], bool]) -> Any:
    return pytest.mark.parametrize("case", [c for c in CASES if cases(c)], ids=lambda c: c.name)


@one(lambda c: c.outcome == "refused" and c.needs in ("", "reference"))
def test_bad_files_are_refused(case: Case, store: Path, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    said = assert_refused(words_of(case, path), case.exit_code, case.code, store, case.message)
    assert "  fix:   " in said and "  where: " in said
    assert sorted(tmp_path.rglob("*")) == before


@one(lambda c: c.outcome == "noted")
def test_odd_files_go_through_with_a_note(case: Case, store: Path, scratch: Path, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    words = words_of(case, path)
    if case.command == "query" and "--reference" not in words:
        words += ["--reference", REFERENCE]
    result = scvec("--store", scratch if case.command == "ingest" else store, *words, "--json")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    notes = [line.removeprefix("note: ") for line in lines if line.startswith(("note: ", "warning: "))]
    assert any(re.search(case.message, note) for note in notes), result.stderr
    assert json.loads(result.stdout)["notes"] == notes
    assert not any(re.search(r"[^.]\.$", note) for note in notes)


def test_force_continues_if_few_genes_match(store: Path, tmp_path: Path) -> None:
    for name in ("five-genes-match", "five-genes-match-and-hold-the-counts"):
        case = next(c for c in CASES if c.name == name)
        result = scvec("--store", store, *words_of(case, case.build(tmp_path)), "--force", "--json")
        assert result.exit_code == 0, result.stderr
        assert any("5 of 300 genes matched" in note for note in json.loads(result.stdout)["notes"])


# -- states of the store and of the disk --------------------------------------------------------------


def case_that_needs(state: str) -> Case:
    [case] = [c for c in CASES if c.needs == state]
    return case


def test_a_newer_store_says_what_to_install(store: Path, good: Path, tmp_path: Path) -> None:
    newer = tmp_path / "store"
    shutil.copytree(store, newer, copy_function=os.link)  # all is replaced, nothing written into
    number = (newer / "CURRENT").read_text().split()[0]
    manifest = json.loads((newer / "generations" / f"{number}.json").read_text())
    text = json.dumps({**manifest, "format": 99, "needs": "3.1.4"})
    (newer / "generations" / f"{number}.json").unlink()
    (newer / "generations" / f"{number}.json").write_text(text)
    (newer / "CURRENT").unlink()
    (newer / "CURRENT").write_text(f"{number}\n{hashlib.sha256(text.encode()).hexdigest()}\n")
    case = case_that_needs("newer-store")
    for words in (words_of(case, good), ["info"], ["rm", REFERENCE, "--yes"], ["compact"], ingest_of(good)):
        assert "3.1.4" in assert_refused(words, case.exit_code, case.code, newer, case.message)


HOLD = """
import sys
from pathlib import Path
from scvec.stores.store.transaction import WriterLock
lock = WriterLock(Path(sys.argv[1]), "scvec ingest cells")
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_locked_store_names_the_process(scratch: Path, store: Path, good: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        case = case_that_needs("locked-store")
        for words in (words_of(case, good), ["rm", REFERENCE, "--yes"], ["compact"], ["ingest", "genes"]):
            said = assert_refused(words, case.exit_code, case.code, scratch, case.message)
            assert f"process {holder.pid} " in said
        read = scvec("--store", scratch, "query", good, "--reference", REFERENCE, "--json")
        assert read.exit_code == 0, read.stderr  # readers are never locked out
    finally:
        holder.communicate()
    assert scvec("--store", scratch, "compact").exit_code == 0


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A folder on a file system of ``size`` bytes; skips where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("ending", [".h5ad", ".csv", ".parquet"])
def test_a_full_disk_leaves_no_part_of_the_output(
    ending: str, store: Path, good: Path, tmp_path: Path
) -> None:
    case = case_that_needs("full-disk")
    with small_disk(tmp_path / "disk", 64 * 1024) as disk:
        (disk / "filler").write_bytes(bytes(60 * 1024))
        out = disk / f"out{ending}"
        assert_refused(["query", str(good), "-o", str(out)], case.exit_code, case.code, store)
        assert [p.name for p in disk.iterdir()] == ["filler"]


def test_a_limit_on_file_size_is_a_full_disk(store: Path, good: Path, tmp_path: Path) -> None:
    # Needs no right to mount. EFBIG is what a process gets beyond its limit.
    case = case_that_needs("full-disk")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (good.stat().st_size // 2, hard))
    try:
        out = tmp_path / case.options["output"]
        assert_refused(["query", str(good), "-o", str(out)], case.exit_code, case.code, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_store_as_it_was(store: Path, good: Path, tmp_path: Path) -> None:
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    with small_disk(tmp_path / "disk", size + 64 * 1024 + 4096 * 40) as disk:
        copy = shutil.copytree(store, disk / "store")
        before = contents(copy)
        assert_refused(ingest_of(good), 6, "disk-full", copy)
        assert contents(copy) == before


def test_errors_of_writing_name_the_output(store: Path, good: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("scvec.ingest.cells.write.os.replace", broken)
    out = tmp_path / "out.csv"
    assert_refused(["query", str(good), "-o", str(out)], 2, "output-not-writable", store, out.name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_output_is_written_removes_what_is_there(
    number: int, code: int, store: Path, good: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def stopped(path: Path) -> None:
        assert path.parent == tmp_path and path.suffix == ".tmp" and path.stat().st_size
        signal.raise_signal(number)
        time.sleep(60)

    monkeypatch.setattr("scvec.ingest.cells.write._sync", stopped)
    before = contents(store)
    result = scvec("--store", store, "query", good, "--reference", REFERENCE, "-o", tmp_path / "out.h5ad")
    assert result.exit_code == code and result.stdout == ""
    assert error_lines(result.stderr)[0] == "error: interrupted"
    assert list(tmp_path.iterdir()) == [] and contents(store) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# -- real processes -----------------------------------------------------------------------------------


def start(*words: object, store: Path, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scvec", "--store", str(store), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        cwd=PROJECT,
        env={**os.environ, "TERM": "dumb"},
        text=True,
        # Where tests run in the background SIGINT is ignored, and children would inherit that.
        preexec_fn=None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def told_until(terminal: int, text: str = "\0") -> str:
    """Return the output of a process to its terminal, up to some text or its end."""
    told = b""
    with contextlib.suppress(OSError):  # of Linux, at the end
        while text.encode() not in told and (part := os.read(terminal, 65536)):
            told += part
    return told.decode().replace("\r\n", "\n")


@one(lambda c: c.name in ("truncated", "scaled", "label-missing"))
def test_a_process_ends_as_a_call_does(case: Case, store: Path, tmp_path: Path) -> None:
    words = words_of(case, case.build(tmp_path))
    inside = scvec("--store", store, *words)
    process = start(*words, store=store)
    out, err = process.communicate(timeout=500)
    assert (process.returncode, out, err) == (case.exit_code, "", inside.stderr)


@pytest.mark.slow
def test_a_log_holds_notes_and_no_progress(store: Path, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    process = start("query", good, "--reference", REFERENCE, "-o", out, "--json", store=store)
    said_out, said = process.communicate(timeout=500)
    notes = json.loads(said_out)["notes"]
    assert process.returncode == 0 and notes
    assert said.splitlines() == [n if n.startswith("warning: ") else f"note: {n}" for n in notes]


@pytest.mark.kill
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT there")
@pytest.mark.parametrize(
    ("command", "at", "number"),
    [
        ("ingest", "reading cells", signal.SIGINT),
        ("ingest", "fitting the cell space", signal.SIGINT),
        ("ingest", "fitting the cell space", signal.SIGTERM),
        ("query", "reading cells", signal.SIGINT),
        ("query", "writing", signal.SIGTERM),
    ],
)
def test_an_interrupt_leaves_all_as_it_was(
    command: str, at: str, number: int, scratch: Path, good: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5ad"
    words = ingest_of(good) if command == "ingest" else ["query", good, "--reference", REFERENCE, "-o", out]
    before = contents(scratch)
    terminal, theirs = os.openpty()
    process = start(*words, store=scratch, stderr=theirs)
    os.close(theirs)
    said = told_until(terminal, f"{at} ...")
    process.send_signal(number)
    if number == signal.SIGTERM:
        process.send_signal(number)  # as timeout does
    said_out, _ = process.communicate(timeout=500)
    said += told_until(terminal)
    os.close(terminal)
    # Python may end by the signal itself, where a library ran code of its own: shells call that 130 too.
    assert process.returncode in (128 + number, -number) and said_out == ""
    # A line ends behind the ^C that a terminal shows.
    assert error_lines(said[said.index("error: ") :])[0] == "error: interrupted"
    assert contents(scratch) == before and not list(tmp_path.iterdir())
    again = scvec("--store", scratch, *words)
    assert again.exit_code == 0, again.stderr
