"""The result of a query: a label for every cell, with probabilities, novelty and status."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import Packed, Texts, blocks, code_type, coded, counts, holds_texts, release, texts_of
from scvec.base.display import STATUS_COLORS, html_bar, html_table, label_colors
from scvec.base.errors import check_choice
from scvec.base.options import options_of
from scvec.base.results import NextStep
from scvec.base.types import Float32, Int64, Neighbors
from scvec.celltypes.naming import Naming, name_columns
from scvec.ingest.cells.write import earlier_names
from scvec.model.calibration import STATUSES, set_names
from scvec.model.query_options import COLUMNS, QueryOptions

if TYPE_CHECKING:
    import anndata
    import pandas as pd

    from scvec.ingest.cells.expression import ExpressionState
    from scvec.model.matching import MatchedSource
    from scvec.model.novelty import Shift
    from scvec.model.reference import Prediction, ReferenceModel
    from scvec.model.resolvers import GeneMap
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["Annotation", "Judged", "judge", "novel_notes", "provenance"]

Strings = npt.NDArray[np.object_]

#: Most labels in a notebook's table; the others are counted.
HTML_LABELS = 20

#: Attributes with one text per cell.
TEXTS = ("cells", "label", "label_knn", "label_head", "label_broad", "cl_id", "status", "majority")


@holds_texts(*TEXTS)
@dataclass(frozen=True, repr=False)
class Annotation:
    """Labels of n cells by one reference.

    Attributes
    ----------
    cells
        (n,) names of the cells, as objects.
    classes
        Labels of the reference.
    label, label_knn, label_head, label_broad, cl_id, status
        (n,) strings, as objects. They and ``cells`` are stored in a compact form until the first access
        (:mod:`scvec.base.arrays`).
    confidence, novelty
        (n,) float32, 0 to 1.
    proba
        (n, n_classes) float32, columns in the order of ``classes``.
    vectors
        (n, embed_dim) float32.
    neighbors
        Nearest reference cells, as row numbers of the reference.
    majority, cluster
        (n,) strings and (n,) int64: the most frequent label of each cell's cluster, and the number of the
        cluster; None without a majority vote.
    novel_group, novel_names
        (n,) the group of each novel cell as objects, None for others, and the names of the groups; both None
        without ``name_novel``.
    store, data, options
        Input of the query: the folder of the store, the file or AnnData object, and the options.
        ``options`` is None if the annotation is not from a query.
    sets
        (n, n_classes) bool, the labels in each cell's set; None without a coverage.
    parameters
        All parameters of the annotation: version, store version, space, options, gene match.
    notes
        Notes for the user.
    seconds
        Duration of each stage.
    """

    cells: Strings
    classes: tuple[str, ...]
    label: Strings
    label_knn: Strings
    label_head: Strings
    label_broad: Strings
    cl_id: Strings
    status: Strings
    confidence: Float32
    novelty: Float32
    proba: Float32
    vectors: Float32
    neighbors: Neighbors
    parameters: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    output: str = ""
    report: str = ""
    sets: npt.NDArray[np.bool_] | None = None
    majority: Strings | None = None
    cluster: npt.NDArray[np.int64] | None = None
    novel_group: Strings | None = None
    novel_names: tuple[Naming, ...] | None = None
    store: Path | str = ""
    data: Any = field(default=None, compare=False)
    options: QueryOptions | None = None

    def __post_init__(self) -> None:
        n = len(self)
        parts = "label label_knn label_head label_broad cl_id status confidence novelty proba vectors".split()
        lengths = {name: len(vars(self)[name]) for name in parts}
        lengths["neighbors"] = len(self.neighbors.indices)
        wrong = [f"{name} {length}" for name, length in lengths.items() if length != n]
        if wrong:
            raise ValueError(f"the annotation has {n} cells, but these parts differ: {', '.join(wrong)}")
        if self.proba.shape != (n, len(self.classes)):
            raise ValueError(f"probabilities of shape {self.proba.shape} for {len(self.classes)} classes")
        if self.sets is not None and self.sets.shape != self.proba.shape:
            raise ValueError(f"label sets of shape {self.sets.shape} for probabilities {self.proba.shape}")

    def __len__(self) -> int:
        return len(vars(self)["cells"])

    def __repr__(self) -> str:
        # A console shows the summary instead of all barcodes.
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        found, label = self.counts(), texts_of(self, "label")
        confident = texts_of(self, "status") == "confident"
        shown = list(found.items())[:HTML_LABELS]
        rows = []
        for name, n in shown:
            members = label == name
            sure = f"{confident[members].mean():.0%}"
            rows.append((name, n, float(self.confidence[members].mean()), sure))
        status = self.to_dict()["status"]
        rest = len(found) - len(shown)
        example = next(iter(found), "LABEL")
        parts = [
            f"<p><b>{len(self):,} cells</b> annotated by reference "
            f"<b>{escape(str(self.parameters['reference']))}</b></p>",
            html_bar({s: (status[s], STATUS_COLORS[s]) for s in STATUSES}),
            html_table(("label", "cells", "mean confidence", "confident"), rows),
            f"<small>and {rest} labels with fewer cells</small>" if rest else "",
            *(f"<p>{escape(note)}</p>" for note in self.notes if note.startswith("warning: ")),
            "<small>Next: <code>.to_adata(adata)</code>, "
            "<code>scvec.write_report(annotation, 'report.html')</code>, "
            f"<code>.explain(label={escape(repr(example))})</code>, <code>.to_table()</code></small>",
        ]
        return f"<div>{''.join(parts)}</div>"

    def changed(self, **changes: Any) -> Annotation:
        """Return a copy with changed values, like ``dataclasses.replace``, but without expanding texts."""
        return type(self)(**{**vars(self), **changes})

    def to_table(
        self, key_added: str = "scvec", *, columns: str = "scvec", named: bool = True
    ) -> pd.DataFrame:
        """Return the per-cell columns as a data frame indexed by cell name.

        Parameters
        ----------
        key_added
            Prefix of scvec's columns.
        columns
            ``scvec``, or ``celltypist``: the names of CellTypist's tables (``predicted_labels``,
            ``conf_score``, and after a majority vote ``over_clustering`` and ``majority_voting``).
        named
            Whether the index has the cell names; otherwise it has numbers, which need no memory.

        Raises
        ------
        InputError
            If ``columns`` is neither.
        """
        import pandas as pd

        check_choice("--columns", columns, COLUMNS)
        found = self._celltypist() if columns == "celltypist" else self._own(f"{key_added}_")
        table = pd.DataFrame(found, index=pd.RangeIndex(len(self)))
        if named:
            table.index = pd.Index(self.cells)
        return table

    def tables(self, *, columns: str = "scvec") -> Iterator[pd.DataFrame]:
        """Yield :meth:`to_table` in parts of its rows, so that not all cell names are objects at once."""
        import pandas as pd

        table = self.to_table(columns=columns, named=False)
        names = vars(self)["cells"]
        for rows in blocks(max(len(self), 1)):
            part = table.iloc[rows]
            part.index = pd.Index(names.part(rows) if isinstance(names, Packed) else names[rows])
            yield part

    def _own(self, prefix: str) -> dict[str, Any]:
        import json

        import pandas as pd

        found = {
            "label": texts_of(self, "label"),
            "confidence": self.confidence,
            "novelty": self.novelty,
            "status": texts_of(self, "status").set_categories(list(STATUSES)),
            **{k: texts_of(self, k) for k in ("label_knn", "label_head", "label_broad", "cl_id")},
        }
        if self.sets is not None:
            found["set"] = self._sets()
            found["set_size"] = self.sets.sum(axis=1).astype(np.int32)
            if any("|" in name for name in self.classes):
                # If a label contains the separator, also write the set as a JSON list.
                found["set_json"] = set_names(self.proba, self.sets, self.classes, json.dumps)
        if self.cluster is not None and vars(self)["majority"] is not None:
            found["majority"] = texts_of(self, "majority")
            found["cluster"] = pd.Categorical(self.cluster.astype(str))
        if self.novel_names is not None and self.novel_group is not None:
            found |= name_columns(self.novel_names, self.novel_group, "name")
        return {f"{prefix}{name}": values for name, values in found.items()}

    def _celltypist(self) -> dict[str, Any]:
        import pandas as pd

        found: dict[str, Any] = {"predicted_labels": texts_of(self, "label")}
        if self.cluster is not None and vars(self)["majority"] is not None:
            found["over_clustering"] = pd.Categorical(self.cluster.astype(str))
            found["majority_voting"] = texts_of(self, "majority")
        found["conf_score"] = self.confidence
        return found

    def explain(self, **keywords: Any) -> Any:
        """Explain why a cell, or the cells of a label, got their label and not another.

        The cells are read again, so the annotated file or AnnData object must be unchanged.

        Parameters
        ----------
        **keywords
            See :func:`scvec.explain`: ``cell`` or ``label``, ``against``, ``n_genes``.

        Returns
        -------
        scvec.model.explanation.Explanation

        Raises
        ------
        ValueError
            If the annotation is not from a query.
        InputError, StoreError
            See :func:`scvec.explain`.
        """
        from scvec.model.explanation import Explainer, ExplainOptions

        asked = options_of(ExplainOptions, None, keywords)
        with Explainer.of_annotation(self) as explainer:
            return explainer.explain(asked)

    def label_sets(self) -> Strings:
        """Return (n,) label sets as ``alpha|beta``, likeliest first; an empty text for an empty set."""
        return np.asarray(self._sets(), dtype=object)

    def _sets(self) -> Texts:
        if self.sets is None:
            raise ValueError("the annotation has no label sets: give coverage to the query")
        return set_names(self.proba, self.sets, self.classes)

    def obsm(self, key_added: str = "scvec") -> dict[str, npt.NDArray[Any]]:
        """Return the arrays for ``adata.obsm``."""
        arrays: dict[str, npt.NDArray[Any]] = {
            f"X_{key_added}": self.vectors,
            f"{key_added}_proba": self.proba,
        }
        return arrays if self.sets is None else {**arrays, f"{key_added}_set": self.sets}

    def uns(self, columns: str = "scvec") -> dict[str, Any]:
        """Return the entry of ``adata.uns``: classes, parameters, and the kind of ``columns``."""
        import json

        # h5ad cannot store None or lists of mixed type, so all parameters are one JSON text.
        return {
            "classes": np.array(self.classes, dtype=object),
            "version": str(self.parameters["scvec"]),
            "reference": str(self.parameters["reference"]),
            "generation": int(self.parameters["generation"]),
            "space": str(self.parameters["space"]),
            "parameters": json.dumps(self.parameters, sort_keys=True),
            "columns": columns,
            "notes": np.array(self.notes, dtype=object),
        }

    def colors(self, key_added: str = "scvec") -> dict[str, Any]:
        """Return the colours of labels, in the order that scanpy expects in ``adata.uns``."""
        columns = ["label", "label_knn", "label_head"]
        if vars(self)["majority"] is not None:
            columns.append("majority")
        found: dict[str, Any] = {
            f"{key_added}_{name}_colors": np.array(
                label_colors(self.classes, list(texts_of(self, name).categories)), dtype=object
            )
            for name in columns
        }
        found[f"{key_added}_status_colors"] = np.array([STATUS_COLORS[s] for s in STATUSES], dtype=object)
        return found

    def to_adata(self, adata: anndata.AnnData, *, key_added: str = "scvec", copy: bool = False) -> Any:
        """Write the result to ``adata.obs``, ``.obsm`` and ``.uns``, and remove an earlier annotation.

        Parameters
        ----------
        copy
            Work on a copy and return it.

        Returns
        -------
        The copy, or None.

        Raises
        ------
        ValueError
            If ``adata`` has other cells, or another order of cells.
        """
        if adata.n_obs != len(self):
            raise ValueError(f"the annotation has {len(self)} cells, adata {adata.n_obs}")
        # Cells are matched by position, because names may repeat in adata but not in the annotation.
        if adata.obs_names.is_unique and not np.array_equal(adata.obs_names.astype(str), self.cells):
            raise ValueError("adata has other cells than the annotation, or another order of cells")
        target = adata.copy() if copy else adata
        table = self.to_table(key_added)
        # Plain arrays, because not all of anndata accepts memory-mapped arrays.
        obsm = {name: np.asarray(values) for name, values in self.obsm(key_added).items()}
        uns = {key_added: self.uns(), **self.colors(key_added)}
        for part, names in earlier_names(target.uns, key_added).items():
            for name in names:
                if name in (entries := getattr(target, part)):
                    del entries[name]
        for name in table.columns:
            target.obs[name] = table[name].array
        target.obsm.update(obsm)
        target.uns.update(uns)
        return target if copy else None

    def counts(self) -> dict[str, int]:
        """Return the number of cells per label, largest first."""
        return counts(texts_of(self, "label"))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able summary."""
        status = counts(texts_of(self, "status"))
        voted = vars(self)["majority"] is not None
        return {
            "n_cells": len(self),
            "labels": self.counts(),
            "status": {s: status.get(s, 0) for s in STATUSES},
            "mean_confidence": float(self.confidence.mean()) if len(self) else None,
            "mean_set_size": float(self.sets.sum(axis=1).mean())
            if self.sets is not None and len(self)
            else None,
            "majority": counts(texts_of(self, "majority")) if voted else None,
            "n_clusters": len(np.unique(self.cluster)) if self.cluster is not None else None,
            "novel_groups": None if self.novel_names is None else self._novel_groups(),
            "output": self.output or None,
            "report": self.report or None,
            "parameters": self.parameters,
            "notes": list(self.notes),
            "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
        }

    def _novel_groups(self) -> list[dict[str, Any]]:
        groups = [] if self.novel_group is None else self.novel_group.tolist()
        return [{"n_cells": groups.count(g.group), **g.to_dict()} for g in self.novel_names or ()]

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        total = len(self)
        lines = [f"{total:,} cells annotated by reference {self.parameters['reference']!r}"]
        status, label = texts_of(self, "status"), texts_of(self, "label")
        n_novel = int((status == "novel").sum())
        if n_novel > total / 2:
            lines.append(f"  {n_novel:,} of them are novel (unlike the reference): do not use their labels")
        found, confident = counts(label), status == "confident"
        width = max(map(len, found), default=0)
        for name, number in found.items():
            members = label == name
            sure = float(confident[members].mean())
            percent = "<1" if 0 < sure < 0.01 else f"{100 * sure:.0f}"
            lines.append(
                f"  {name:<{width}}  {number:>7,}  confidence {self.confidence[members].mean():.2f}"
                f"  {percent:>3}% confident"
            )
        summary = ", ".join(f"{n:,} {s}" for s, n in self.to_dict()["status"].items() if n)
        lines.append(f"status: {summary}")
        if self.sets is not None:
            size = np.bincount(self.sets.sum(axis=1), minlength=3)
            lines.append(
                f"label sets with the true label for {self.parameters['coverage']:.0%} of the cells: "
                f"{size[0]:,} empty, {size[1]:,} with one label, {size[2:].sum():,} with more"
            )
        if self.majority is not None and self.cluster is not None:
            n_changed = int((self.majority != self.label).sum())
            n_clusters = len(np.unique(self.cluster))
            lines.append(
                f"majority vote over {n_clusters:,} clusters: {n_changed:,} cells have another label"
            )
        for group in self.novel_names or ():
            lines += group.lines()
        if self.output:
            lines.append(f"written to {self.output}")
        if self.report:
            lines.append(f"report: {self.report}")
        return lines

    @property
    def next_step(self) -> NextStep | None:
        """An output, if there is none; names for many novel cells; else the evidence for the first label."""
        if not self.output:
            return NextStep(("-o", "annotated.h5ad", "--report", "report.html"), again=True)
        if not self.output.endswith(".h5ad"):
            return None if self.report else NextStep(("--report", "report.html"), again=True)
        novel = self.to_dict()["status"]["novel"] / max(len(self), 1)
        if novel > MOSTLY_NOVEL or _doubted(self.parameters):
            return NextStep(("name", self.output, "-o", "named.h5ad"))
        if novel > MANY_NOVEL and self.novel_names is None:
            return NextStep(("name", self.output, "--only", "novel", "-o", "named.h5ad"))
        label = next(iter(self.counts()), None)
        if label is None or self.parameters["encoder"] == "obsm":
            return None  # vectors have no evidence of genes
        return NextStep(("explain", self.output, "--label", label))


