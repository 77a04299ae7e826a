"""Collect the content of ``scvec query --report`` and write the page."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scvec.base.display import PALETTE, STATUS_COLORS, label_colors
from scvec.base.errors import InputError, ScvecError, disk_errors
from scvec.base.resources import expanded
from scvec.base.results import plain
from scvec.base.types import Float32, Int64, Progress, no_progress
from scvec.encoders import DEFAULT_ENCODER
from scvec.ingest.cells.write import check_output
from scvec.model.calibration import STATUSES
from scvec.model.classifiers import CLASSIFIERS, MEMBERS
from scvec.model.explanation import Explainer, generation_of, read_again, same_reference
from scvec.model.gene_fit import FITS, keep_tensors, kept_tensors
from scvec.model.query_options import QueryOptions
from scvec.model.storage import CODE_COLUMN
from scvec.report.layout import add_cells, lay_out_cells

if TYPE_CHECKING:
    import pandas as pd

    from scvec.base.types import Float32, Int64
    from scvec.model.annotation import Annotation
    from scvec.model.explanation import Explanation
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["check_report", "columns_of", "inline_policy", "lay_out", "render_report", "write_report"]

#: Most reference cells in the map; more take minutes and show the same.
MAX_REFERENCE = 8_000
#: Most query cells that are placed by UMAP. Other query cells get the mean position of their nearest placed
#: neighbours, which looks the same and takes a hundredth of the time.
MAX_TRANSFORMED = 20_000


#: Version of the map; changed when the same cells give another map.
MAP_RECIPE = "map 1"


def lay_out(
    annotation: Annotation,
    stored: StoredReference,
    known: tuple[Int64, Float32 | None],
    rows: Int64,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Int64, Float32, Float32]:
    """Return the map coordinates of reference and query cells.

    The map is made from the reference alone (:mod:`scvec.report.layout`), once, and cached next to the store.
    Query cells are placed on it without changing it.

    Parameters
    ----------
    known
        Numbers of reference cells, and their (k, dim) vectors in the space of the query; None if the query
        could not be read again.
    rows
        (m,) numbers of the query cells to draw.

    Returns
    -------
    map_rows
        (k,) numbers of the reference cells on the map, ascending.
    places, query_places
        (k, 2) and (m, 2) float32.
    """
    progress("drawing the map", 0, None)
    query = np.ascontiguousarray(annotation.vectors[rows], dtype=np.float32)
    rng = np.random.default_rng(seed)

    def report(done: int, total: int) -> None:
        progress("drawing the map", done, total)

    chosen = np.arange(len(query))
    if len(query) > MAX_TRANSFORMED:
        chosen = np.sort(rng.choice(len(query), MAX_TRANSFORMED, replace=False))
    if known[1] is None or not len(known[0]):
        # Without reference cells in the space of the query, the query gets its own map.
        map_rows, vectors = np.zeros(0, dtype=np.int64), query[:0]
        places = np.zeros((0, 2), dtype=np.float32)
        placed = lay_out_cells(query[chosen], seed=seed, report=report)
    else:
        n = len(known[0])
        taken = np.arange(n) if n <= MAX_REFERENCE else np.sort(rng.choice(n, MAX_REFERENCE, replace=False))
        map_rows, vectors = known[0][taken], np.ascontiguousarray(known[1][taken], dtype=np.float32)
        places = _reference_map(expanded(annotation.store), stored, map_rows, seed, report)
        codes = stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64)[map_rows]
        proba = annotation.proba[rows[chosen]]
        placed = add_cells(places, vectors, query[chosen], codes, proba, seed=seed, report=report)
    found = np.zeros((len(query), 2), dtype=np.float32)
    found[chosen] = placed
    if len(chosen) < len(query):
        rest = np.setdiff1d(np.arange(len(query)), chosen)
        among, at = np.concatenate([vectors, query[chosen]]), np.concatenate([places, placed])
        found[rest] = _between(query[rest], among, at, rng)
    return map_rows, places, found


def _reference_map(
    store: Path, stored: StoredReference, rows: Int64, seed: int, report: Callable[[int, int], None]
) -> Float32:
    """Return (k, 2) coordinates of reference cells in the space of their ingest; cached."""
    digest = hashlib.sha256(f"{MAP_RECIPE} {seed} {stored.cells_fingerprint} {stored.n}".encode())
    digest.update(rows.tobytes())
    name = digest.hexdigest()[:32]
    kept = kept_tensors(store / FITS, name, lambda tensors: tensors["map.places"])
    if kept is not None and kept.shape == (len(rows), 2):
        return np.asarray(kept, dtype=np.float32)
    places = lay_out_cells(np.asarray(stored.vectors[rows], dtype=np.float32), seed=seed, report=report)
    keep_tensors(store / FITS, name, {"map.places": places})
    return places


def _between(
    vectors: Float32, known: Float32, places: Float32, rng: np.random.Generator, n_neighbors: int = 5
) -> Float32:
    """Return (n, 2): the mean position of each vector's neighbours, weighted by distance, with jitter."""
    from scvec.stores.index import build_index

    near = build_index(np.ascontiguousarray(known, dtype=np.float32)).search(
        np.ascontiguousarray(vectors, dtype=np.float32), n_neighbors
    )
    weights = 1.0 / (np.sqrt(near.distances) + 1e-3)
    # Neighbours far from the nearest one are ignored, so that no cell is placed in a gap between groups.
    at = places[near.indices]
    gap = np.linalg.norm(at - at[:, :1], axis=2)
    weights = np.where(gap < 1.0, weights, 0.0)
    mean = (at * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1)[:, None]
    return np.asarray(mean + rng.normal(0.0, 0.05, mean.shape), dtype=np.float32)


