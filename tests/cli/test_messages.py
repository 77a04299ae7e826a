"""Output to stdout and stderr, and exit codes of commands."""

from __future__ import annotations

import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from scvec.base import errors
from scvec.cli.console import clean
from scvec.cli.main import translate

PROJECT = Path(__file__).resolve().parents[2]


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


def oserror(code: int, path: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), path)


#: What ends a command: the exit code, the code and the names that the message must tell.
ENDINGS = [
    (
        errors.InputError("no column 'x'", "obs of a.h5ad", "y, z", code="unknown-column"),
        2,
        "unknown-column",
        "'x'",
    ),
    (errors.StoreError("a file is damaged", "kb.duckdb", "scvec verify"), 3, "store-damaged", "kb.duckdb"),
    (errors.NetworkError("no answer"), 4, "network", ""),
    (errors.AuthError("the key was refused"), 5, "auth", ""),
    (errors.ResourceError("disk full", code="disk-full"), 6, "disk-full", ""),
    (errors.LockedError("locked by process 12"), 7, "locked", "process 12"),
    (KeyboardInterrupt(), 130, "interrupted", "scvec info"),
    (MemoryError("Unable to allocate 9 TiB"), 6, "out-of-memory", "9 TiB"),
    (OutOfMemoryError("CUDA out of memory"), 6, "out-of-memory", "CUDA"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 6, "out-of-memory", "CPU"),
    (OSError(errno.ENOSPC, "write failed", "/store/kb.duckdb"), 6, "disk-full", "/store/kb.duckdb"),
    (oserror(errno.EDQUOT), 6, "disk-full", ""),
    (OSError("[Errno 28] Can't write data: No space left on device"), 6, "disk-full", ""),
    (oserror(errno.EACCES, "/private/x.h5ad"), 2, "permission-denied", "/private/x.h5ad"),
    (oserror(errno.EROFS, "/cdrom/x"), 2, "permission-denied", "/cdrom/x"),
    (EOFError("Compressed file ended before the end-of-stream marker"), 1, "bug", "Compressed file ended"),
    (ZeroDivisionError("division by zero"), 1, "bug", "ZeroDivisionError"),
    (ValueError("a\nmessage\nof\nmany\nlines"), 1, "bug", "a message of many lines"),
]


@pytest.mark.parametrize(("error", "exit_code", "code", "text"), ENDINGS, ids=lambda v: type(v).__name__)
def test_every_error_is_three_lines_and_an_exit_code(error, exit_code, code, text, scvec, api):
    api.fail(error)
    result = scvec("info")
    assert result.exit_code == exit_code
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 3 and lines[0].startswith("error: ")
    assert text in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("error", "exit_code", "code", "text"), ENDINGS, ids=lambda v: type(v).__name__)
def test_errors_are_one_object_with_json(error, exit_code, code, text, scvec, api):
    api.fail(error)
    said = scvec.json("info", exit_code=exit_code)
    assert (said["exit_code"], said["code"]) == (exit_code, code)
    assert text in " ".join([said["what"], said["where"], said["fix"]])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["qury", "x.h5ad"], "'query'"),
        (["query"], "'QUERY...'"),
        (["query", "x", "--refrence", "p"], "'--reference'"),
        (["query", "x", "--n-neighbors", "0"], "'--n-neighbors'"),
        (["query", "x", "--method", "vote"], "'vote' is not one of 'both', 'knn', 'head'\n"),
        (["ingest", "genes", "--concurrency", "0"], "'--concurrency'"),
        (["ingest", "cells", "x.h5ad", "--name", "p"], "'--label-key'"),
        (["export", "p", "-o", "x"], "'--to'"),
        ([], "scvec --help"),
        (["ingest"], "scvec ingest --help"),
    ],
)
def test_wrong_usage_is_exit_2_in_three_lines(words, text, scvec):
    result = scvec(*words)
    assert result.exit_code == 2
    assert text in result.stderr and len(result.stderr.strip().splitlines()) <= 3
    said = scvec.json(*words, exit_code=2)
    assert said["code"] == "usage" and text.split()[0] in json.dumps(said)


