"""``scvec query --report``: gathers what the page tells, and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, ScvecError
from scvec.base.protocols import Progress, no_progress
from scvec.report import report_data as told
from scvec.report.layout import lay_out, need_umap
from scvec.report.page import json_twin, pack, render_report

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.base.types import Float32
    from scvec.model.annotation import Annotation
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["check_report", "write_report"]

#: Labels that are explained, those of most cells first; the rest have too few to be worth the time.
MAX_EXPLAINED = 60
CELLS_EXPLAINED = 100
GENES_EXPLAINED = 8


def check_report(path: Path | str | None, source: Any) -> Path | None:
    """Return where a report goes, or raise InputError before any work is done."""
    if path is None:
        return None
    from scvec.ingest.cells.write import check_output

    target = check_output(path, source if isinstance(source, str | Path) else None)
    if target.suffix not in (".html", ".htm"):
        raise InputError(
            "a report is an HTML file", str(target), f"call it {target.with_suffix('.html').name}"
        )
    check_output(target.with_suffix(".json"), source if isinstance(source, str | Path) else None)
    need_umap()
    return target


def write_report(
    target: Path,
    annotation: Annotation,
    stored: StoredReference,
    codes: npt.NDArray[np.int64],
    obs: pd.DataFrame,
    *,
    store: Path | str,
    path: Path | str | AnnData,
    command: str,
    title: str | None = None,
    memory: str | int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Write a report of an annotation as HTML, and the same as JSON beside it.

    Parameters
    ----------
    target
        The HTML file.
    codes
        (n_reference,) class numbers of the reference's cells.
    obs
        Table of the n cells, as the query has it.
    store, path
        What was asked and annotated: labels are explained from the values.
    command
        The command that does this again.
    title
        What to call the cells; the name of the file where None.
    """
    from scvec.base.borders import disk_errors

    rng = np.random.default_rng(seed)
    n = len(annotation)
    rows = np.arange(n) if n <= told.MAX_DRAWN else np.sort(rng.choice(n, told.MAX_DRAWN, replace=False))
    columns, left_out = told.columns_of(obs, rows)
    label_key = stored.meta["options"].get("label_key")
    vectors = annotation.vectors[rows]
    evidence, why_none, known_rows, known = _evidence(store, path, annotation, memory, progress)
    if known is None:  # nothing of the reference lies in the space of these cells
        known_rows, known = np.zeros(0, dtype=np.int64), vectors
    map_rows, places, query_places = lay_out(known, vectors, seed=seed, progress=progress)
    map_rows = known_rows[map_rows] if len(known_rows) else known_rows
    places = places[: len(map_rows)]
    notes = list(annotation.notes)
    if len(rows) < n:
        notes.append(f"the map and the table of cells hold {len(rows):,} cells, drawn by chance from {n:,}")
    if left_out:
        listed = ", ".join(left_out[:8]) + (" and others" if len(left_out) > 8 else "")
        notes.append(f"columns of obs without a colouring (too many values, or too many columns): {listed}")
    if why_none:
        notes.append(f"warning: no evidence for labels: {why_none}")
    # Not the folder: a report goes to colleagues. The command names it, for oneself.
    name = title or (Path(path).name if isinstance(path, str | Path) else "an AnnData object")
    facts: dict[str, Any] = {
        "title": name,
        "created": told.now(),
        "provenance": told.provenance(annotation, stored, name),
        "summary": told.summary(annotation),
        "diagnosis": told.diagnosis(annotation),
        "warnings": [x.removeprefix("warning: ") for x in notes if x.startswith("warning: ")],
        "notes": [x for x in notes if not x.startswith("warning: ")],
        "labels": told.label_rows(annotation),
        "calibration": told.calibration(stored),
        "evidence": evidence,
        "uncertain": told.uncertain_cells(annotation, stored, codes),
        "n_status": annotation.to_dict()["status"],
        "command": command,
        "parameters": annotation.parameters,
        "n_drawn": len(rows),
        "n_reference_drawn": len(map_rows),
    }
    drawn = _drawn(annotation, rows, columns, places, query_places, codes[map_rows])
    drawn["truth"] = told.truth_column(columns, label_key)
    html = render_report(facts, _packed(drawn))
    twin = json_twin(facts, drawn)
    for file, text in ((target, html), (target.with_suffix(".json"), twin)):
        with disk_errors(str(file)):
            file.write_text(text, encoding="utf-8")


