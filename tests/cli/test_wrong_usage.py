"""What wrong usage gets from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bad_inputs import REFERENCE
from bad_inputs.commands import FAST, INGEST, QUERY, assert_refused, scvec

# The default encoder opens no backbone.
WITH_SPACE = (*INGEST, "--encoder", "weighted")


@pytest.fixture(scope="module")
def places(shelf: Path, good: Path) -> dict[str, str]:
    """Folders and files that words are filled in with."""
    (shelf / "file").write_text("x")
    (shelf / "empty").mkdir()
    (shelf / "full").mkdir()
    (shelf / "full" / "notes.txt").write_text("mine")
    texts = {
        "comments.txt": "# nothing\n\n",
        "unknown.txt": "FOO1\nFOO2\n",
        "columns.csv": "a,b\n1,2\n",
        "words.csv": "symbol,species,entrez_id\nINS,human,many\n",
        "table.xls": "x",
    }
    for name, text in texts.items():
        (shelf / name).write_text(text)
    (shelf / "bytes.txt").write_bytes(bytes(range(256)))
    return {"dir": str(shelf), "good": str(good)}


#: Words, the code of the error, and the names that it must tell.
USAGE: dict[str, tuple[tuple[str, ...], str, str]] = {
    "no words": ((), "usage", "command"),
    "group alone": (("ingest",), "usage", "command"),
    "unknown option": (("info", "--frob"), "usage", "'--frob'"),
    "option misspelt": ((*QUERY, "--refrence", "x"), "usage", "'--reference'"),
    "command misspelt": (("qury", "{good}"), "usage", "'query'"),
    "command of a group misspelt": (("ingest", "cell"), "usage", "'cells'"),
    "one word too many": (("verify", "it"), "usage", "it"),
    "no file": (("query",), "usage", "'QUERY...'"),
    "no name": (("ingest", "cells", "{good}", "--label-key", "cell_type"), "usage", "'--name'"),
    # query
    "output of unknown ending": (
        (*QUERY, "-o", "{dir}/out.xlsx"),
        "output-format",
        r"'\.xlsx'(.|\n)*\.parquet",
    ),
    "output without ending": ((*QUERY, "-o", "{dir}/out"), "output-format", "no suffix"),
    "output is input": ((*QUERY, "-o", "{good}"), "output-is-input", ""),
    "output in no folder": ((*QUERY, "-o", "{dir}/no/out.h5ad"), "output-not-writable", ""),
    "output in a file": ((*QUERY, "-o", "{dir}/file/out.h5ad"), "output-not-writable", "file"),
    "output is a folder": ((*QUERY, "-o", "{dir}/empty"), "output-not-writable", "folder"),
    "missing input, old output": (
        ("query", "{dir}/no.h5ad", "-o", "{dir}/reference.h5ad"),
        "file-not-found",
        "",
    ),
    "where nonsense": ((*QUERY, "--where", "nonsense here"), "bad-where", "cell_type"),
    "where nothing": ((*QUERY, "--where", ""), "bad-where", ""),
    "where misspelt": ((*QUERY, "--where", "donr = 'd0'"), "bad-where", r"'donr'(.|\n)*'donor'"),
    "where no cell": ((*QUERY, "--where", "donor = 'me'"), "where-no-match", "d0, d1"),
    "no neighbours": ((*QUERY, "--n-neighbors", "0"), "usage", "--n-neighbors"),
    "neighbours no number": ((*QUERY, "--n-neighbors", "many"), "usage", "--n-neighbors"),
    "unknown method": ((*QUERY, "--method", "vote"), "usage", "'vote'.*'both', 'knn'"),
    "unknown species": ((*QUERY, "--species", "rart"), "usage", "'rart'.*did you mean rat"),
    # ingest cells
    "unknown backbone": ((*INGEST, "--backbone", "gpt"), "unknown-choice", r"'gpt'(.|\n)*minilm, st:FOLDER"),
    "no dimension": ((*WITH_SPACE, "--backbone", "random:0"), "option-out-of-range", "random:0"),
    "missing folder of a model": (
        (*WITH_SPACE, "--backbone", "st:/no/model"),
        "model-not-found",
        "'/no/model'",
    ),
    "folder of no model": ((*WITH_SPACE, "--backbone", "st:{dir}/empty"), "model-not-found", r"config\.json"),
    "unknown encoder": ((*INGEST, "--encoder", "vae"), "usage", "'vae'.*'discriminant', 'adapted'"),
    "batch column misspelt": ((*INGEST, "--batch-key", "dono"), "unknown-column", r"'donor'(.|\n)*cell"),
    "name that is a path": ((*INGEST, "--name", "../x"), "bad-name", r"'\.\./x'"),
    "no name at all": ((*INGEST, "--name", ""), "bad-name", "''"),
    # ingest genes and embeddings
    "source missing": (("ingest", "genes", "--source", "{dir}/no.csv"), "file-not-found", ""),
    "source is a folder": (("ingest", "genes", "--source", "{dir}/empty"), "not-a-file", "folder"),
    "source without columns": (("ingest", "genes", "--source", "{dir}/columns.csv"), "wrong-format", "a, b"),
    "source with a wrong value": (
        ("ingest", "genes", "--source", "{dir}/words.csv"),
        "damaged-file",
        "'many'",
    ),
    "source of unknown kind": (
        ("ingest", "genes", "--source", "{dir}/table.xls"),
        "wrong-format",
        "unknown format",
    ),
    "genes of the snapshot": (
        ("ingest", "genes", "--genes", "{dir}/unknown.txt"),
        "input",
        "snapshot",
    ),
    "list missing": (("ingest", "embeddings", *FAST, "--genes", "{dir}/no.txt"), "file-not-found", ""),
    "list empty": (("ingest", "embeddings", *FAST, "--genes", "{dir}/comments.txt"), "input", "gene"),
    "list binary": (("ingest", "embeddings", *FAST, "--genes", "{dir}/bytes.txt"), "wrong-format", "text"),
    "list is a folder": (("ingest", "embeddings", *FAST, "--genes", "{dir}/empty"), "not-a-file", "folder"),
    "list unknown": (
        ("ingest", "embeddings", *FAST, "--genes", "{dir}/unknown.txt"),
        "unknown-gene",
        "FOO1, FOO2",
    ),
    "template unknown": (("ingest", "embeddings", *FAST, "--text", "{{nope}}"), "input", "field"),
    "template broken": (("ingest", "embeddings", *FAST, "--text", "{{symbol"), "input", "--text"),
    # the others
    "demo into a file": (("demo", "--out", "{dir}/file"), "output-not-writable", "file"),
    "demo under a file": (("demo", "--out", "{dir}/file/out"), "output-not-writable", "file"),
    "export to no folder": (
        ("export", REFERENCE, "--to", "parquet", "-o", "{dir}/no/x.parquet"),
        "output-not-writable",
        "",
    ),
    "export under a wrong ending": (
        ("export", REFERENCE, "--to", "parquet", "-o", "{dir}/x.h5ad"),
        "output-format",
        r"\.h5ad.*parquet",
    ),
    "export of nothing": (
        ("export", "tinny", "--to", "h5ad", "-o", "{dir}/x.h5ad"),
        "unknown-reference",
        r"'tinny'(.|\n)*'tiny'",
    ),
    "rm of nothing": (("rm", "tinny", "--yes"), "unknown-reference", "'tiny'"),
    "rm unasked": (("rm", REFERENCE), "not-confirmed", "--yes"),
    "info of nothing": (("info", "--reference", "tinny"), "unknown-reference", "'tiny'"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(name: str, store: Path, shelf: Path, places: dict[str, str]) -> None:
    words, code, names = USAGE[name]
    before = sorted(shelf.iterdir())
    said = assert_refused([word.format(**places) for word in words], 2, code, store, names)
    assert "  fix:   " in said
    assert sorted(shelf.iterdir()) == before


def test_cuda_where_there_is_none(store: Path, good: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for words in (QUERY, INGEST):
        filled = [w.format(good=good) for w in words]
        assert_refused([*filled, "--device", "cuda"], 2, "no-gpu", store)


STORE_COMMANDS = {
    "info": ("info",),
    "verify": ("verify",),
    "export": ("export", REFERENCE, "--to", "parquet", "-o", "{dir}/x.parquet"),
    "rm": ("rm", REFERENCE, "--yes"),
    "compact": ("compact",),
    "query": ("query", "{good}"),
}
MAKERS = {"ingest genes": ("ingest", "genes"), "ingest cells": INGEST}
NO_STORES = {
    "file": (3, "not-a-store", "--store"),
    "full": (3, "not-a-store", "--store"),
    "empty": (2, "store-empty", "scvec ingest cells"),
    "nowhere": (2, "store-empty", "scvec ingest cells"),
}


@pytest.mark.parametrize("place", NO_STORES)
def test_paths_that_are_not_stores_are_refused(place: str, shelf: Path, places: dict[str, str]) -> None:
    exit_code, code, names = NO_STORES[place]
    commands = {**STORE_COMMANDS, **(MAKERS if exit_code == 3 else {})}
    before = sorted(shelf.rglob("*"))
    for words in commands.values():
        assert_refused([word.format(**places) for word in words], exit_code, code, shelf / place, names)
    assert sorted(shelf.rglob("*")) == before


@pytest.mark.parametrize("place", NO_STORES)
@pytest.mark.slow
def test_the_doctor_sees_every_store(place: str, shelf: Path, places: dict[str, str]) -> None:
    result = scvec("--store", shelf / place, "doctor", "--json")
    assert result.exit_code == 0, result.stderr
    [check] = [c for c in json.loads(result.stdout)["checks"] if c["name"] == "store"]
    assert check["ok"] == (place in ("empty", "nowhere"))