#: Above this fraction of novel cells, their names are of interest: twice the default of false ones.
MANY_NOVEL = 0.1
#: A query is compared with the contrasts of the reference if more than this fraction of the cells would be
#: novel without the correction for a shift, and at most ``ONE_LABEL`` of them have one label.
UNLIKE, ONE_LABEL = 0.5, 0.9
#: With a smaller contrast (:func:`scvec.model.novelty.contrast`) the reference may be of another tissue.
#: Chosen on two of the references of ``benchmarks/wrong_reference.py``.
LEAST_CONTRAST = 0.3
#: Most other references that a warning names.
OTHERS = 5
#: Above this fraction of novel cells, another cause is likely, such as a wrong scale of the values.
MOSTLY_NOVEL = 0.8
#: Note for references that were calibrated without other batches.
OPTIMISTIC = (
    "confidence is optimistic for other data sets: the reference was calibrated on held-out cells of the "
    "same batches (ingest it with --batch-key)"
)


def provenance(generation: int, stored: StoredReference, matched: MatchedSource) -> dict[str, Any]:
    """Return the provenance of an annotation: version, store version, reference, space, genes."""
    from scvec import __version__
    from scvec.model.storage import species_of

    meta = stored.meta
    return {
        "scvec": __version__,
        "reference": stored.name,
        "reference_fingerprint": stored.fingerprint,
        "reference_species": " and ".join(species_of(meta)),
        "generation": generation,
        "space": meta["space"]["fingerprint"] if meta["space"] else "none",
        "backbone": meta["space"]["backbone"] if meta["space"] else "none",
        "encoder": meta["model"]["encoder"]["name"],
        "calibrated_on": meta["model"]["calibration"]["held_out"],
        "genes": matched.summary,
        "species": matched.match.species,
        "expression": matched.source.state.message,
    }


