"""Tables for people, and the same numbers in docs/benchmarks.md and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"


def markdown(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table; floats with three decimals."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def environment() -> dict[str, str]:
    """Return what the numbers may depend on."""
    libraries = ("numpy", "torch", "faiss-cpu", "scikit-learn", "sentence-transformers", "duckdb")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def _json(record: dict[str, Any]) -> str:
    """Return JSON with a line for each run, where there are runs: else each number would have its own."""
    runs = [json.dumps(run) for run in record.get("runs", [])]
    text = json.dumps({k: v for k, v in record.items() if k != "runs"}, indent=1)
    return text if not runs else text[:-2] + ',\n "runs": [\n  ' + ",\n  ".join(runs) + "\n ]\n}"


def publish(
    name: str, command: str, columns: Sequence[str], rows: list[dict[str, Any]], **facts: Any
) -> None:
    """Write the JSON, and put the table between the markers of that name in docs/benchmarks.md."""
    record = {
        "command": command,
        "environment": environment(),
        **facts,
        "columns": list(columns),
        "rows": rows,
    }
    (DOCS / "benchmarks").mkdir(exist_ok=True)
    text = _json(record) + "\n"
    (DOCS / "benchmarks" / f"{name}.json").write_text(text, encoding="utf-8")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    _, after = rest.split(end)
    table = f"{begin}\n\n{markdown(columns, rows)}\n\nMade by `{command}`.\n\n{end}"
    PAGE.write_text(before + table + after, encoding="utf-8")
