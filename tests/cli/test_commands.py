"""A command parses its options, makes one library call, and prints the result."""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from scvec.base.errors import InputError
from scvec.cli.console import program
from scvec.cli.main import cli
from scvec.model.card import CardOptions

# Every command: words to type, library function, and some of what it must be called with.
COMMANDS: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    "ingest genes": (
        ["--species", "mouse", "--source", "f.csv", "--genes", "g.txt", "--dry-run"],
        "scvec.workflows.ingest_genes.ingest_genes",
        {"species": ("mouse",), "source": "f.csv", "genes": Path("g.txt"), "dry_run": True},
    ),
    "ingest complement": (
        ["--model", "gpt-4o-mini", "--base-url", "http://127.0.0.1:1/v1", "--max-cost", "2", "--limit", "5"],
        "scvec.workflows.complement.ingest_complement",
        {
            "model": "gpt-4o-mini",
            "base_url": "http://127.0.0.1:1/v1",
            "max_cost": 2.0,
            "limit": 5,
            "overwrite": False,
            "concurrency": 4,
            "timeout": None,
            "dry_run": False,
        },
    ),
    "import-legacy": (
        ["a.json", "b.pickle", "--species", "human"],
        "scvec.workflows.import_legacy.import_legacy",
        {"species": "human", "name": None, "dry_run": False},
    ),
    "diff": (["3", "4", "--limit", "2"], "scvec.workflows.diff.diff", {"limit": 2}),
    "ingest embeddings": (
        ["--backbone", "random:8", "--text", "name", "--species", "human", "--species", "mouse"],
        "scvec.workflows.embed_genes.ingest_embeddings",
        {
            "backbone": "random:8",
            "text": "name",
            "species": ("human", "mouse"),
            "genes": None,
            "dry_run": False,
        },
    ),
    "ingest cells": (
        ["a.h5ad", "b.h5ad", "--name", "pancreas", "--label-key", "cell_type", "--batch-key", "donor"],
        "scvec.workflows.ingest_cells.ingest_cells",
        {
            "name": "pancreas",
            "label_key": "cell_type",
            "species": "auto",
            "layer": None,
            "values": "auto",
            "backbone": "minilm",
            "encoder": "discriminant",
            "batch_key": "donor",
            "min_cells": 1,
            "seed": 0,
            "force": False,
            "device": "auto",
        },
    ),
    "query": (
        [
            *("new.h5ad", "--reference", "pancreas", "-o", "out.h5ad", "--where", "donor = 'a'", "--exact"),
            *("--values", "log2-tpm10"),
        ],
        "scvec.workflows.query.query",
        {
            "reference": "pancreas",
            "output": Path("out.h5ad"),
            "n_neighbors": 15,
            "method": "both",
            "species": "auto",
            "layer": None,
            "values": "log2-tpm10",
            "where": "donor = 'a'",
            "exact": True,
            "coverage": None,
            "false_novel_rate": 0.05,
            "majority_vote": False,
            "columns": "scvec",
            "force": False,
            "device": "auto",
        },
    ),
    "explain": (
        ["out.h5ad", "--label", "beta", "--against", "alpha", "--n-genes", "3"],
        "scvec.workflows.explain.explain",
        {"cell": None, "label": "beta", "against": "alpha", "n_genes": 3, "memory": None},
    ),
    "labels": (
        ["pancreas", "--set", "a=b=CL:0000236", "--unset", "c"],
        "scvec.workflows.labels.labels",
        {"set": {"a=b": "CL:0000236"}, "unset": ("c",)},
    ),
    "eval": (
        [
            "new.h5ad",
            "--truth-key",
            "cell_type",
            "--label-map",
            "m.csv",
            "-o",
            "e.json",
            "--plot",
            "e.png",
            "--method",
            "head",
            "--values",
            "counts",
        ],
        "scvec.workflows.evaluate.evaluate",
        {
            "truth_key": "cell_type",
            "reference": None,
            "label_map": Path("m.csv"),
            "output": Path("e.json"),
            "plot": Path("e.png"),
            "coverage": 0.9,
            "n_neighbors": 15,
            "method": "head",
            "values": "counts",
            "false_novel_rate": 0.05,
        },
    ),
    "search genes": (
        ["insulin secretion", "-k", "3", "--species", "human", "--method", "words"],
        "scvec.workflows.search_genes.search_genes",
        {"k": 3, "species": "human", "where": None, "method": "words", "backbone": None, "device": "auto"},
    ),
    "search cells": (
        ["--like", "cell1", "--reference", "pancreas", "--where", "donor = 'a'"],
        "scvec.workflows.search_cells.search_cells",
        {"like": "cell1", "reference": "pancreas", "k": 10, "where": "donor = 'a'", "method": "hybrid"},
    ),
    "serve": (
        ["--port", "0", "--max-upload", "1M", "--no-token"],
        "scvec.web.server.serve",
        {"host": "127.0.0.1", "port": 0, "token": False, "max_upload": "1M", "memory": None, "timeout": 1800},
    ),
    "info": (["--reference", "pancreas"], "scvec.workflows.admin.info", {}),
    "verify": ([], "scvec.workflows.admin.verify", {}),
    "doctor": ([], "scvec.workflows.admin.doctor", {}),
    "export": (
        ["pancreas", "--to", "parquet", "-o", "o.parquet"],
        "scvec.workflows.export.export",
        {"to": "parquet", "output": Path("o.parquet"), "space": None},
    ),
    "import": (
        ["o.parquet", "--reference", "pancreas", "--dry-run", "--memory", "1G"],
        "scvec.workflows.export.import_vectors",
        {"reference": "pancreas", "dry_run": True, "memory": "1G"},
    ),
    "ingest census": (
        ["--tissue", "lung", "--name", "x", "--uri", "D", "--dry-run"],
        "scvec.workflows.ingest_census.ingest_census",
        {"name": "x", "uri": "D", "dry_run": True},
    ),
    "ingest markers": (
        ["--source", "f.csv", "--column", "gene=Symbol", "--dry-run"],
        "scvec.workflows.ingest_markers.ingest_markers",
        {"columns": {"gene": "Symbol"}, "species": None, "tissues": (), "refresh": False, "dry_run": True},
    ),
    "name": (
        ["new.h5ad", "--groupby", "leiden", "--tissue", "lung", "--only", "novel", "--llm", "openai:m"],
        "scvec.workflows.name.name",
        {
            "groupby": "leiden",
            "tissue": "lung",
            "only": "novel",
            "markers": None,
            "output": None,
            "llm": "openai:m",
            "votes": 3,
            "max_cost": None,
            "dry_run": False,
        },
    ),
    "mcp": (
        ["--root", "D", "--max-file", "1M"],
        "scvec.web.mcp.serve_mcp",
        {"allow_write": False, "max_file": "1M", "memory": None},
    ),
    "pack": (
        ["pancreas", "-o", "p.scvec", "--without-cells", "--license", "CC0-1.0", "--source", "a"],
        "scvec.workflows.pack.pack",
        {
            "output": Path("p.scvec"),
            "with_cells": False,
            "card": CardOptions(license="CC0-1.0", sources=("a",)),
        },
    ),
    "pull": (
        ["p.scvec", "--name", "mine", "--max-size", "2"],
        "scvec.workflows.pull.pull",
        {"name": "mine", "trust": False, "max_bytes": 2_000_000_000},
    ),
    "rm": (["pancreas", "--yes"], "scvec.workflows.admin.rm", {}),
    "compact": ([], "scvec.workflows.admin.compact", {}),
    "demo": (["--out", "D", "--seed", "3"], "scvec.workflows.demo.demo", {"seed": 3}),
}


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from walk(child, (*path, name))
    else:
        yield " ".join(path), command