class Judged(NamedTuple):
    """Cells of a query that measured the same genes.

    Attributes
    ----------
    genes
        Their genes as genes of the reference; None for dimensions of vectors.
    model
        Fitted to these genes.
    measured
        Fraction (0-1) of the model's genes that they measured.
    """

    matched: MatchedSource
    genes: GeneMap | None
    model: ReferenceModel
    measured: float


def judge(
    parts: Sequence[Judged],
    stored: StoredReference,
    found: Prediction,
    parameters: dict[str, Any],
    others: Sequence[str] = (),
) -> Annotation:
    """Return labels, status and broader terms of the cells of a query.

    Parameters
    ----------
    parts
        The cells, in parts with the same measured genes. The shift is computed for each part.
    found
        The predictions for all cells, in the order of the file. The annotation takes over the arrays.
    parameters
        Parameters of the annotation. The shift of the query (of its largest part) is added.
    others
        Other references of the store, for a warning.
    """
    from scvec.celltypes.terms import ClassOntology
    from scvec.model.calibration import STATUSES, status_codes

    classes, source = tuple(str(c) for c in stored.meta["classes"]), parts[0].matched.source
    best, confidence = _best(found.proba)
    low, novelty = np.zeros(len(found), dtype=bool), np.zeros(len(found), dtype=np.float32)
    shifts, shift_notes = [], []
    before = 0
    for matched, _, model, measured in parts:
        rows: Any = slice(None) if matched.rows is None else matched.rows
        low[rows] = found.n_detected[rows] < model.floor * measured
        usable = ~low
        if matched.rows is not None:
            usable = np.zeros(len(low), dtype=bool)
            usable[rows] = ~low[rows]
        shifts.append(shift := _shift(model, found, usable, parameters["novelty"]))
        before += _novelty(model, found, shift, parameters["false_novel_rate"], matched.rows, novelty)
        if shift.message:
            shift_notes.append(f"{matched.name}: {shift.message}" if matched.name else shift.message)
    parameters = {**parameters, "shift": shifts[0].to_dict()}
    most = np.bincount(best).max(initial=0)
    if before > UNLIKE * len(found) and most <= ONE_LABEL * len(found):
        alike = _contrast(parts[0], stored)
        parameters["contrast"] = None if np.isnan(alike) else round(alike, 4)
    if len(parts) > 1:
        parameters["gene_sets"] = [
            {**one, "shift": shift.to_dict()}
            for one, shift in zip(parameters["gene_sets"], shifts, strict=True)
        ]
    notes = [OPTIMISTIC] if parts[0].model.calibration.held_out == "cells" else []
    notes += [*shift_notes, *novel_notes(float(np.mean(novelty > 0.5)), source.state, parameters, others)]
    status = status_codes(confidence=confidence, novelty=novelty, n_labels=found.n_labels, low_quality=low)
    broad, ids = ClassOntology.from_dict(stored.meta["ontology"]).coded_broad(found.proba)
    # A compact form; the annotation converts it to arrays of objects on first access.
    texts: dict[str, Any] = {
        "cells": source.names,
        "label": coded(best, classes),
        "label_knn": coded(found.winners["knn"], classes),
        "label_head": coded(found.winners["head"], classes),
        "label_broad": broad,
        "cl_id": ids,
        "status": coded(status, STATUSES),
    }
    found.release()
    return Annotation(
        **texts,
        classes=classes,
        confidence=confidence,
        novelty=novelty,
        proba=found.proba,
        sets=found.sets,
        vectors=found.vectors,
        neighbors=found.neighbors,
        parameters=parameters,
        notes=notes,
    )


