"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
# Notebooks run as processes of their own: they need the package, and the servers that tests ask.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE.parent / "tests")])
# One thread a process, so that two cores build in about the time that is promised.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Outputs are text of a page.
os.environ["NO_COLOR"] = "1"

import scvec  # noqa: E402

# scvec.pl is loaded when it is used; autodoc imports modules by name.
sys.modules["scvec.pl"] = scvec.pl

project = "scvec"
author = "The scvec authors"
copyright = f"2026, {author}"
version = release = scvec.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**/output"]
templates_path = ["_templates"]
# Stubs of autosummary are written with the first suffix.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}

# Notebooks: each tutorial runs at each build, and a failing cell fails the build. A cache would not see that
# scvec has changed; `-D nb_execution_mode=cache` is for work on the pages.
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_render_markdown_format = "myst"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autosummary_generate = True
# Signatures would be unreadable with types; what a function returns is told below.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
# numpydoc lists what docstrings say of attributes; it repeats no method that autosummary lists.
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "sphinx_book_theme"
html_title = f"scvec {release}"
html_static_path = ["_static"]
html_css_files = ["scvec.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    "use_fullscreen_button": False,
    "use_download_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True


def deal(app: Any, env: Any, docnames: list[str]) -> None:
    """Deal the notebooks evenly among the pages: a process reads pages that follow each other."""
    notebooks = [n for n in docnames if n.startswith("tutorials/") and n != "tutorials/index"]
    pages = [n for n in docnames if n not in notebooks]
    step = len(docnames) / max(1, len(notebooks))
    for i, name in enumerate(notebooks):
        pages.insert(int(i * step), name)
    docnames[:] = pages


def setup(app: Any) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("env-before-read-docs", deal)