_PAGES = files("scvec") / "data" / "page"


def asset(name: str) -> str:
    """Return the text of a file of the page."""
    return (_PAGES / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Fill a template. All values are escaped, because names of genes, labels and cells may be any text."""
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
    """Return a content security policy that allows only these scripts and styles, and no network access."""
    return (
        "default-src 'none'; "
        f"script-src {' '.join(_hash(s) for s in scripts)}; "
        f"style-src {' '.join(_hash(s) for s in styles)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no text in it can close the element."""
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
    """Return the HTML page.

    Parameters
    ----------
    facts
        Texts and tables of the page.
    cells
        Data of the figures: see :func:`scvec.report.write_report._drawn`.
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


def calibration_points(bins: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the coordinates of the bins of a calibration plot in a square of 240, and their sizes."""
    side = 240.0
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
    """Return the facts and numbers of the page as JSON."""
    return json.dumps(plain({**facts, "cells": cells}), allow_nan=False, ensure_ascii=False) + "\n"


class _Raw(str):
    """Script or style text, which is not escaped."""

    def __html__(self) -> str:
        if re.search(r"</(script|style)", self, re.IGNORECASE):
            raise ValueError("the text would close its element")
        return str(self)


#: Most query cells that the page draws and lists; if there are more, a random sample.
MAX_DRAWN = 200_000
#: Most columns of obs for colouring.
MAX_COLUMNS = 30
#: A column with more different values is not used as groups.
MAX_VALUES = 200
#: Most cells of each status that are listed with their candidates.
MAX_LISTED = 100
#: Usual names of columns with earlier labels, the likeliest first.
LABEL_COLUMNS = (
    "cell_type celltype cell_types cell_label label labels annotation annotations cell_ontology_class "
    "predicted_labels majority_voting cluster clusters leiden louvain seurat_clusters"
).split()

Column = dict[str, Any]


def now() -> str:
    """Return the time in UTC, or ``SOURCE_DATE_EPOCH`` if set, for reproducible files."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    at = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return at.isoformat(timespec="seconds")


def provenance(annotation: Annotation, stored: StoredReference, name: str) -> list[tuple[str, str]]:
    """Return the provenance of the annotation (cells, reference, model, date) as names and values."""
    p = annotation.parameters
    return [
        ("Cells", f"{len(annotation):,} of {name}"),
        (
            "Reference",
            f"{stored.name}: {stored.n:,} {p['reference_species']} cells, {len(annotation.classes)} labels",
        ),
        ("Annotated", now().replace("T", " ").replace("+00:00", " UTC")),
        ("Version", f"scvec {p['scvec']}"),
        ("Store version", str(p["generation"])),
        *([("Encoder", str(p["encoder"]))] if p["encoder"] != DEFAULT_ENCODER else []),
        *([("Gene texts", f"model {p['backbone']} (space {p['space']})")] if p["space"] != "none" else []),
        ("Calibrated on", _calibrated(str(p["calibrated_on"]), stored)),
    ]


def _calibrated(held_out: str, stored: StoredReference) -> str:
    n = stored.meta["model"]["calibration"]["n_cells"]
    how = {"batch": "held out by whole batches", "cells": "held out from the same batches"}.get(
        held_out, held_out
    )
    return f"{n:,} cells of the reference, {how}"


def diagnosis(annotation: Annotation) -> list[tuple[str, str]]:
    """Return the diagnosis of the input as names and values."""
    p = annotation.parameters
    shift = p["shift"]
    return [
        ("Values", str(p["expression"])),
        ("Species", str(p["species"])),
        ("Genes", str(p["genes"])),
        ("Genes of the reference measured", f"{p['reference_genes_measured']:.1%}"),
        *([("Orthologs", _orthologs(p["orthologs"]))] if p.get("orthologs") else []),
        ("Cell space", "fitted to these genes" if p["fitted"] else "from the ingest"),
        ("Classifiers", _classifiers(str(p["method"]), int(p["n_neighbors"]))),
        ("Shift against the reference", f"{shift['size']:.1f} standard deviations of its held-out cells"),
        *([("Only reference cells where", str(p["where"]))] if p.get("where") else []),
    ]


def _classifiers(method: str, n_neighbors: int) -> str:
    names = {**CLASSIFIERS, "knn": f"{CLASSIFIERS['knn']} ({n_neighbors:,} for each cell)"}
    return " and ".join(names[m] for m in MEMBERS if method in ("both", m))


def _orthologs(crossed: Mapping[str, Any]) -> str:
    return (
        f"{' to '.join(crossed['path'])}: {crossed['crossed']:,} of {crossed['genes']:,} genes crossed "
        f"({crossed['one_to_one']:,} one to one, {crossed['several']:,} among several, "
        f"{crossed['symbol_alone']:,} by symbol alone)"
    )


def label_rows(annotation: Annotation) -> list[dict[str, Any]]:
    """Return one row per predicted label, most cells first."""
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
    """Return the columns of obs that cells can be coloured by, and the names of the others.

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
    """Return the column that most likely holds earlier labels of the cells."""
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
    """Return the least confident ambiguous cells and the most novel cells, with their candidate labels.

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
    """Return the calibration on held-out cells of the reference."""
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
    """Return an explanation as JSON values."""
    row: dict[str, Any] = found.to_dict()
    return {k: v for k, v in row.items() if k not in ("parameters", "notes")}


def summary(annotation: Annotation) -> list[tuple[str, str, str]]:
    """Return the key figures of the page: name, value and meaning."""
    total = max(len(annotation), 1)
    n_labels = len(annotation.counts())
    status: Mapping[str, int] = annotation.to_dict()["status"]
    meanings = {
        "confident": "labels that can be used",
        "ambiguous": "several labels fit (90% coverage), or confidence is under 0.5",
        "novel": "unlike the reference cells of their label",
        "low_quality": "few of the reference's genes detected",
    }
    mean = float(annotation.confidence.mean()) if len(annotation) else 0.0
    return [
        ("cells", f"{len(annotation):,}", f"{n_labels:,} label{'' if n_labels == 1 else 's'} found"),
        ("mean confidence", f"{mean:.2f}", "probability that a label is correct"),
        *(
            (s.replace("_", " "), f"{status[s]:,}", f"{status[s] / total:.1%}; {meanings[s]}")
            for s in STATUSES
        ),
    ]


#: Most labels with an explanation, those with the most cells first.
MAX_EXPLAINED = 60
CELLS_EXPLAINED = 100
GENES_EXPLAINED = 8


def check_report(path: Path | str | None, cells: Any) -> Path | None:
    """Check the file of a report before any work is done, and return its path."""
    if path is None:
        return None
    source = cells if isinstance(cells, str | Path) else None
    target = check_output(path, source)
    if target.suffix not in (".html", ".htm"):
        raise InputError(
            "a report is an HTML file",
            str(target),
            f"name it {target.with_suffix('.html').name}",
            code="output-format",
        )
    check_output(target.with_suffix(".json"), source)
    return target


def write_report(
    annotation: Annotation,
    output: Path | str,
    *,
    stored: StoredReference | None = None,
    obs: pd.DataFrame | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Annotation:
    """Write a report of a query as one HTML page that works offline, and a JSON file with the same numbers.

    The cells are read again, so the file or AnnData object must be unchanged.

    Parameters
    ----------
    annotation
        The result of :func:`scvec.query`.
    output
        The HTML file.
    stored, obs
        The reference and the table of the n cells, if the caller has opened them.
    seed
        Seed of the map, and of the sample of cells.

    Returns
    -------
    Annotation
        A copy with ``report`` set.

    Raises
    ------
    ValueError
        If the annotation is not from a query.
    InputError, StoreError
        If the page cannot be written, or the cells or the reference have changed.
    """
    target = check_report(output, annotation.data)
    if target is None:
        raise InputError("a report needs a file", fix="write_report(annotation, 'report.html')")
    if obs is None:
        with read_again(annotation) as source:
            obs = source.obs
    if stored is None:
        opened = generation_of(annotation.store, annotation.parameters)
        stored = same_reference(opened, annotation.parameters)
    rng = np.random.default_rng(seed)
    n = len(annotation)
    rows = np.arange(n) if n <= MAX_DRAWN else np.sort(rng.choice(n, MAX_DRAWN, replace=False))
    columns, left_out = columns_of(obs, rows)
    evidence = _evidence(annotation, progress)
    known = (evidence.rows, evidence.vectors)
    map_rows, places, query_places = lay_out(annotation, stored, known, rows, seed=seed, progress=progress)
    codes = stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64)
    drawn = _drawn(annotation, rows, columns, places, query_places, codes[map_rows])
    drawn["truth"] = truth_column(columns, stored.meta["options"].get("label_key"))
    facts = {
        **_facts(annotation, stored, evidence, _drawing_notes(n, len(rows), left_out)),
        "uncertain": uncertain_cells(annotation, stored, codes),
        "command": _command(annotation, output),
        "n_drawn": len(rows),
        "n_reference_drawn": len(map_rows),
    }
    html, twin = render_report(facts, _packed(drawn)), json_twin(facts, drawn)
    for file, text in ((target, html), (target.with_suffix(".json"), twin)):
        with disk_errors(str(file)):
            file.write_text(text, encoding="utf-8")
    return annotation.changed(report=str(target))


class _Evidence(NamedTuple):
    """Evidence for each label, and reference cells in the space of the query.

    Attributes
    ----------
    labels
        An explanation of each label, as JSON values.
    missing
        Reason if there is no evidence, else empty.
    rows, vectors
        Reference cells; None if the cells could not be read again.
    """

    labels: list[dict[str, Any]]
    missing: str
    rows: Int64
    vectors: Float32 | None


def _evidence(annotation: Annotation, progress: Progress) -> _Evidence:
    labels: list[dict[str, Any]] = []
    rows, vectors = np.zeros(0, dtype=np.int64), None
    progress("gathering evidence", 0, None)
    try:
        with Explainer.of_annotation(annotation) as explainer:
            rows, vectors = explainer.reference_vectors
            for label in list(annotation.counts())[:MAX_EXPLAINED]:
                one = explainer.label(label, n_genes=GENES_EXPLAINED, max_cells=CELLS_EXPLAINED)
                labels.append(evidence_row(one))
    except ScvecError as error:
        # The report is useful without the evidence.
        return _Evidence(labels, error.what, rows, vectors)
    return _Evidence(labels, "", rows, vectors)


def _drawing_notes(n: int, n_drawn: int, left_out: list[str]) -> list[str]:
    """Return notes about cells and columns that the page does not show."""
    notes = []
    if n_drawn < n:
        notes.append(f"the map and the table show a random sample of {n_drawn:,} of {n:,} cells")
    if left_out:
        listed = ", ".join(left_out[:8]) + (" and others" if len(left_out) > 8 else "")
        notes.append(
            f"columns of obs not available as colours (too many values, or too many columns): {listed}"
        )
    return notes


def _facts(
    annotation: Annotation, stored: StoredReference, evidence: _Evidence, drawing_notes: list[str]
) -> dict[str, Any]:
    """Return the texts and tables of the page."""
    notes = [*annotation.notes, *drawing_notes]
    if evidence.missing:
        notes.append(f"warning: no evidence for labels: {evidence.missing}")
    # Only the name of the file, not its folder, because a report is sent to colleagues.
    data = annotation.data
    name = _title(annotation) or (Path(data).name if isinstance(data, str | Path) else "an AnnData object")
    return {
        "title": name,
        "created": now(),
        "provenance": provenance(annotation, stored, name),
        "summary": summary(annotation),
        "diagnosis": diagnosis(annotation),
        "warnings": [x.removeprefix("warning: ") for x in notes if x.startswith("warning: ")],
        "notes": [x for x in notes if not x.startswith("warning: ")],
        "labels": label_rows(annotation),
        "calibration": calibration(stored),
        "evidence": evidence.labels,
        "n_status": annotation.to_dict()["status"],
        "novel_groups": annotation.to_dict()["novel_groups"],
        "parameters": annotation.parameters,
    }


def _title(annotation: Annotation) -> str | None:
    return annotation.options.title if annotation.options else None


def _command(annotation: Annotation, output: Path | str) -> str:
    """Return the command that repeats the query and writes this report."""
    options = replace(annotation.options or QueryOptions(), report=output)
    if options.title is None:
        return options.command_line(annotation.data, annotation.store)
    # If the cells have a title, omit the folders of this machine.
    written = None if options.output is None else Path(options.output).name
    named = replace(options, output=written, report=Path(output).name)
    return named.command_line(options.title)


def _drawn(
    annotation: Annotation,
    rows: npt.NDArray[np.int64],
    columns: list[Column],
    places: Any,
    query_places: Any,
    reference_codes: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Return the data of the figures: one number or code per cell, as arrays."""
    order, proba = candidates(annotation)
    number = {label: i for i, label in enumerate(annotation.classes)}
    status = {s: i for i, s in enumerate(STATUSES)}
    return {
        "n": len(rows),
        "names": [str(c) for c in annotation.cells[rows]],
        "classes": list(annotation.classes),
        "statuses": list(STATUSES),
        # The same colours as in scvec.pl and adata.uns.
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


#: Entries that the page uses unchanged.
AS_THEY_ARE = ("n", "names", "classes", "statuses", "colors", "status_colors", "palette", "truth")


def _packed(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays in the page's encoding: coordinates in 16 bits, fractions in 8."""
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
    """Return the corner and the side of the bounding square, so that both axes have the same scale."""
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
