"""The documentation builds without a warning, its notebooks run, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
TUTORIALS = sorted(p for p in (DOCS / "tutorials").glob("*.md") if p.stem != "index")


def test_every_page_is_in_the_contents():
    listed = "\n".join(p.read_text(encoding="utf-8") for p in DOCS.rglob("*.md") if "_build" not in p.parts)
    for page in [*DOCS.glob("*.md"), *TUTORIALS]:
        if page.stem != "index":
            assert re.search(rf"^(tutorials/)?{page.stem}$", listed, re.MULTILINE), page


def test_every_public_name_is_in_the_reference():
    import scvec

    told = set(
        re.findall(r"~scvec\.(?:base\.errors\.)?([A-Za-z_]+)$", (DOCS / "api.md").read_text("utf-8"), re.M)
    )
    figures = set(re.findall(r"~scvec\.pl\.([a-z]+)$", (DOCS / "api.md").read_text("utf-8"), re.M))
    assert told == set(scvec.__all__) - {"__version__", "pl"}
    assert figures == set(scvec.pl.__all__)


def test_the_citation_names_this_version():
    import scvec

    citation = (PROJECT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {scvec.__version__}\n" in citation


class Links(HTMLParser):
    """Addresses of a page that lead into the site, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value and not re.match(r"[a-z]+:|//|#$", value):
                self.links.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-j",
            "2",
            "-d",
            folder / "trees",
            DOCS,
            folder / "html",
        ],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.docs
@pytest.mark.timeout(1600)
def test_the_site_is_whole(site: Path):
    # Not the templates that the theme leaves among its files.
    pages = {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 60
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"


@pytest.mark.docs
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_every_tutorial_has_run(path: Path, site: Path):
    page = (site / "tutorials" / f"{path.stem}.html").read_text(encoding="utf-8")
    shown = path.read_text(encoding="utf-8").count("```{code-cell}")
    assert page.count("cell_input") >= shown - 2  # some cells are not shown
    assert "cell_output" in page and "Traceback" not in page


@pytest.mark.docs
def test_spelling():
    pytest.importorskip("codespell_lib")
    words = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "NOTICE", "docs", "scvec"]
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "--config", "setup.cfg", *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
