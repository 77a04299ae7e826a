"""Fixtures: a store with HTML in its names, its server, and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web_parts import HOSTILE, Server, Shelf, Tab, hostile_cells

import scvec

PROJECT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def shelf(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Shelf:
    folder = tmp_path_factory.mktemp("web")
    gene = {"symbol": HOSTILE, "entrez_id": 999999901, "species": "human", "summary": f"{HOSTILE} is a gene."}
    (folder / "genes.jsonl").write_text(json.dumps(gene) + "\n", encoding="utf-8")
    scvec.ingest_genes(new_store(folder / "store"), source=folder / "genes.jsonl")
    reference = hostile_cells(tiny_adata, 90, 0)
    scvec.ingest_cells(
        folder / "store",
        [reference],
        name="tiny",
        label_key="cell_type",
        batch_key="donor",
        backbone="random:16",
    )
    hostile_cells(tiny_adata, 60, 1).write_h5ad(folder / "new.h5ad")
    report = folder / "report.html"
    found = scvec.query(folder / "store", folder / "new.h5ad", report=report)
    return Shelf(folder / "store", folder / "new.h5ad", report, found)


@pytest.fixture(scope="session")
def server(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    temporary = tmp_path_factory.mktemp("temporary")
    # Half of what is free may be too little on a machine that others use.
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "scvec",
            "--store",
            str(shelf.store),
            "--json",
            "serve",
            "--port",
            "0",
            "--memory",
            "4G",
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "TMPDIR": str(temporary),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        yield Server(url, url.split("token=")[1])
    finally:
        process.terminate()
        assert process.wait(timeout=120) == 143
        # Uploads are deleted when the server stops.
        assert list(temporary.glob("scvec-serve-*")) == []


# One per module, because Playwright runs an event loop in this thread while it is open.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless Chromium, driven by Playwright."""
    path = os.environ.get("SCVEC_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in SCVEC_BROWSER")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make dev")
    with sync_api.sync_playwright() as playwright:
        # Chromium has no sandbox for root. These pages are trusted.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield found
        found.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(300_000)  # generous, for a busy machine
    made = Tab(context.new_page())
    made.watch(made.page)
    yield made
    context.close()