def _shift(model: ReferenceModel, found: Prediction, usable: npt.NDArray[np.bool_], how: str) -> Shift:
    """Return the shift of the query against the reference, estimated from cells of sufficient quality."""
    from scvec.model.novelty import Shift

    n_classes = model.members.n_classes
    if how == "absolute" or model.calibration.novelty is None:
        return Shift.none(n_classes)
    return Shift.estimate(found.signals[usable], found.given[usable], found.sure[usable], n_classes)


def _novelty(
    model: ReferenceModel,
    found: Prediction,
    shift: Shift,
    rate: float,
    rows: Int64 | None,
    novelty: Float32,
) -> int:
    """Fill in the novelty, 0 to 1, of some cells; of all where ``rows`` is None.

    Returns
    -------
    How many of them are novel if the shift is not subtracted.
    """
    detector, n = model.calibration.novelty, 0
    if detector is not None:
        for part in blocks(len(found) if rows is None else len(rows)):
            some: Any = part if rows is None else rows[part]
            relative = shift.relative(found.signals[some], found.given[some])
            novelty[some] = detector.score(relative, rate=rate)
            n += int((detector.score(found.signals[some], rate=rate) > 0.5).sum())
    return n


def _contrast(part: Judged, stored: StoredReference) -> float:
    """Return :func:`scvec.model.novelty.contrast` of a sample of cells; NaN for vectors of ``obsm``."""
    import scipy.sparse as sp

    from scvec.model.novelty import CONTRAST_CELLS, contrast
    from scvec.model.storage import class_statistics

    if part.genes is None:
        return float("nan")
    rows = np.arange(part.matched.n_obs) if part.matched.rows is None else part.matched.rows
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, CONTRAST_CELLS).astype(np.int64))]
    kept = np.flatnonzero(part.genes.measured)
    X = sp.vstack([chunk.X[:, kept] for chunk in part.matched.chunks(part.genes, rows=rows)], format="csr")
    return contrast(X, class_statistics(stored.tensors)[0][:, kept])


