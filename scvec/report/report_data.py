"""What a report of a query tells: facts, tables, and a number or a code for each cell."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.model.status import STATUSES

if TYPE_CHECKING:
    import pandas as pd

    from scvec.model.annotation import Annotation
    from scvec.model.explanation import Explanation
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["MAX_DRAWN", "Column", "columns_of", "label_rows", "now", "provenance", "uncertain_cells"]

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
