"""The examples of docs/commands.md work in their order; links and commands of all pages are right."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from scvec.cli.main import cli
from scvec.cli.options import Session

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = (PROJECT / "docs" / "commands.md").read_text(encoding="utf-8")
PAGES = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "docs" / "tutorials").glob("*.md")),
]


def examples() -> list[list[str]]:
    """Words of every ``$ scvec ...`` line in the fenced console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```", COMMANDS, flags=re.MULTILINE | re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line)[1:] for line in lines if line.startswith("scvec ")]


def test_every_command_has_an_example():
    shown = {tuple(words[:2]) if words[0] in ("ingest", "search") else (words[0],) for words in examples()}
    groups = {name: getattr(command, "commands", None) for name, command in cli.commands.items()}
    known = {(name, sub) if sub else (name,) for name, subs in groups.items() for sub in (subs or [None])}
    assert shown == known


def test_every_exit_code_is_in_the_table():
    from scvec.base import errors

    classes = [cls for cls in vars(errors).values() if isinstance(cls, type)]
    codes = {cls.exit_code for cls in classes if issubclass(cls, errors.ScvecError)} | {0, 130, 143}
    rows = re.findall(r"^\| (\d+(?:, \d+)*) \|", COMMANDS, flags=re.MULTILINE)
    assert codes == {int(code) for row in rows for code in row.split(", ")}


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), anchor


def typed(page: Path) -> list[list[str]]:
    """Words of every ``scvec`` command in the blocks of a page."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```|((?:^    [^\n]*\n)+)", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in "".join(block).splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("scvec ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_has_the_options_that_are_typed(page: Path):
    for words in typed(page):
        command: click.Command = cli
        rest = list(words)
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        command.make_context("scvec", rest, obj=Session())  # parses; calls nothing


def test_pages_have_commands():
    assert sum(len(typed(page)) for page in PAGES) > 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_adata: Callable[..., Any]) -> Path:
    """A folder with the files that the examples name."""
    path = tmp_path_factory.mktemp("readme")
    tiny_adata(120, classes=3, seed=0).write_h5ad(path / "ref.h5ad")
    new = tiny_adata(30, classes=3, seed=1)
    new.write_h5ad(path / "new.h5ad")
    (path / "genes.txt").write_text("\n".join(new.var_names[:50]) + "\n", encoding="utf-8")
    (path / "markers.csv").write_text("gene,cell_type\nINS,type B pancreatic cell\n", encoding="utf-8")
    texts = {"INS": "Gene Symbol INS. Insulin, a hormone.", "GCG": "Gene Symbol GCG. Glucagon, a hormone."}
    (path / "genept.json").write_text(json.dumps(texts), encoding="utf-8")
    return path


def serves(words: list[str], folder: Path) -> None:
    """Start a server, see its address, and interrupt it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scvec", *words],
        env={**os.environ, "SCVEC_STORE": str(folder / "store"), "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("open http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=500) == 130
    finally:
        process.kill()
        process.wait()


def offers_tools(words: list[str], folder: Path) -> None:
    """Start a server of tools, list its tools, and disconnect."""
    pytest.importorskip("mcp")
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    calls = [
        {"id": 1, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list"},
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "scvec", *words],
        env={**os.environ, "SCVEC_STORE": str(folder / "store"), "PYTHONPATH": str(PROJECT)},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("".join(json.dumps({"jsonrpc": "2.0", **call}) + "\n" for call in calls))
        process.stdin.flush()
        said = [process.stdout.readline() for _ in range(2)]
        process.stdin.close()
        assert process.wait(timeout=500) == 0
    assert any("annotate_file" in line for line in said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_examples_work(folder: Path, monkeypatch: pytest.MonkeyPatch):
    # One test, because each example stands on those before it; inside this process, which has the libraries
    # loaded. demo has a test of its own, as a program.
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SCVEC_STORE", str(folder / "store"))
    for words in examples():
        if words[0] == "demo":
            continue
        if words[0] == "serve":
            serves(words, folder)
            continue
        if words[0] == "mcp":
            offers_tools(words, folder)
            continue
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, f"scvec {shlex.join(words)}\n{done.stdout}{done.stderr}"
        assert "\x1b" not in done.stdout + done.stderr
        assert done.stdout.strip(), f"scvec {shlex.join(words)} says nothing"
    for name in ("annotated.h5ad", "report.html", "report.json", "labels.csv", "pancreas.parquet"):
        assert (folder / name).stat().st_size > 0
    labels = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    assert len(labels) == 31 and "scvec_label" in labels[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import anndata

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCVEC_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = anndata.read_h5ad(PROJECT / "scvec" / "data" / "baron_human.h5ad")
    cells[cells.obs["donor"].isin(["human1", "human2"]).to_numpy()].write_h5ad("ref.h5ad")
    cells[(cells.obs["donor"] == "human3").to_numpy()].write_h5ad("new.h5ad")
    commands = typed(PROJECT / "README.md")
    assert [words[0] for words in commands] == ["pull", "query", "ingest", "query"]
    for words in commands:
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, f"scvec {shlex.join(words)}\n{done.stdout}{done.stderr}"
    for name in ("annotated.h5ad", "report.html"):
        assert Path(name).stat().st_size > 100_000
    [code] = re.findall(
        r"^```python\n(.*?)^```", (PROJECT / "README.md").read_text("utf-8"), re.M | re.DOTALL
    )
    adata = anndata.read_h5ad("new.h5ad")
    exec(compile(code, "README.md", "exec"), {"adata": adata})
    assert {"scvec_label", "scvec_confidence"} <= set(adata.obs.columns)
