"""The tools for assistants, driven by the client of the official SDK over real pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

mcp = pytest.importorskip("mcp", reason="needs the extra mcp")

from scvec.base.errors import InputError  # noqa: E402
from scvec.web.mcp import Tools, serve_mcp  # noqa: E402

PROJECT = Path(__file__).resolve().parents[2]
Use = Callable[[Any], Awaitable[Any]]
GB = 10 * 2**30


def with_client(store: Path, root: Path, use: Use, *words: str) -> Any:
    """Start ``scvec mcp``, run ``use`` with the SDK's client, and return its result."""

    async def main() -> Any:
        server = mcp.StdioServerParameters(
            command=sys.executable,
            args=["-m", "scvec", "--store", str(store), "mcp", "--root", str(root), *words],
            env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        )
        with open(os.devnull, "w") as nowhere:
            async with (
                mcp.stdio_client(server, errlog=nowhere) as streams,
                mcp.ClientSession(*streams) as client,
            ):
                await client.initialize()
                return await use(client)

    return anyio.run(main)


async def error_of(client: Any, tool: str, **arguments: Any) -> dict[str, Any]:
    """The error of a call."""
    found = await client.call_tool(tool, arguments)
    assert found.is_error, found
    (content,) = found.content
    said: dict[str, Any] = json.loads(content.text)
    assert said["what"] and said["fix"] and said["exit_code"] and "\n" not in said["what"]
    return said


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_adata: Any) -> Path:
    """A folder with a store, and the folder ``cells`` that the server may read."""
    from scvec.workflows.ingest_cells import ingest_cells
    from scvec.workflows.query import query

    path = tmp_path_factory.mktemp("mcp")
    (path / "cells").mkdir()
    tiny_adata(120, classes=3, seed=0).write_h5ad(path / "ref.h5ad")
    ingest_cells(path / "store", [path / "ref.h5ad"], name="tiny", label_key="cell_type")
    tiny_adata(30, classes=3, seed=1).write_h5ad(path / "cells" / "new.h5ad")
    query(path / "store", path / "cells" / "new.h5ad", output=path / "cells" / "annotated.h5ad")
    (path / "outside.h5ad").write_bytes((path / "ref.h5ad").read_bytes())
    (path / "cells" / "link.h5ad").symlink_to(path / "outside.h5ad")
    (path / "cells" / "up").symlink_to(path)
    (path / "cells" / "text.h5ad").write_text("not cells")
    with open(path / "cells" / "large.h5ad", "wb") as file:
        file.truncate(GB)
    return path


@pytest.mark.slow
def test_each_tool(place: Path):
    async def use(client: Any) -> None:
        listed = (await client.list_tools()).tools
        assert {t.name for t in listed} == {
            "search_genes",
            "search_cells",
            "annotate_file",
            "name_markers",
            "explain_label",
            "list_references",
        }
        assert all(t.description and t.annotations.read_only_hint for t in listed)

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            found = await client.call_tool(tool, arguments)
            assert not found.is_error, found
            assert json.loads(found.content[0].text) == found.structured_content
            return dict(found.structured_content)

        found = await call("list_references")
        assert [r["name"] for r in found["references"]] == ["tiny"]
        genes = await call("search_genes", text="insulin", k=5, species="human")
        assert any(hit["symbol"] == "INS" for hit in genes["hits"])
        cells = await call("search_cells", text="insulin secretion", k=3)
        assert cells["labels"]
        annotated = await call("annotate_file", path="new.h5ad")
        assert annotated["n_cells"] == 30 and sum(annotated["labels"].values()) == 30
        assert annotated["output"] is None
        by_full_path = await call("annotate_file", path=str(place / "cells" / "new.h5ad"), reference="tiny")
        assert by_full_path["labels"] == annotated["labels"]
        lists = {"b\x1b[31m": ["MS4A1", "CD79A", "CD19"], "x": ["NOTHING"]}
        named = await call("name_markers", lists=lists, tissue="blood")
        assert {g["group"] for g in named["groups"]} == {"b [31m", "x"}
        b = next(g for g in named["groups"] if g["group"] != "x")
        assert any(c["label"] == "B cell" for c in b["candidates"])
        label = max(annotated["labels"], key=annotated["labels"].get)
        why = await call("explain_label", path="annotated.h5ad", label=label, n_genes=3)
        assert len(why["genes"]) == 3

    before = sorted(p.name for p in (place / "cells").iterdir())
    with_client(place / "store", place / "cells", use)
    assert sorted(p.name for p in (place / "cells").iterdir()) == before


