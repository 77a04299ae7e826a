"""``scvec query --report``: gathers what the page tells, and writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, ScvecError
from scvec.base.types import Progress, no_progress
from scvec.model.status import STATUSES
from scvec.report.layout import lay_out, need_umap
from scvec.report.page import json_twin, pack, render_report

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.base.types import Float32
    from scvec.model.annotation import Annotation
    from scvec.model.explanation import Explanation
    from scvec.stores.store.reference_reader import StoredReference

__all__ = [
    "MAX_DRAWN",
    "Column",
    "check_report",
    "columns_of",
    "label_rows",
    "now",
    "provenance",
    "uncertain_cells",
    "write_report",
]

#: Query cells that the page draws and lists; a sample of more.
MAX_DRAWN = 200_000
#: Columns of obs that the page can colour by.
MAX_COLUMNS = 30
#: More different values than these are names, not groups.
MAX_VALUES = 200
#: Cells of each kind that are listed with their candidates.
MAX_LISTED = 100
#: Names that a column of earlier labels has, the likeliest first.
LABEL_COLUMNS = (
    "cell_type celltype cell_types cell_label label labels annotation annotations cell_ontology_class "
    "predicted_labels majority_voting cluster clusters leiden louvain seurat_clusters"
).split()

Column = dict[str, Any]


def now() -> str:
    """Return the time in UTC; ``SOURCE_DATE_EPOCH`` stands for it where it is set, as for other builds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    at = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return at.isoformat(timespec="seconds")


def provenance(annotation: Annotation, stored: StoredReference, name: str) -> list[tuple[str, str]]:
    """Return what was annotated, with what, and when, as names and values."""
    p = annotation.parameters
    return [
        ("Cells", f"{len(annotation):,} of {name}"),
        (
            "Reference",
            f"{stored.name}: {stored.n:,} {p['reference_species']} cells, {len(annotation.classes)} labels",
        ),
        ("Annotated", now().replace("T", " ").replace("+00:00", " UTC")),
        ("Version", f"scvec {p['scvec']}"),
        ("Store generation", str(p["generation"])),
        ("Encoder", str(p["encoder"])),
        ("Text backbone", f"{p['backbone']} (space {p['space']})"),
        ("Calibrated on", _calibrated(str(p["calibrated_on"]), stored)),
    ]


def _calibrated(held_out: str, stored: StoredReference) -> str:
    n = stored.meta["model"]["calibration"]["n_cells"]
    how = {"batch": "held out by whole batches", "cells": "held out of the same batches"}.get(
        held_out, held_out
    )
    return f"{n:,} cells of the reference, {how}"


def diagnosis(annotation: Annotation) -> list[tuple[str, str]]:
    """Return what the input was found to be, as names and values."""
    p = annotation.parameters
    shift = p["shift"]
    return [
        ("Values", str(p["expression"])),
        ("Species", str(p["species"])),
        ("Genes", str(p["genes"])),
        ("Genes of the reference measured", f"{p['reference_genes_measured']:.1%}"),
        ("Cell space", "fitted to these genes" if p["fitted"] else "as ingested"),
        ("Method", "head and neighbours" if p["method"] == "both" else str(p["method"])),
        ("Shift against the reference", f"{shift['size']:.1f} standard deviations of its held-out cells"),
        ("Neighbours asked", str(p["n_neighbors"])),
        *([("Only reference cells where", str(p["where"]))] if p.get("where") else []),
    ]


def label_rows(annotation: Annotation) -> list[dict[str, Any]]:
    """Return a row per label given, most cells first."""
    total, rows = max(len(annotation), 1), []
    for label, n in annotation.counts().items():
        members = annotation.label == label
        ids, numbers = np.unique(annotation.cl_id[members], return_counts=True)
        rows.append(
            {
                "label": label,
                "n_cells": n,
                "share": n / total,
                "confidence": float(annotation.confidence[members].mean()),
                "novelty": float(annotation.novelty[members].mean()),
                **{s: int((annotation.status[members] == s).sum()) for s in STATUSES},
                "cl_id": str(ids[numbers.argmax()]),
            }
        )
    return rows


def columns_of(obs: pd.DataFrame, rows: npt.NDArray[np.int64]) -> tuple[list[Column], list[str]]:
    """Return the columns of obs that cells can be coloured by, and names of those left out.

    A column is ``{"name", "kind": "category", "values", "codes"}`` with -1 for none, or ``{"name", "kind":
    "number", "numbers"}`` with NaN for none.
    """
    import pandas as pd

    columns: list[Column] = []
    left: list[str] = []
    for name in obs.columns:
        values = obs[name].iloc[rows]
        if len(columns) == MAX_COLUMNS or str(name).startswith("scvec_"):
            left += [] if str(name).startswith("scvec_") else [str(name)]
        elif pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
            columns.append({"name": str(name), "kind": "number", "numbers": numbers})
        else:
            codes, uniques = pd.factorize(values.astype("string"), sort=True)
            if 0 < len(uniques) <= MAX_VALUES:
                shown = [str(u) for u in uniques]
                columns.append({"name": str(name), "kind": "category", "values": shown, "codes": codes})
            else:
                left.append(str(name))
    return columns, left


def truth_column(columns: Sequence[Column], label_key: str | None) -> str | None:
    """Return the column that likeliest holds labels that the cells had before."""
    names = [c["name"] for c in columns if c["kind"] == "category"]
    lower = {n.lower(): n for n in reversed(names)}
    for wanted in (label_key, *LABEL_COLUMNS):
        if wanted and str(wanted).lower() in lower:
            return str(lower[str(wanted).lower()])
    return None