def test_json_after_the_wrong_word_still_prints_json(scvec):
    assert scvec.json("query", "--wrong", exit_code=2)["error"] == "InputError"


def test_traceback_only_with_v(scvec, api):
    api.fail(ZeroDivisionError("division by zero"))
    result = scvec("info", "-v")
    assert result.exit_code == 1 and "Traceback" in result.stderr and result.stdout == ""


def test_notes_go_to_stderr_and_q_drops_them(scvec, api):
    assert "note: 1 row was skipped" in scvec("ingest", "genes").stderr
    assert scvec("ingest", "genes", "-q").stderr == ""
    assert scvec.json("ingest", "genes")["notes"] == ["1 row was skipped"]


def test_progress_is_not_for_logs_unless_asked_for(scvec, api):
    api.stages = ("train", "train", "index")
    words = ("ingest", "cells", "r.h5ad", "--name", "p", "--label-key", "c")
    [step] = scvec(*words).stderr.splitlines()
    assert step.startswith("next: ")
    detailed = scvec(*words, "-v")
    assert detailed.stderr.splitlines() == ["train ...", "index ...", step]
    assert "\x1b" not in detailed.stderr + detailed.stdout


@pytest.mark.parametrize("words", [("query", "x.h5ad"), ("demo",)], ids=" ".join)
def test_an_error_stands_alone_in_a_log(words, scvec, api):
    api.stages = ("reading cells",)
    api.fail(errors.InputError("no such file", "x.h5ad", "name another"))
    said = scvec(*words).stderr
    assert said == "error: no such file\n  where: x.h5ad\n  fix:   name another\n"


def test_names_from_files_cannot_steer_the_terminal(scvec, api):
    api.results["scvec.workflows.query.query"].lines = lambda: ["beta\x1b[31m\x07 3"]
    result = scvec("query", "x.h5ad")
    assert "\x1b" not in result.stdout and "\x07" not in result.stdout
    assert clean("a\tb\u202ec") == "a b c"


@pytest.mark.parametrize(("env", "bars"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_bars_only_on_a_terminal_that_wants_them(env, bars):
    code = (
        "from scvec.cli.console import Console\n"
        "with Console().progress() as report:\n"
        "    report('train [fold 1]', 1, 4); report('train [fold 1]', 4, 4); report('write', 1, None)\n"
    )
    ours, theirs = pty.openpty()
    clear = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    try:
        subprocess.run(
            [sys.executable, "-c", code],
            stderr=theirs,
            cwd=PROJECT,
            env={**clear, "TERM": "xterm", **env},
            check=True,
            timeout=500,
        )
        said = os.read(ours, 65536).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert "train [fold 1]" in said
    assert ("\x1b" in said) == bars
    assert ("4/4" in said) == bars


def test_a_closed_pipe_is_not_an_error():
    # ``scvec --help | head -1`` and a result whose reader has gone.
    code = (
        "import sys, time\n"
        "from scvec.cli.console import Console\n"
        "sys.stdin.read()\n"
        "class R:\n"
        "    def lines(self): return ['x' * 100000]\n"
        "Console().show(R())\n"
    )
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE, cwd=PROJECT
    )
    os.close(write)
    os.close(read)
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0 and said == b""


def test_a_note_to_a_closed_pipe_does_not_end_the_command():
    code = (
        "import sys\n"
        "from scvec.cli.console import Console\n"
        "sys.stdin.read()\n"
        "with Console().progress() as report: report('train', 1, 2); report('write', 1, 2)\n"
        "print('done')\n"
    )
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write, cwd=PROJECT
    )
    os.close(write)
    os.close(read)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0 and said == b"done\n"


def test_quiet_error_is_still_said(scvec, api):
    api.fail(errors.InputError("no such file", "x.h5ad"))
    assert "no such file" in scvec("query", "x.h5ad", "-q").stderr


def test_translate_leaves_our_own_errors_alone():
    error = errors.StoreError("damaged")
    assert translate(error) is error