@pytest.mark.slow
def test_errors_are_clear_and_end_nothing(place: Path):
    cases = {
        "../outside.h5ad": "outside-folder",
        str(place / "outside.h5ad"): "outside-folder",
        "/etc/passwd": "outside-folder",
        "up/outside.h5ad": "outside-folder",
        "link.h5ad": "outside-folder",
        "../nothing": "outside-folder",
        "nothing.h5ad": "file-not-found",
        ".": "not-a-file",
        "a\0b": "bad-name",
        "large.h5ad": "file-too-large",
        "text.h5ad": "wrong-format",
    }

    async def use(client: Any) -> None:
        for path, code in cases.items():
            for tool in ("annotate_file", "explain_label"):
                more = {"label": "x"} if tool == "explain_label" else {}
                said = await error_of(client, tool, path=path, **more)
                assert said["code"] == code, (tool, path, said)
        assert (await error_of(client, "annotate_file", path="new.h5ad", reference="nobody"))[
            "code"
        ] == "unknown-reference"
        assert (await error_of(client, "search_cells", text="x", reference="no"))[
            "code"
        ] == "unknown-reference"
        said = await error_of(client, "annotate_file", path="new.h5ad", output="out.h5ad")
        assert said["code"] == "writing-not-allowed"
        assert (await error_of(client, "explain_label", path="new.h5ad", label="x"))[
            "code"
        ] == "not-annotated"
        # Arguments out of bounds are refused by the schema, and the server lives on.
        for tool, arguments in (
            ("search_genes", {"text": "x", "k": 10**9}),
            ("search_genes", {"text": ""}),
            ("annotate_file", {}),
            ("name_markers", {"lists": {}}),
        ):
            assert (await client.call_tool(tool, arguments)).is_error
        assert not (await client.call_tool("list_references", {})).is_error

    with_client(place / "store", place / "cells", use)


@pytest.mark.slow
def test_without_a_store_references_are_missing_and_names_work(place: Path, tmp_path: Path):
    async def use(client: Any) -> None:
        for tool, more in (("annotate_file", {"path": "new.h5ad"}), ("list_references", {})):
            said = await error_of(client, tool, **more)
            assert said["code"] in ("store-empty", "file-not-found", "not-a-store"), said
        found = await client.call_tool("name_markers", {"lists": {"b": ["MS4A1", "CD79A"]}})
        assert not found.is_error

    with_client(tmp_path / "none", place / "cells", use)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_writing_where_it_is_allowed(place: Path, tmp_path: Path):
    (tmp_path / "new.h5ad").write_bytes((place / "cells" / "new.h5ad").read_bytes())
    (tmp_path / "dangling.h5ad").symlink_to(place / "made-outside.h5ad")

    async def use(client: Any) -> None:
        for output, code in (
            ("../out.h5ad", "outside-folder"),
            ("dangling.h5ad", "outside-folder"),
            ("new.h5ad", "output-not-writable"),
            ("nowhere/out.h5ad", "output-not-writable"),
            ("out.exe", "output-format"),
        ):
            said = await error_of(client, "annotate_file", path="new.h5ad", output=output)
            assert said["code"] == code, (output, said)
        done = await client.call_tool("annotate_file", {"path": "new.h5ad", "output": "out.csv"})
        assert not done.is_error and done.structured_content["output"] == "out.csv"
        said = await error_of(client, "annotate_file", path="new.h5ad", output="out.csv")
        assert said["code"] == "output-not-writable"

    with_client(place / "store", tmp_path, use, "--allow-write")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 31
    assert not (place / "made-outside.h5ad").exists()


@pytest.mark.slow
def test_nothing_but_the_protocol_is_on_stdout(place: Path):
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    calls = [
        {"id": 1, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
        {
            "id": 2,
            "method": "tools/call",
            "params": {"name": "annotate_file", "arguments": {"path": "new.h5ad"}},
        },
        {"id": 3, "method": "tools/call", "params": {"name": "annotate_file", "arguments": {"path": ".."}}},
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "scvec", "-vv", "--store", place / "store", "mcp", "--root", place / "cells"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for call in calls:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **call}) + "\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait(timeout=60) == 0
    assert {m["id"] for m in found} == {1, 2, 3} and all(m["jsonrpc"] == "2.0" for m in found)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../outside", "outside-folder"),
        ("/etc/passwd", "outside-folder"),
        ("out/outside", "outside-folder"),
        ("link", "outside-folder"),
        ("loop", "bad-name"),
        ("a\0b", "bad-name"),
        ("nothing", "file-not-found"),
        ("pipe", "not-a-file"),
        ("inner", "not-a-file"),
        ("inner/../large", "file-too-large"),
        ("x" * 3000, "file-not-found"),
    ],
)
def test_paths_are_judged_before_anything_is_opened(tmp_path: Path, path: str, code: str):
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "outside").write_text("x")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "good").symlink_to(root / "inner" / "file")
    (root / "inner" / "file").write_text("x")
    os.mkfifo(root / "pipe")
    with open(root / "large", "wb") as file:
        file.truncate(GB)
    tools = Tools(tmp_path, root)
    assert tools._file("good") == root.resolve() / "inner" / "file"
    with pytest.raises(InputError) as caught:
        tools._file(path)
    assert caught.value.code == code


def test_a_folder_that_is_none(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for root, code in ((tmp_path / "nothing", "file-not-found"), (tmp_path / "file", "not-a-file")):
        with pytest.raises(InputError) as caught:
            Tools(tmp_path, root)
        assert caught.value.code == code


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        serve_mcp(tmp_path, tmp_path)
    assert caught.value.code == "extra-not-installed" and "scvec[mcp]" in caught.value.fix