def candidates(annotation: Annotation, k: int = 3) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return (n, k) numbers of each cell's likeliest labels, and their probabilities."""
    k = min(k, len(annotation.classes))
    order = np.argsort(-annotation.proba, axis=1, kind="stable")[:, :k]
    return order.astype(np.int64), np.take_along_axis(annotation.proba, order, axis=1)


def uncertain_cells(
    annotation: Annotation, stored: StoredReference, codes: Any
) -> dict[str, list[dict[str, Any]]]:
    """Return the ambiguous cells of least confidence and the novel ones of most novelty, with candidates.

    Parameters
    ----------
    codes
        (n_reference,) class numbers of the reference's cells.
    """
    order, proba = candidates(annotation)
    names = stored.obs.index
    classes = annotation.classes
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, by in (("ambiguous", annotation.confidence), ("novel", -annotation.novelty)):
        members = np.flatnonzero(annotation.status == kind)
        members = members[np.argsort(by[members], kind="stable")][:MAX_LISTED]
        found[kind] = [
            {
                "cell": str(annotation.cells[i]),
                "confidence": float(annotation.confidence[i]),
                "novelty": float(annotation.novelty[i]),
                "candidates": [
                    {"label": classes[c], "probability": float(p)}
                    for c, p in zip(order[i], proba[i], strict=True)
                ],
                "nearest": [
                    {"cell": str(names[r]), "label": classes[codes[r]] if codes[r] >= 0 else ""}
                    for r in annotation.neighbors.indices[i, :3]
                    if r >= 0
                ],
            }
            for i in members
        ]
    return found


def calibration(stored: StoredReference) -> dict[str, Any]:
    """Return what held-out cells of the reference showed."""
    record = stored.meta["model"]["calibration"]["record"]
    classes = stored.meta["classes"]
    labels = [
        {"label": str(label), "n": int(row["n"]), "recall": row["recall"]}
        for label, row in zip(classes, record.get("labels", []), strict=False)
        if row["n"]
    ]
    return {
        "n_cells": int(stored.meta["model"]["calibration"]["n_cells"]),
        "held_out": stored.meta["model"]["calibration"]["held_out"],
        **{k: record.get(k) for k in ("accuracy", "macro_f1", "ece")},
        "reliability": record.get("reliability", []),
        "labels": labels,
    }


def evidence_row(found: Explanation) -> dict[str, Any]:
    """Return what an explanation tells, as JSON values."""
    row: dict[str, Any] = found.to_dict()
    return {k: v for k, v in row.items() if k not in ("parameters", "notes")}


def summary(annotation: Annotation) -> list[tuple[str, str, str]]:
    """Return the figures at the top: name, value, and what it means."""
    total = max(len(annotation), 1)
    n_labels = len(annotation.counts())
    status: Mapping[str, int] = annotation.to_dict()["status"]
    told = {
        "confident": "labels to work with",
        "ambiguous": "several labels fit (90% coverage), or confidence is under 0.5",
        "novel": "unlike the reference's cells of their label",
        "low_quality": "hardly any of the reference's genes found",
    }
    mean = float(annotation.confidence.mean()) if len(annotation) else 0.0
    return [
        ("cells", f"{len(annotation):,}", f"{n_labels:,} label{'' if n_labels == 1 else 's'} given"),
        ("mean confidence", f"{mean:.2f}", "probability that a label is right"),
        *((s.replace("_", " "), f"{status[s]:,}", f"{status[s] / total:.1%}; {told[s]}") for s in STATUSES),
    ]


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
            "a report is an HTML file",
            str(target),
            f"call it {target.with_suffix('.html').name}",
            code="output-format",
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
    rows = np.arange(n) if n <= MAX_DRAWN else np.sort(rng.choice(n, MAX_DRAWN, replace=False))
    columns, left_out = columns_of(obs, rows)
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
        "created": now(),
        "provenance": provenance(annotation, stored, name),
        "summary": summary(annotation),
        "diagnosis": diagnosis(annotation),
        "warnings": [x.removeprefix("warning: ") for x in notes if x.startswith("warning: ")],
        "notes": [x for x in notes if not x.startswith("warning: ")],
        "labels": label_rows(annotation),
        "calibration": calibration(stored),
        "evidence": evidence,
        "uncertain": uncertain_cells(annotation, stored, codes),
        "n_status": annotation.to_dict()["status"],
        "command": command,
        "parameters": annotation.parameters,
        "n_drawn": len(rows),
        "n_reference_drawn": len(map_rows),
    }
    drawn = _drawn(annotation, rows, columns, places, query_places, codes[map_rows])
    drawn["truth"] = truth_column(columns, label_key)
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
                found.append(evidence_row(one))
    except ScvecError as error:
        # The labels are there and the report is worth having without it.
        return found, error.what, rows, vectors
    return found, "", rows, vectors


def _drawn(
    annotation: Annotation,
    rows: npt.NDArray[np.int64],
    columns: list[Column],
    places: Any,
    query_places: Any,
    reference_codes: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Return a number or code per cell, as arrays."""
    from scvec.model.colors import PALETTE, STATUS_COLORS, label_colors
    from scvec.model.status import STATUSES

    order, proba = candidates(annotation)
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


def _packed_column(column: Column) -> dict[str, Any]:
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
