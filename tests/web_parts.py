"""Common parts of the tests of the report and of the server: hostile names, a store, a browser page."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "<img src=x onerror=alert(1)>"
COLUMN = '"><svg onload=alert(2)>'


def hostile_cells(tiny_adata: Callable[..., Any], n: int, seed: int) -> Any:
    """Cells with HTML as a label, a gene, names and a column."""
    cells = tiny_adata(n, classes=3, seed=seed, depth=4000.0)
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"beta": HOSTILE})
    cells.obs[COLUMN] = [HOSTILE if i % 2 else "</script><b>" for i in range(n)]
    cells.obs["depth"] = [float(i) for i in range(n)]
    cells.var_names = [HOSTILE if name == "INS" else name for name in cells.var_names]
    cells.obs_names = [f"{HOSTILE}{i}" if i < 3 else f"cell{seed}-{i}" for i in range(n)]
    return cells


@dataclass(frozen=True)
class Shelf:
    """A store, a file to annotate, and its report."""

    store: Path
    cells: Path
    report: Path
    annotation: Any = field(repr=False)


@dataclass(frozen=True)
class Server:
    """A running ``scvec serve``."""

    url: str
    token: str

    @property
    def base(self) -> str:
        return self.url.split("/?")[0]


def form(content: bytes, name: str, **fields: str) -> tuple[bytes, str]:
    """Return the body of an upload, and its content type."""
    mark = uuid.uuid4().hex
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()
    ]
    parts.append(f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n')
    body = "".join(parts).encode() + content + f"\r\n--{mark}--\r\n".encode()
    return body, f"multipart/form-data; boundary={mark}"


@dataclass
class Tab:
    """A page that records its problems and its requests."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> Any:
        page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        return page

    def away(self) -> list[str]:
        """Return the requests to other machines."""
        ours = ("file://", "data:", "blob:", "http://127.0.0.1:")
        return [url for url in self.requests if not url.startswith(ours)]

    def ready(self, page: Any | None = None) -> Any:
        page = page or self.page
        page.wait_for_selector("html[data-ready]", timeout=120_000)
        return page


def violations(page: Any) -> list[str]:
    """Return the serious and critical violations that axe finds."""
    reason = "axe is not installed: make dev"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")
    ]


def text_only(page: Any) -> None:
    """Check that no HTML of the file became an element."""
    assert page.locator("img").count() == 0
    assert "alert(" not in page.evaluate("[...document.querySelectorAll('script')].map(s => s.src).join()")
    assert page.evaluate("document.querySelectorAll('[onerror]').length") == 0
