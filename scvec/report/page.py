"""A report as one HTML file that opens offline, and its JSON twin."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

__all__ = ["asset", "inline_policy", "json_twin", "pack", "render", "render_report"]

_PAGES = files("scvec") / "data" / "page"


def asset(name: str) -> str:
    """Return the text of a file of the page."""
    return (_PAGES / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Fill a template. Everything is escaped: names of genes, labels and cells are whatever a file holds."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def inline_policy(scripts: list[str], styles: list[str]) -> str:
    """Return a content security policy under which nothing but these texts runs and nothing is fetched."""
    return (
        "default-src 'none'; "
        f"script-src {' '.join(_hash(s) for s in scripts)}; "
        f"style-src {' '.join(_hash(s) for s in styles)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def script_json(value: Any) -> str:
    """Return JSON that may stand inside a script element: nothing in it ends the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def pack(values: Any, kind: str) -> str:
    """Return numbers as base64 of little-endian ``u1``, ``u2`` or ``f4``."""
    return base64.b64encode(np.ascontiguousarray(values).astype(f"<{kind}").tobytes()).decode("ascii")


def render_report(facts: Mapping[str, Any], cells: Mapping[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    facts
        What the page tells in words and tables.
    cells
        What it draws: see :func:`scvec.report.write_report.drawn`.
    """
    style = asset("base.css") + asset("report.css")
    scripts = [asset("scatter.js"), asset("report.js")]
    return render(
        "report.html",
        policy=inline_policy(scripts, [style]),
        style=_Raw(style),
        scripts=[_Raw(s) for s in scripts],
        data=_Raw(script_json(cells)),
        plot=calibration_points(facts["calibration"]["reliability"]),
        **facts,
    )


def calibration_points(bins: list[dict[str, float]], side: float = 240.0) -> list[dict[str, float]]:
    """Return where the bins of a calibration plot lie in a square of ``side``, and how large they are."""
    return [
        {
            "x": round(side * b["confidence"], 1),
            "y": round(side * (1 - b["accuracy"]), 1),
            "r": round(3 + 9 * b["share"] ** 0.5, 1),
            **b,
        }
        for b in bins
    ]


def json_twin(facts: Mapping[str, Any], cells: Mapping[str, Any]) -> str:
    """Return the same facts and numbers as JSON."""
    from scvec.base.results import plain

    return json.dumps(plain({**facts, "cells": cells}), allow_nan=False, ensure_ascii=False) + "\n"


class _Raw(str):
    """Text of the page itself, which is not escaped."""

    def __html__(self) -> str:
        # A text of ours that ended its own element would be a bug worth stopping at.
        if re.search(r"</(script|style)", self, re.IGNORECASE):
            raise ValueError("the text would end its element")
        return str(self)
