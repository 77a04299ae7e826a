"""Tests of the report in a real browser."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from web_parts import COLUMN, HOSTILE, Shelf, Tab, text_only, violations

pytestmark = pytest.mark.browser


def opened(tab: Tab, shelf: Shelf) -> Tab:
    tab.page.goto(shelf.report.as_uri())
    tab.ready()
    return tab


def clean(tab: Tab) -> None:
    assert tab.problems == [] and tab.away() == []


def test_it_opens_offline_without_messages(tab: Tab, shelf: Shelf):
    tab.page.context.set_offline(True)
    opened(tab, shelf)
    clean(tab)
    assert tab.requests == [shelf.report.as_uri()]
    assert tab.page.locator("#labels tbody tr").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(tab: Tab, shelf: Shelf, scheme: str):
    tab.page.emulate_media(color_scheme=scheme)
    opened(tab, shelf)
    tab.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert violations(tab.page) == []


def test_names_stay_text(tab: Tab, shelf: Shelf):
    page = opened(tab, shelf).page
    for place in ("#labels", "#evidence", "#matrix", "#legend"):
        assert HOSTILE in page.inner_text(place) or HOSTILE in page.text_content(place), place
    page.select_option("#by", label=COLUMN)
    assert "</script><b>" in page.text_content("#legend") and COLUMN in page.text_content("#legend h3")
    page.select_option("#against", label=COLUMN)
    assert HOSTILE in page.text_content("#matrix tbody")
    text_only(page)
    clean(tab)


def test_cells_show_their_values_under_the_pointer(tab: Tab, shelf: Shelf):
    page = opened(tab, shelf).page
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    where = page.evaluate(
        "(() => { const d = JSON.parse(document.getElementById('data').textContent);"
        " const u = (t) => new Uint16Array(Uint8Array.from(atob(t), (c) => c.charCodeAt(0)).buffer);"
        " return [u(d.x)[0] / 65535, u(d.y)[0] / 65535]; })()"
    )
    side = 0.92 * min(box["width"], box["height"])
    x = box["x"] + box["width"] / 2 + (where[0] - 0.5) * side
    y = box["y"] + box["height"] / 2 - (where[1] - 0.5) * side
    page.mouse.move(x, y)
    tip = page.locator("#tip")
    assert tip.is_visible() and "confidence" in tip.inner_text() and "candidates:" in tip.inner_text()
    before = page.locator("#map").screenshot()
    page.locator("#map").focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(100)
    assert page.locator("#map").screenshot() != before
    text_only(page)
    clean(tab)


def test_cells_are_selected_and_saved(tab: Tab, shelf: Shelf, tmp_path: Path):
    page = opened(tab, shelf).page
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    page.click("#lasso")
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)]
    places = [(box["x"] + box["width"] * a, box["y"] + box["height"] * b) for a, b in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()
    assert "60 cells selected" in page.inner_text("#selected")
    with page.expect_download() as saved:
        page.click("#save-selected")
    saved.value.save_as(tmp_path / "cells.csv")
    rows = list(csv.DictReader((tmp_path / "cells.csv").open(encoding="utf-8")))
    found = shelf.annotation
    assert [r["cell"] for r in rows] == found.cells.tolist()
    assert [r["scvec_label"] for r in rows] == found.label.tolist()
    assert [float(r["scvec_confidence"]) for r in rows] == pytest.approx(found.confidence, abs=0.004)
    page.keyboard.press("Tab")
    page.click("#clear")
    assert "No cells selected" in page.inner_text("#selected")
    clean(tab)


def test_labels_are_sorted_searched_and_saved(tab: Tab, shelf: Shelf, tmp_path: Path):
    page = opened(tab, shelf).page
    rows = "[...document.querySelectorAll('#labels tbody tr')].filter((r) => !r.hidden)"
    names = f"{rows}.map((r) => r.cells[0].textContent)"
    numbers = f"{rows}.map((r) => Number(r.cells[3].dataset.value))"
    head = page.locator("#labels").get_by_role("button", name="mean confidence")
    head.focus()
    page.keyboard.press("Enter")
    found = page.evaluate(numbers)
    assert found == sorted(found, reverse=True)
    assert page.locator("#labels th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert page.evaluate(numbers) == sorted(found)
    page.locator("#labels").get_by_role("button", name="label", exact=True).click()
    assert page.evaluate(names) == sorted(shelf.annotation.counts(), key=str.lower)
    page.fill("#find-label", "ALPHA")
    assert page.evaluate(names) == ["alpha"] and page.inner_text("#found-labels") == "1 of 3 labels"
    page.fill("#find-label", "")
    with page.expect_download() as saved:
        page.click("#save-labels")
    saved.value.save_as(tmp_path / "labels.csv")
    saved_rows = list(csv.DictReader((tmp_path / "labels.csv").open(encoding="utf-8")))
    assert {r["label"]: int(r["cells"]) for r in saved_rows} == shelf.annotation.counts()
    clean(tab)


def test_confusion_counts_cells(tab: Tab, shelf: Shelf):
    page = opened(tab, shelf).page
    assert page.evaluate("document.getElementById('against').selectedOptions[0].textContent") == "cell_type"
    twin = json.loads(shelf.report.with_suffix(".json").read_text(encoding="utf-8"))["cells"]
    (before,) = [c for c in twin["columns"] if c["name"] == "cell_type"]
    wanted: dict[tuple[str, str], int] = {}
    for code, label in zip(before["codes"], twin["label"], strict=True):
        key = before["values"][code], twin["classes"][label]
        wanted[key] = wanted.get(key, 0) + 1
    table = page.evaluate(
        "[...document.getElementById('matrix').rows].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    heads = table[0][1:]
    found = {
        (row[0].rsplit(" (", 1)[0], label): int(n)
        for row in table[1:]
        for label, n in zip(heads, row[1:], strict=True)
        if n != "0"
    }
    assert found == wanted


def test_a_group_of_the_legend_is_hidden_and_shown(tab: Tab, shelf: Shelf):
    page = opened(tab, shelf).page
    first = page.locator("#legend li button").first
    assert first.get_attribute("aria-pressed") == "true"
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#legend li button").first.get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="Show all").click()
    assert page.locator("#legend button[aria-pressed=false]").count() == 0
    for colouring in ("confidence", "novelty", "status", "depth"):
        page.select_option("#by", label=colouring)
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    clean(tab)