def test_the_table_above_has_every_command():
    assert {name for name, _ in walk(cli)} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_calls_the_library_once_with_the_options(name, scvec, api, tmp_path):
    words, path, expected = COMMANDS[name]
    result = scvec("--store", str(tmp_path), *name.split(), *words)
    assert result.exit_code == 0, result.stderr
    [(function, args, kwargs)] = api.calls
    assert function == path.rsplit(".", 1)[1]
    if name == "demo":
        assert args == (Path("D"),) and kwargs["store"] == tmp_path
    else:
        assert args[0] == tmp_path
    given = kwargs
    for options in filter(is_dataclass, args):
        given = {**vars(options), **given}
    assert {k: given[k] for k in expected} == expected


# The stdout of mcp belongs to its protocol.
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"mcp"}))
def test_json_is_one_strict_object_and_nothing_else(name, scvec, api):
    words, _, _ = COMMANDS[name]
    result = scvec(*name.split(), *words, "--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert isinstance(json.loads(result.stdout, parse_constant=refuse), dict)


#: Commands after which nothing follows by itself.
LAST = {
    *("explain", "labels", "search genes", "search cells", "info", "verify", "doctor", "diff", "export"),
    *("import", "import-legacy", "rm", "compact"),
}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"mcp", "serve"}))
def test_the_next_step_is_a_command_that_works(name, scvec, api, tmp_path):
    words, _, _ = COMMANDS[name]
    store = str(tmp_path / "my store")
    result = scvec("--store", store, *name.split(), *words)
    told = [line for line in result.stderr.splitlines() if line.startswith("next")]
    assert len(told) == (name not in LAST) and "next: " not in result.stdout
    for quiet in ("-q", "--json"):
        assert "next" not in scvec("--store", store, *name.split(), *words, quiet).stderr
    for line in told:
        assert result.stderr.splitlines()[-1] == line
        command = shlex.split(line.partition(": ")[2])
        assert command[0] == "scvec" and "--dry-run" not in command
        api.calls.clear()
        again = scvec(*command[1:])
        assert again.exit_code == 0, again.stderr
        # A pack is used elsewhere; else the store is that of the command.
        assert (str(api.calls[0][1][0]) == store) == (name != "pack")