def _doubted(parameters: Mapping[str, Any]) -> bool:
    """Return whether the cells may not fit the reference: its labels differ little in them."""
    contrast = parameters.get("contrast")
    return contrast is not None and bool(contrast < LEAST_CONTRAST)


def novel_notes(
    share: float, state: ExpressionState, parameters: Mapping[str, Any], others: Sequence[str] = ()
) -> list[str]:
    """Return a warning with likely causes, the likeliest first, if the cells may not fit the reference.

    It comes if nearly all cells are novel, or if the labels of the reference differ little in the cells.

    Parameters
    ----------
    share
        Fraction (0-1) of the cells that are novel.
    state
        The detected scale of the values.
    parameters
        Parameters of the annotation, with ``genes``, ``species``, ``reference_species``, ``values``, and
        ``contrast`` if the cells were compared with the reference.
    others
        Other references of the store.
    """
    from scvec.ingest.cells.values import in_words

    unlike = _doubted(parameters)
    if share <= MOSTLY_NOVEL and not unlike:
        return []
    named = ", ".join(others[:OTHERS]) + (", ..." if len(others) > OTHERS else "")
    tissue = "cells of another tissue than the reference"
    tissue += f" (others in the store: {named})" if others else ""
    novel = f"{share:.0%} of the cells are novel"
    if state.kind == "vectors":
        return [f"warning: {novel}. Likely causes, in order: 1) {tissue}; 2) vectors of another model"]
    if unlike:
        part = f"{max(float(parameters['contrast']), 0.0):.0%} of the difference in the reference"
        novel = (
            f"the cells may not fit the reference {parameters['reference']!r}: {share:.0%} are novel, and "
            f"its labels differ little in them ({part})"
        )
    scales = " and ".join(in_words(scale) for scale in state.scales)
    values = (
        f"scale of the values (used as {scales}): --values"
        if parameters.get("values", "auto") == "auto"
        else f"--values {parameters['values']}"
    )
    species = (
        f"species (used as {parameters['species']}, reference {parameters['reference_species']}): --species"
    )
    causes = [values, species, tissue, "another platform"]
    if state.kind == "counts":
        causes = [*causes[1:], values]
    if unlike:
        # Another platform alone does not hide the labels; a wrong scale seldom does.
        causes = [tissue, "cells of one or two similar types", values, species]
    listed = "; ".join(f"{n}) {cause}" for n, cause in enumerate(causes, 1))
    return [f"warning: {novel}. Likely causes, in order: {listed}"]


def _best(proba: Float32) -> tuple[npt.NDArray[Any], Float32]:
    """Return the most probable class of each cell, and its probability."""
    best = np.empty(len(proba), dtype=code_type(proba.shape[1]))
    confidence = np.empty(len(proba), dtype=np.float32)
    for rows in blocks(len(proba)):
        part = proba[rows]
        best[rows] = part.argmax(axis=1)
        confidence[rows] = part.max(axis=1)
        release(proba)
    return best, confidence
