"""``scvec eval``: evaluate a reference on labelled cells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.resources import expanded
from scvec.base.types import Progress, no_progress
from scvec.model.annotation import Annotation
from scvec.model.calibration import (
    accuracy,
    brier_score,
    expected_calibration_error,
    fpr_at_tpr,
    macro_f1,
    novelty_auroc,
    on_lineage,
    ontology_similarity,
    reliability,
    risk_coverage,
    set_coverage,
)
from scvec.model.copies import HASH_COLUMN, cell_hashes, gene_keys
from scvec.model.matching import match_genes
from scvec.model.query_options import QueryOptions
from scvec.model.resolvers import stored_resolver
from scvec.model.storage import genes_of
from scvec.report.evaluation import EvaluationReport, draw, need_matplotlib
from scvec.stores.store.store import Store
from scvec.workflows.query import only_reference, query_one

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.celltypes.terms import ClassOntology
    from scvec.ingest.cells.source import CellSource

__all__ = ["evaluate"]

Strings = npt.NDArray[np.str_]

PLOTS = (".png", ".pdf", ".svg")
#: Number of points of the risk-coverage curve in the report.
N_POINTS = 21
#: Default coverage of label sets, a fraction of the cells.
COVERAGE = 0.9


@takes_options(QueryOptions)
def evaluate(
    store: Path | str,
    cells: Path | str | AnnData,
    options: QueryOptions | None = None,
    *,
    truth_key: str,
    label_map: Mapping[str, str] | Path | str | None = None,
    plot: Path | str | None = None,
    progress: Progress = no_progress,
    **keywords: Any,
) -> EvaluationReport:
    """Annotate labelled cells and compare the predictions with the true labels.

    Parameters
    ----------
    store
        Folder of the store.
    cells
        An h5ad file or an AnnData object, which is not changed.
    truth_key
        Column of obs with the true labels. Cells without a true label are not scored.
    label_map
        Name -> scored name, for labels of the query and of the reference: a mapping, or a JSON, csv or tsv
        file. Other names do not change. Cells whose true label maps to an empty name are not scored. Labels
        that the reference lacks after the mapping are novel types.
    plot
        ``.png``, ``.pdf`` or ``.svg`` file for a figure; needs matplotlib.
    options, **keywords
        As in :func:`scvec.query`. The default of ``coverage`` is 0.9. ``output`` is a JSON file for the
        report.

    Raises
    ------
    InputError
        If the column is missing, no cell can be scored, or an option cannot be used.
    """
    from scvec.ingest.cells.label_columns import as_label_map

    if isinstance(cells, str | Path):
        cells = expanded(cells)
    options = options_of(QueryOptions, options, keywords)
    coverage = COVERAGE if options.coverage is None else options.coverage
    target = _writable(options.output, (".json",), cells)
    options = replace(options, coverage=coverage, output=None)
    figure = _writable(plot, PLOTS, cells)
    if figure is not None:
        need_matplotlib()
    names = as_label_map(label_map)
    truth, n_own = _truth(store, cells, truth_key, options)
    annotation = query_one(store, cells, options, progress=progress)
    renamed = np.array([names.get(t, t) for t in truth], dtype=np.str_)
    scored = np.flatnonzero(renamed != "")
    if len(scored) == 0:
        raise InputError(
            "no cell has a true label",
            f"obs['{truth_key}']",
            "see --label-map",
            code="no-labels",
        )
    report = _scores(
        annotation,
        renamed,
        scored,
        names,
        _ontology(store, annotation),
        truth_key=truth_key,
        coverage=coverage,
    )
    if n_own:
        own = f"warning: the reference contains {n_own:,} of {len(truth):,} cells, so the scores are too high"
        report = replace(report, n_own=n_own, notes=[own, *report.notes])
    report = report.with_files(output=target, plot=figure)
    if target is not None:
        from scvec.base.errors import disk_errors

        with disk_errors(str(target)):
            target.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if figure is not None:
        draw(report, figure)
    return report


def _writable(path: Path | str | None, endings: tuple[str, ...], cells: Any) -> Path | None:
    if path is None:
        return None
    from scvec.ingest.cells.write import check_output

    target = check_output(path, cells if isinstance(cells, str | Path) else None)
    if target.suffix not in endings:
        raise InputError(
            f"the ending {target.suffix!r} is not possible",
            str(target),
            f"use one of the endings {', '.join(endings)}",
            code="output-format",
        )
    return target


def _truth(
    store: Path | str, cells: Path | str | AnnData, truth_key: str, options: QueryOptions
) -> tuple[Strings, int]:
    """Return (n,) true labels, empty if missing, and how many of the cells the reference contains."""
    from scvec.ingest.cells.label_columns import read_names
    from scvec.ingest.cells.source import CellSource

    layer, values = options.layer, options.values
    with CellSource.open(cells, layer=layer, memory=options.memory, values=values) as source:
        return read_names(source, truth_key), _n_own(Store(store), source, options)


def _n_own(opened: Store, source: CellSource, options: QueryOptions) -> int:
    """Return the number of cells of a file that the reference contains; 0 if this cannot be determined."""
    if options.reference is not None and not isinstance(options.reference, str):
        return 0
    stored = opened.reference(only_reference(opened, options.reference))
    if HASH_COLUMN not in stored.obs.columns:
        return 0
    resolver = stored_resolver(opened)
    own = stored.meta["species"]
    matched = match_genes(source, resolver, species=options.species, force=options.force, reference=own)
    genes = resolver.map_to(matched.match, genes_of(stored), own)
    keys = gene_keys(genes_of(stored))
    known = stored.obs[HASH_COLUMN].to_numpy(dtype=np.int64)
    known = np.unique(known[known != 0])
    return sum(int(np.isin(cell_hashes(chunk.X, keys), known).sum()) for chunk in matched.chunks(genes))


def _ontology(store: Path | str, annotation: Annotation) -> tuple[ClassOntology, dict[str, str]]:
    """Return the terms of the labels of the reference, and known terms of other names in the query."""
    from scvec.celltypes.terms import ClassOntology

    opened = Store(store)
    stored = opened.reference(str(annotation.parameters["reference"]))
    ontology = ClassOntology.from_dict(stored.meta["ontology"])
    return ontology, dict(zip(stored.meta["classes"], ontology.terms, strict=True))


def _scores(
    annotation: Annotation,
    renamed: Strings,
    scored: npt.NDArray[np.int64],
    names: Mapping[str, str],
    ontology: tuple[ClassOntology, dict[str, str]],
    *,
    truth_key: str,
    coverage: float,
) -> EvaluationReport:
    truth = renamed[scored]
    said = np.array([names.get(label, label) for label in annotation.label[scored]], dtype=np.str_)
    of_class = np.array([names.get(c, c) for c in annotation.classes], dtype=np.str_)
    # One column per scored name: classes that map to the same name share it.
    columns, column = np.unique(of_class, return_inverse=True)
    merged = np.zeros((len(of_class), len(columns)), dtype=np.float32)
    merged[np.arange(len(of_class)), column] = 1.0
    number = {str(name): k for k, name in enumerate(columns)}
    code = np.array([number.get(str(t), -1) for t in truth], dtype=np.int64)
    known = code >= 0
    confidence, novelty = annotation.confidence[scored], annotation.novelty[scored]
    status, right = annotation.status[scored].astype(np.str_), truth == said
    found: dict[str, Any] = {
        "accuracy": accuracy(truth[known], said[known]),
        "macro_f1": macro_f1(truth[known], said[known]),
        "mean_confidence": _mean(confidence[known]),
        "ece": expected_calibration_error(confidence[known], right[known]) if known.any() else None,
        "brier": brier_score(confidence[known], right[known]),
        "novelty_auroc": novelty_auroc(novelty, ~known),
        "novelty_fpr_at_95_tpr": fpr_at_tpr(novelty, ~known),
        "false_novel": _mean(status[known] == "novel"),
        "true_novel": _mean(status[~known] == "novel"),
    }
    if annotation.sets is not None:
        sets = (annotation.sets[scored].astype(np.float32) @ merged) > 0
        found["sets"] = {"coverage": coverage, **set_coverage(sets[known], code[known])}
    curve = risk_coverage(confidence, right)
    points = np.unique(np.linspace(0, len(curve) - 1, N_POINTS).astype(np.int64))
    found["risk_coverage"] = [[float((i + 1) / len(curve)), float(curve[i])] for i in points]
    found["aurc"] = float(curve.mean())
    found |= _against_ontology(truth[known], said[known], names, annotation.classes, ontology)
    return EvaluationReport(
        reference=str(annotation.parameters["reference"]),
        truth_key=truth_key,
        n_cells=len(renamed),
        n_scored=len(truth),
        n_known=int(known.sum()),
        unknown_labels=_counts(truth[~known]),
        scores=found,
        reliability=reliability(confidence[known], right[known]) if known.any() else [],
        status={
            str(s): {"share": float(np.mean(status == s)), "accuracy": _mean(right[status == s])}
            for s in np.unique(status)
        },
        labels=_per_label(truth, said, novelty, status),
        confusion=_confusion(truth, said),
        parameters=dict(annotation.parameters),
        novelty={
            "edges": np.linspace(0.0, 1.0, 21).tolist(),
            "known": np.histogram(novelty[known], 20, (0.0, 1.0))[0].tolist(),
            "unknown": np.histogram(novelty[~known], 20, (0.0, 1.0))[0].tolist(),
        },
        notes=list(annotation.notes),
    )


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _counts(values: Strings) -> dict[str, int]:
    labels, numbers = np.unique(values, return_counts=True)
    return {str(v): int(n) for v, n in zip(labels, numbers, strict=True)}


def _against_ontology(
    truth: Strings,
    said: Strings,
    names: Mapping[str, str],
    classes: tuple[str, ...],
    ontology: tuple[ClassOntology, dict[str, str]],
) -> dict[str, Any]:
    """Return scores with the Cell Ontology: accuracy on the lineage, and similarity of the terms.

    On the lineage means that an ancestor or descendant of the true term counts as correct. If several labels
    of the reference map to one name, its term is their deepest common ancestor. Labels without a term are
    correct if they are equal. The similarity is returned only if all labels have a term.
    """
    tree, term_of = ontology
    members: dict[str, list[str]] = {}
    for label in classes:
        members.setdefault(str(names.get(label, label)), []).append(term_of.get(label, ""))
    terms = {name: _common(each, tree) for name, each in members.items()}
    with_term = np.array(
        [bool(terms.get(str(t))) and bool(terms.get(str(s))) for t, s in zip(truth, said, strict=True)]
    )
    if not len(truth) or not with_term.any():
        return {"ontology_accuracy": None, "ontology_similarity": None}
    true_terms, said_terms = ([terms.get(str(v), "") for v in side] for side in (truth, said))
    related = on_lineage(true_terms, said_terms, tree.lineage) | (truth == said)
    # A mean over only some labels would be too high, because labels with a term are the easy ones.
    shared = ontology_similarity(true_terms, said_terms, tree.lineage) if with_term.all() else None
    return {
        "ontology_accuracy": float(related.mean()),
        "ontology_similarity": None if shared is None else float(shared.mean()),
    }


def _common(terms: list[str], tree: ClassOntology) -> str:
    lines = [set(tree.lineage.get(t, ())) for t in terms]
    shared = set.intersection(*lines) if lines else set()
    return max(sorted(shared), key=lambda t: tree.depth.get(t, 0), default="")


def _per_label(
    truth: Strings, said: Strings, novelty: npt.NDArray[Any], status: Strings
) -> list[dict[str, Any]]:
    from sklearn.metrics import precision_recall_fscore_support

    labels = np.unique(truth)
    precision, recall, f1, n = precision_recall_fscore_support(truth, said, labels=labels, zero_division=0)
    return [
        {
            "label": str(label),
            "n": int(n[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "mean_novelty": float(novelty[truth == label].mean()),
            "novel": float(np.mean(status[truth == label] == "novel")),
        }
        for k, label in enumerate(labels)
    ]


def _confusion(truth: Strings, said: Strings) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix

    labels = np.unique(np.concatenate([truth, said]))
    return {
        "labels": [str(v) for v in labels],
        "counts": confusion_matrix(truth, said, labels=labels).tolist(),
    }
