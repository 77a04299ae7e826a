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


USAGE: dict[str, tuple[tuple[str, ...], str]] = {
    "no words": ((), "a command is missing"),
    "group alone": (("ingest",), "a command is missing"),
    "unknown option": (("info", "--frob"), "no such option '--frob'"),
    "option misspelt": ((*QUERY, "--refrence", "x"), r"fix:   did you mean .*'--reference'\?"),
    "command misspelt": (("qury", "{good}"), r"no such command 'qury'\n.*\n.*did you mean 'query'\?"),
    "command of a group misspelt": (("ingest", "cell"), r"did you mean 'cells'\?"),
    "one word too many": (("verify", "it"), "unexpected extra argument"),
    "no file": (("query",), "missing argument 'QUERY...'"),
    "no name": (("ingest", "cells", "{good}", "--label-key", "cell_type"), "missing option '--name'"),
    # query
    "output of unknown ending": (
        (*QUERY, "-o", "{dir}/out.xlsx"),
        r"ending '\.xlsx' names no(.|\n)*\.parquet",
    ),
    "output without ending": ((*QUERY, "-o", "{dir}/out"), "the output has no ending"),
    "output is input": ((*QUERY, "-o", "{good}"), "the output is the input"),
    "output in no folder": ((*QUERY, "-o", "{dir}/no/out.h5ad"), "folder of the output does not exist"),
    "output in a file": ((*QUERY, "-o", "{dir}/file/out.h5ad"), "folder of the output is a file"),
    "output is a folder": ((*QUERY, "-o", "{dir}/empty"), "the output is a folder"),
    "missing input, old output": (("query", "{dir}/no.h5ad", "-o", "{dir}/reference.h5ad"), "no such file"),
    "where nonsense": ((*QUERY, "--where", "nonsense here"), r"not a condition(.|\n)*columns: cell_type"),
    "where nothing": ((*QUERY, "--where", ""), r"not a condition"),
    "where misspelt": ((*QUERY, "--where", "donr = 'd0'"), r"no column 'donr'(.|\n)*did you mean 'donor'\?"),
    "where no cell": ((*QUERY, "--where", "donor = 'me'"), r"no reference cell fulfils(.|\n)*has: d0, d1"),
    "no neighbours": ((*QUERY, "--n-neighbors", "0"), "0 is not in the range"),
    "neighbours no number": ((*QUERY, "--n-neighbors", "many"), "'many' is not a valid integer"),
    "unknown method": ((*QUERY, "--method", "vote"), "'vote' is not one of 'both', 'knn'"),
    "unknown species": ((*QUERY, "--species", "rat"), "'rat' is not one of 'auto', 'human', 'mouse'"),
    # ingest cells
    "unknown backbone": ((*INGEST, "--backbone", "gpt"), r"no backbone 'gpt'(.|\n)*minilm, st:FOLDER"),
    "no dimension": ((*WITH_SPACE, "--backbone", "random:0"), "random:0 is no dimension"),
    "missing folder of a model": ((*WITH_SPACE, "--backbone", "st:/no/model"), "'/no/model' is no folder"),
    "folder of no model": ((*WITH_SPACE, "--backbone", "st:{dir}/empty"), r"no config\.json"),
    "unknown encoder": ((*INGEST, "--encoder", "vae"), "'vae' is not one of 'discriminant', 'adapted'"),
    "batch column misspelt": ((*INGEST, "--batch-key", "dono"), "did you mean 'donor'(.|\n)*columns: cell"),
    "name that is a path": ((*INGEST, "--name", "../x"), "'../x' cannot be the name of a reference"),
    "no name at all": ((*INGEST, "--name", ""), "'' cannot be the name of a reference"),
    # ingest genes and embeddings
    "source missing": (("ingest", "genes", "--source", "{dir}/no.csv"), "no such file"),
    "source is a folder": (("ingest", "genes", "--source", "{dir}/empty"), "this is a folder"),
    "source without columns": (("ingest", "genes", "--source", "{dir}/columns.csv"), "columns: a, b"),
    "source with a wrong value": (("ingest", "genes", "--source", "{dir}/words.csv"), "'many' is no Entrez"),
    "source of unknown kind": (("ingest", "genes", "--source", "{dir}/table.xls"), "no format of gene files"),
    "genes of the snapshot": (
        ("ingest", "genes", "--genes", "{dir}/unknown.txt"),
        "snapshot is loaded whole",
    ),
    "list missing": (("ingest", "embeddings", *FAST, "--genes", "{dir}/no.txt"), "no such file"),
    "list empty": (("ingest", "embeddings", *FAST, "--genes", "{dir}/comments.txt"), "names no gene"),
    "list binary": (("ingest", "embeddings", *FAST, "--genes", "{dir}/bytes.txt"), "is no text"),
    "list is a folder": (("ingest", "embeddings", *FAST, "--genes", "{dir}/empty"), "this is a folder"),
    "list unknown": (("ingest", "embeddings", *FAST, "--genes", "{dir}/unknown.txt"), "FOO1, FOO2"),
    "template unknown": (("ingest", "embeddings", *FAST, "--text", "{{nope}}"), "unknown field"),
    "template broken": (("ingest", "embeddings", *FAST, "--text", "{{symbol"), "template cannot be read"),
    # the others
    "demo into a file": (("demo", "--out", "{dir}/file"), "a file is where the folder should be"),
    "demo under a file": (("demo", "--out", "{dir}/file/out"), "a file is where the folder should be"),
    "export to no folder": (
        ("export", REFERENCE, "--to", "parquet", "-o", "{dir}/no/x.parquet"),
        "folder of the output does not exist",
    ),
    "export under a wrong ending": (
        ("export", REFERENCE, "--to", "parquet", "-o", "{dir}/x.h5ad"),
        r"ends in \.h5ad, but parquet",
    ),
    "export of nothing": (
        ("export", "tinny", "--to", "h5ad", "-o", "{dir}/x.h5ad"),
        r"no reference 'tinny'(.|\n)*did you mean 'tiny'\? it has: tiny",
    ),
    "rm of nothing": (("rm", "tinny", "--yes"), r"did you mean 'tiny'\?"),
    "rm unasked": (("rm", REFERENCE), "fix:   add --yes"),
    "info of nothing": (("info", "--reference", "tinny"), r"did you mean 'tiny'\?"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage(name: str, store: Path, shelf: Path, places: dict[str, str]) -> None:
    words, message = USAGE[name]
    before = sorted(shelf.iterdir())
    said = assert_refused([word.format(**places) for word in words], 2, message, store)
    assert "  fix:   " in said
    assert sorted(shelf.iterdir()) == before


def test_cuda_where_there_is_none(store: Path, good: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for words in (QUERY, INGEST):
        filled = [w.format(good=good) for w in words]
        assert_refused([*filled, "--device", "cuda"], 2, "no CUDA device", store)


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
    "file": (3, "a store is a folder, this is a file(.|\n)*--store"),
    "full": (3, "the folder is not a store of scvec(.|\n)*--store"),
    "empty": (2, r"there is no store here yet(.|\n)*run: scvec ingest cells"),
    "nowhere": (2, r"there is no store here yet(.|\n)*run: scvec ingest cells"),
}


@pytest.mark.parametrize("place", NO_STORES)
def test_what_is_no_store(place: str, shelf: Path, places: dict[str, str]) -> None:
    code, message = NO_STORES[place]
    commands = {**STORE_COMMANDS, **(MAKERS if code == 3 else {})}
    before = sorted(shelf.rglob("*"))
    for words in commands.values():
        assert_refused([word.format(**places) for word in words], code, message, shelf / place)
    assert sorted(shelf.rglob("*")) == before


@pytest.mark.parametrize("place", NO_STORES)
def test_the_doctor_sees_every_store(place: str, shelf: Path, places: dict[str, str]) -> None:
    result = scvec("--store", shelf / place, "doctor", "--json")
    assert result.exit_code == 0, result.stderr
    [check] = [c for c in json.loads(result.stdout)["checks"] if c["name"] == "store"]
    assert check["ok"] == (place in ("empty", "nowhere"))