def _evidence(
    store: Path | str, path: Any, annotation: Annotation, memory: str | int | None, progress: Progress
) -> tuple[list[dict[str, Any]], str, npt.NDArray[np.int64], Float32 | None]:
    """Return evidence for each label, why there is none, and reference cells in the space of the query.

    Reference cells are rows and vectors; None where the cells could not be read again.
    """
    from scvec.model.explainer import Explainer

    found: list[dict[str, Any]] = []
    rows, vectors = np.zeros(0, dtype=np.int64), None
    progress("gathering evidence", 0, None)
    try:
        with Explainer.of_annotation(store, path, annotation, memory=memory) as explainer:
            rows, vectors = explainer.reference_vectors
            for label in list(annotation.counts())[:MAX_EXPLAINED]:
                one = explainer.label(label, n_genes=GENES_EXPLAINED, max_cells=CELLS_EXPLAINED)
                found.append(told.evidence_row(one))
    except ScvecError as error:
        # The labels are there and the report is worth having without it.
        return found, error.what, rows, vectors
    return found, "", rows, vectors


def _drawn(
    annotation: Annotation,
    rows: npt.NDArray[np.int64],
    columns: list[told.Column],
    places: Any,
    query_places: Any,
    reference_codes: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Return a number or code per cell, as arrays."""
    from scvec.model.colors import PALETTE, STATUS_COLORS, label_colors
    from scvec.model.status import STATUSES

    order, proba = told.candidates(annotation)
    number = {label: i for i, label in enumerate(annotation.classes)}
    status = {s: i for i, s in enumerate(STATUSES)}
    return {
        "n": len(rows),
        "names": [str(c) for c in annotation.cells[rows]],
        "classes": list(annotation.classes),
        "statuses": list(STATUSES),
        # The colours of scvec.pl and of adata.uns.
        "colors": label_colors(annotation.classes, annotation.classes),
        "status_colors": [STATUS_COLORS[s] for s in STATUSES],
        "palette": list(PALETTE),
        "x": query_places[:, 0],
        "y": query_places[:, 1],
        "label": np.array([number[str(v)] for v in annotation.label[rows]], dtype=np.int64),
        "confidence": annotation.confidence[rows],
        "novelty": annotation.novelty[rows],
        "status": np.array([status[str(v)] for v in annotation.status[rows]], dtype=np.int64),
        "candidates": order[rows],
        "probabilities": proba[rows],
        "columns": columns,
        "reference": {"x": places[:, 0], "y": places[:, 1], "label": reference_codes},
    }


#: What the page takes as it is.
AS_THEY_ARE = ("n", "names", "classes", "statuses", "colors", "status_colors", "palette", "truth")


def _packed(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays as the page reads them: places in 16 bits, shares in 8."""
    reference = drawn["reference"]
    low, span = _frame(
        np.concatenate([drawn["x"], reference["x"]]), np.concatenate([drawn["y"], reference["y"]])
    )

    def place(values: Any, axis: int) -> str:
        return pack(np.round((np.asarray(values) - low[axis]) / span * 65535), "u2")

    def share(values: Any) -> str:
        return pack(np.round(np.asarray(values) * 255), "u1")

    packed = {k: drawn[k] for k in AS_THEY_ARE}
    packed |= {
        "x": place(drawn["x"], 0),
        "y": place(drawn["y"], 1),
        "label": pack(drawn["label"], "u2"),
        "confidence": share(drawn["confidence"]),
        "novelty": share(drawn["novelty"]),
        "status": pack(drawn["status"], "u1"),
        "candidates": pack(drawn["candidates"], "u2"),
        "probabilities": share(drawn["probabilities"]),
        "n_candidates": int(drawn["candidates"].shape[1]),
        "columns": [_packed_column(c) for c in drawn["columns"]],
        "reference": {
            "n": len(reference["x"]),
            "x": place(reference["x"], 0),
            "y": place(reference["y"], 1),
            # 65535 for a cell without a label.
            "label": pack(np.where(reference["label"] < 0, 65535, reference["label"]), "u2"),
        },
    }
    return packed


def _frame(x: Any, y: Any) -> tuple[tuple[float, float], float]:
    """Return the corner and the side of the square that holds all places: both axes keep one scale."""
    if len(x) == 0:
        return (0.0, 0.0), 1.0
    low = (float(x.min()), float(y.min()))
    return low, max(float(np.ptp(x)), float(np.ptp(y)), 1e-6)


def _packed_column(column: told.Column) -> dict[str, Any]:
    if column["kind"] == "category":
        codes = np.where(column["codes"] < 0, 65535, column["codes"])
        return {
            "name": column["name"],
            "kind": "category",
            "values": column["values"],
            "codes": pack(codes, "u2"),
        }
    numbers = column["numbers"]
    there = np.isfinite(numbers)
    low, high = (float(numbers[there].min()), float(numbers[there].max())) if there.any() else (0.0, 0.0)
    scaled = np.zeros(len(numbers))
    scaled[there] = np.round((numbers[there] - low) / max(high - low, 1e-300) * 65534)
    # 65535 for a missing value.
    return {
        "name": column["name"],
        "kind": "number",
        "low": low,
        "high": high,
        "numbers": pack(np.where(there, scaled, 65535), "u2"),
    }
