"""Tests of the page of ``scvec serve`` in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from web_parts import HOSTILE, Server, Shelf, Tab, text_only, violations

pytestmark = pytest.mark.browser


@pytest.fixture
def cells(shelf: Shelf, tmp_path: Path) -> Path:
    """The cells in a file whose name is HTML."""
    return Path(shutil.copy(shelf.cells, tmp_path / f"{HOSTILE}.h5ad"))


@pytest.mark.timeout(400)
def test_a_file_is_uploaded_annotated_and_downloaded(
    tab: Tab, server: Server, shelf: Shelf, cells: Path, tmp_path: Path
):
    page = tab.page
    page.goto(server.url)
    tab.ready()
    assert page.url == f"{server.base}/"  # the token is in a cookie now
    assert page.evaluate("document.cookie") == ""
    page.set_input_files("#file", str(cells))
    page.click("#go")
    page.wait_for_selector("#working:not([hidden])")
    page.wait_for_selector("#result:not([hidden])", timeout=300_000)
    assert page.inner_text("#status") == "Done: 60 cells."
    texts = "(r) => [...r.cells].map((c) => c.textContent)"
    shown = page.evaluate(f"[...document.querySelectorAll('#counts tr')].map({texts})")
    assert {label: int(n) for label, n in shown} == shelf.annotation.counts()
    assert HOSTILE in page.inner_text("#result-h")
    text_only(page)
    with page.expect_download() as saved:
        page.get_by_role("link", name="Labels as CSV").click()
    saved.value.save_as(tmp_path / "labels.csv")
    assert len((tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()) == 61
    with page.expect_download() as saved:
        page.get_by_role("link", name="Report as JSON").click()
    saved.value.save_as(tmp_path / "report.json")
    twin = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert twin["title"] == f"{HOSTILE}.h5ad" and twin["command"].startswith("scvec query '<img")
    with page.context.expect_page() as other:
        page.get_by_role("link", name="Open the report").click()
    report = tab.ready(tab.watch(other.value))
    assert report.locator("#labels tbody tr").count() == 3
    text_only(report)
    with report.expect_download() as saved:
        report.click("#save-labels")
    assert saved.value.suggested_filename == "labels.csv"
    # The report has an opaque origin, so its scripts cannot send requests to the server.
    assert report.evaluate("origin") == "null"
    assert violations(page) == []
    assert tab.problems == [] and tab.away() == []


def test_searching(tab: Tab, server: Server):
    page = tab.page
    page.goto(server.url)
    tab.ready()
    page.fill("#q", "insulin")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits table", timeout=300_000)
    assert "INS" in page.inner_text("#hits tbody")
    page.select_option("#what", "cells")
    page.fill("#q", HOSTILE)
    page.get_by_role("button", name="Search").click()
    page.wait_for_selector("#hits h3", timeout=300_000)
    assert HOSTILE in page.inner_text("#hits")
    text_only(page)
    assert violations(page) == []
    assert tab.problems == []
    page.fill("#where", "nonsense = 1")
    page.get_by_role("button", name="Search").click()
    page.locator("#search-status", has_text="no column").wait_for()
    assert page.locator("#hits table").count() == 0 and tab.away() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(tab: Tab, server: Server, scheme: str):
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.goto(server.url)
    tab.ready()
    assert violations(tab.page) == []
    assert tab.problems == []


def test_a_file_that_cannot_be_used_is_explained(tab: Tab, server: Server, tmp_path: Path):
    (tmp_path / "notes.h5ad").write_text("hello", encoding="utf-8")
    page = tab.page
    page.goto(server.url)
    tab.ready()
    page.set_input_files("#file", str(tmp_path / "notes.h5ad"))
    page.click("#go")
    page.wait_for_selector("#problem:not([hidden])", timeout=300_000)
    assert "looks like a text file" in page.inner_text("#problem")
    assert str(tmp_path) not in page.inner_text("#problem")


def test_without_the_token_there_is_no_page(tab: Tab, server: Server):
    answer = tab.page.goto(server.base)
    assert answer.status == 401 and "it holds a token" in tab.page.inner_text("body")