def test_the_next_step_is_told_once_after_several_files(scvec, api, tmp_path):
    files = [tmp_path / name for name in ("one.h5ad", "two.h5ad")]
    for file in files:
        file.touch()
    done = scvec("query", *map(str, files), "-o", "{}.h5ad")
    assert done.exit_code == 0 and done.stderr.count("next: ") == 1


@pytest.mark.parametrize(
    ("typed", "found", "shown"),
    [
        ("/usr/bin/scvec", "/usr/bin/scvec", "scvec"),
        (".venv/bin/scvec", None, ".venv/bin/scvec"),
        ("my env/scvec", "/usr/bin/scvec", "'my env/scvec'"),
        ("/lib/scvec/__main__.py", None, "python -m scvec"),
        ("/lib/scvec/__main__.py", "/usr/bin/scvec", "scvec"),
        ("/lib/pytest/__main__.py", None, "scvec"),
        ("/bin/pytest", None, "scvec"),
    ],
)
def test_the_next_step_names_the_program_that_the_shell_finds(typed, found, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", [typed])
    monkeypatch.setattr("shutil.which", lambda _: found)
    monkeypatch.setattr("os.path.samefile", lambda a, b: str(a) == str(b))
    assert program() == shown


@pytest.mark.parametrize("name", ["", "ingest", "search", *COMMANDS])
def test_help_has_an_example(name, scvec):
    result = scvec(*name.split(), "--help")
    assert result.exit_code == 0
    assert f"  scvec {name}".rstrip() in result.stdout.split("Options:")[0].split("\n", 1)[1]
    for option in ("--store", "--json", "--quiet", "--verbose"):
        assert option in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_real_function_takes_what_the_command_passes(name, scvec, api, monkeypatch):
    words, path, _ = COMMANDS[name]
    assert scvec(*name.split(), *words).exit_code == 0
    [(function, args, kwargs)] = api.calls
    monkeypatch.undo()
    module = importlib.import_module(path.rsplit(".", 1)[0])
    signature = inspect.signature(getattr(module, function))
    given = signature.bind(*args, **kwargs).arguments
    kinds = [p.kind for p in signature.parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    # Fields that are needed come by keyword, or in an options object.
    needed = {p.name for p in signature.parameters.values() if p.default is ...}
    assert "options" in given or needed <= set(given)


@pytest.mark.parametrize("after", [False, True])
def test_global_options_before_and_after_the_command(after, scvec, api, tmp_path):
    glob = ["--store", str(tmp_path), "--json", "-q"]
    words = ["info", *glob] if after else [*glob, "info"]
    result = scvec(*words)
    assert json.loads(result.stdout)["generation"] == "g1"
    assert api.calls[0][1][0] == tmp_path


def test_the_option_after_the_command_wins(scvec, api):
    scvec("--store", "first", "info", "--store", "second")
    assert api.calls[0][1][0] == Path("second")


def test_store_from_the_environment_and_the_platform(scvec, api, monkeypatch):
    monkeypatch.setenv("SCVEC_STORE", "from-env")
    scvec("info")
    monkeypatch.delenv("SCVEC_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", "/data-home")
    scvec("info")
    first, second = (args[0] for _, args, _ in api.calls)
    assert first == Path("from-env")
    assert second.name == "scvec"


def test_demo_has_its_own_store_unless_one_is_named(scvec, api):
    scvec("demo")
    assert api.calls[0][2]["store"] is None


def test_version(scvec):
    import scvec as package

    result = scvec("--version")
    assert result.exit_code == 0 and package.__version__ in result.stdout


def test_rm_does_not_ask_without_a_terminal(scvec, api):
    result = scvec("rm", "pancreas")
    assert result.exit_code == 2 and "--yes" in result.stderr
    assert not api.calls


def test_verify_exits_with_3_when_something_is_damaged(scvec, api):
    from dataclasses import replace

    sound = api.results["scvec.workflows.admin.verify"]
    api.results["scvec.workflows.admin.verify"] = replace(sound, problems=["kb.duckdb: wrong sha256"])
    result = scvec("verify", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["problems"] == ["kb.duckdb: wrong sha256"]


def test_several_files_are_queried_one_by_one(scvec, api, tmp_path):
    files = [str(tmp_path / name) for name in ("one.h5ad", "two.h5ad")]
    for file in files:
        Path(file).touch()
    done = scvec("query", *files, "-o", "{}.csv", "--json")
    assert done.exit_code == 0
    assert [(str(args[1]), args[2].output) for _, args, _ in api.calls] == [
        (files[0], Path("one.csv")),
        (files[1], Path("two.csv")),
    ]
    # A line of JSON for each, which says whose it is.
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == files


def test_a_file_that_cannot_be_used_does_not_stop_the_others(scvec, api, tmp_path, monkeypatch):
    files = [tmp_path / f"{name}.h5ad" for name in "abc"]
    for file in files:
        file.touch()
    asked = sys.modules["scvec.workflows.query"].query

    def query(store, path, options, **given):
        if path == files[1]:
            raise InputError("not an h5ad file", str(path))
        return asked(store, path, options, **given)

    monkeypatch.setattr(sys.modules["scvec.workflows.query"], "query", query)
    done = scvec("query", *map(str, files))
    assert done.exit_code == 2
    assert [str(f) in done.stdout for f in files] == [True, False, True]
    assert "not an h5ad file" in done.stderr and "2 of 3 files were annotated" in done.stderr


def test_an_error_not_caused_by_a_file_stops_the_command(scvec, api, tmp_path):
    files = [tmp_path / f"{name}.h5ad" for name in "abcd"]
    for file in files:
        file.touch()
    api.fail(InputError("no reference 'x'"))
    done = scvec("query", *map(str, files))
    assert done.exit_code == 2 and len(api.calls) == 2
