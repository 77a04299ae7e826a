"""What a notebook shows: small tables, and nothing of a file as markup."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import scvec
from scvec.base.display import html_bar, html_lines, html_table

HOSTILE = "<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Tags that are open, texts, and whether each tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_parts_escape_what_they_are_given():
    for made in (
        html_lines([HOSTILE]),
        html_table((HOSTILE,), [(HOSTILE,), (1_000,), (0.5,)]),
        html_bar({HOSTILE: (3, "#111111"), "none": (0, "#222222")}),
    ):
        page = Page(made)
        assert "img" not in page.tags and HOSTILE in page.text
    assert "1,000" in html_table(("n",), [(1_000,)]) and "none" not in html_bar({"none": (0, "red")})


def test_annotation_reference_and_store(
    tmp_path: Path, tiny_adata: Callable[..., Any], new_store: Callable[[Path], Path]
):
    def cells(n: int, seed: int) -> Any:
        made = tiny_adata(n, classes=3, seed=seed)
        made.obs["cell_type"] = made.obs["cell_type"].astype(str).replace({"alpha": HOSTILE})
        return made

    store = new_store(tmp_path / "store")
    reference = cells(90, 0)
    reference.obs.loc[reference.obs["cell_type"] == reference.obs["cell_type"].iloc[0], "cell_type"] = HOSTILE
    made = scvec.ingest_cells(store, [reference], name="tiny", label_key="cell_type", encoder="pca")
    found = scvec.query(store, cells(30, 1))
    for shown in (made, found, scvec.info(store), scvec.info(store, reference="tiny")):
        page = Page(shown._repr_html_())
        assert "img" not in page.tags and "script" not in page.tags
    page = Page(found._repr_html_())
    assert "30 cells" in page.text and "write_report" in page.text
    for label, n in found.counts().items():
        assert label in page.text and f"{n:,}" in page.text
    assert "tiny" in Page(scvec.info(store)._repr_html_()).text


def test_progress_moves_in_its_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    shown: list[Any] = []

    class ZMQInteractiveShell:
        pass

    handle = SimpleNamespace(update=lambda html: shown.append(html))
    display = SimpleNamespace(
        HTML=lambda text: text, display=lambda html, display_id: [shown.append(html), handle][1]
    )
    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=ZMQInteractiveShell, display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    bar = scvec.ProgressBar()
    bar("reading", 0, None)
    bar("encoding", 0, 10)
    for done in range(1, 11):
        bar("encoding", done, 10, f"{done} {HOSTILE}")
    assert 3 <= len(shown) <= 12, "not once a call"
    assert 'value="1"' in shown[-1] and "<img" not in shown[-1]
    monkeypatch.delitem(sys.modules, "IPython")
    bar = scvec.ProgressBar()
    bar("reading\x1b[31m", 0, None)
    bar("reading\x1b[31m", 1, None)
    assert capsys.readouterr().err == "reading [31m ...\n"
