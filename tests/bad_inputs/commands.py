"""Running the command line on bad input, and what is asked of every refusal."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from click.testing import CliRunner, Result

from bad_inputs.cases import REFERENCE

__all__ = [
    "FAST",
    "INGEST",
    "QUERY",
    "assert_refused",
    "contents",
    "error_lines",
    "ingest_of",
    "scvec",
    "touched",
]

FAST = ("--backbone", "random:32")  # no language model is loaded
INGEST = ("ingest", "cells", "{good}", "--name", "new", "--label-key", "cell_type", *FAST)
QUERY = ("query", "{good}", "--reference", REFERENCE)


def scvec(*words: object) -> Result:
    from scvec.cli.main import cli

    return CliRunner().invoke(cli, [str(word) for word in words])


def ingest_of(path: Path) -> list[str]:
    return [word.format(good=path) for word in INGEST]


def contents(store: Path) -> dict[str, str]:
    """Sums of all that makes up a store: CURRENT, generations/ and files/.

    Not of what is kept to save time: trainings that were killed (work/) and fits for queries (fits/).
    """
    kept = ("work", "fits")
    paths = [p for p in sorted(store.rglob("*")) if p.is_file() and p.relative_to(store).parts[0] not in kept]
    return {
        str(p.relative_to(store)): hashlib.blake2b(p.read_bytes()).hexdigest()
        for p in paths
        if p.name not in ("lock", "lock.json")
    }


def touched(store: Path) -> dict[str, tuple[int, ...]]:
    """Like `contents`, but fast: no write leaves the time of change as it was."""
    stats = {str(p.relative_to(store)): p.stat() for p in sorted(store.rglob("*")) if p.is_file()}
    return {
        name: (s.st_ino, s.st_size, s.st_ctime_ns)
        for name, s in stats.items()
        if not name.startswith(("work", "lock"))
    }


def error_lines(stderr: str) -> list[str]:
    """Return the error that ends ``stderr``, checked for its form: what, where, how to fix it."""
    assert "Traceback" not in stderr and "bug" not in stderr, stderr
    assert stderr.startswith("error: "), stderr
    lines = stderr.splitlines()
    assert len(lines) <= 3
    assert re.match(r"error: ([a-z0-9'-]|HDF5|X |AnnData)", lines[0]) and not re.search(r"[^.]\.$", lines[0])
    assert [line[:9] for line in lines[1:]] in ([], ["  where: "], ["  fix:   "], ["  where: ", "  fix:   "])
    assert max(map(len, lines)) <= 420
    return lines


def assert_refused(words: list[str], exit_code: int, code: str, store: Path, names: str = "") -> str:
    """Run words in both forms; return the message, which has the pattern ``names`` in it."""
    before = touched(store)
    result = scvec("--store", store, *words)
    said = "\n".join(error_lines(result.stderr))
    assert result.exit_code == exit_code, said
    assert re.search(names, said), said
    assert result.stdout == ""
    as_json = scvec("--store", store, *words, "--json")
    assert as_json.exit_code == exit_code
    found = json.loads(as_json.stdout)
    assert as_json.stdout.count("\n") == 1
    assert found["error"].endswith("Error") and found["exit_code"] == exit_code and found["code"] == code, (
        found
    )
    assert found["what"] == error_lines(result.stderr)[0].removeprefix("error: ")
    assert touched(store) == before
    return said
