"""``scvec query`` with several references, whose labels are combined by the Cell Ontology."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import blocks
from scvec.base.display import STATUS_COLORS, html_lines
from scvec.base.errors import InputError
from scvec.base.results import NextStep
from scvec.base.types import Float32, Float64, Progress, no_progress
from scvec.celltypes.terms import ClassOntology, folded
from scvec.ingest.cells.cell_vectors import open_cells
from scvec.ingest.cells.write import write_annotated, write_tables
from scvec.model.annotation import MANY_NOVEL
from scvec.model.calibration import MIN_CONFIDENCE, STATUSES
from scvec.model.matching import by_gene_sets, match_genes, obsm_key, query_genes
from scvec.model.query_options import QueryOptions
from scvec.model.resolvers import stored_resolver
from scvec.model.storage import class_statistics, genes_of
from scvec.stores.store.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.model.annotation import Annotation

__all__ = ["JointAnnotation", "query_many"]

Strings = npt.NDArray[np.object_]
#: Least weighted probability of a consensus term (that of :meth:`ClassOntology.coded_broad`).
BAR = 0.8
#: Decrease of a reference's weight with the cosine between a cell and the mean cell of its label, relative to
#: the best reference. Chosen on two splits of one tissue (`benchmarks/joined.py`).
ALIKE = 50.0
#: Least number of shared genes for comparing the mean cells of references.
MIN_SHARED = 200
#: Least factor on the weight of a reference by novelty.
LEAST = 0.01
#: A cell is ambiguous if a reference with another label has at least this fraction of the weight.
HEARD = 1 / 3


@dataclass(frozen=True, repr=False)
class JointAnnotation:
    """Labels of n cells by several references, and their consensus.

    Attributes
    ----------
    annotations
        Reference -> its annotation of all cells.
    label, cl_id, reference, status
        (n,) strings, as objects: label of the reference with the largest weighted probability; deepest Cell
        Ontology term that the references support together; name of that reference; status.
    confidence, novelty, disagreement
        (n,) float32, 0 to 1: weighted probability of the labels that agree with ``label``; novelty with
        respect to ``reference``; fraction of the weight of references with an unrelated label.
    disagreements
        Table of the pairs of unrelated labels: ``reference``, ``label``, ``other_reference``, ``other_label``
        and ``n_cells``, most cells first.
    """

    annotations: Mapping[str, Annotation]
    label: Strings
    confidence: Float32
    novelty: Float32
    status: Strings
    cl_id: Strings
    reference: Strings
    disagreement: Float32
    disagreements: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    output: str = ""

    def __post_init__(self) -> None:
        lengths = {len(a) for a in self.annotations.values()}
        if lengths != {len(self.label)} or len(self.annotations) < 2:
            raise ValueError(f"{len(self.label)} labels for annotations of {sorted(lengths)} cells")

    def __len__(self) -> int:
        return len(self.label)

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return html_lines(self.lines())

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per reference."""
        return {name: sum(a.seconds.values()) for name, a in self.annotations.items()}

    @cached_property
    def cells(self) -> Strings:
        """(n,) names of the cells, as objects."""
        return next(iter(self.annotations.values())).cells

    def to_table(self, key_added: str = "scvec") -> pd.DataFrame:
        """Return the columns of the consensus, then those of each reference, indexed by cell name."""
        import pandas as pd

        columns: dict[str, Any] = {
            "label": pd.Categorical(self.label),
            "confidence": self.confidence,
            "novelty": self.novelty,
            "status": pd.Categorical(self.status, categories=list(STATUSES)),
            "cl_id": pd.Categorical(self.cl_id),
            "reference": pd.Categorical(self.reference, categories=list(self.annotations)),
            "disagreement": self.disagreement,
        }
        for name, one in self.annotations.items():
            columns[f"label_{name}"] = pd.Categorical(one.label)
            columns[f"confidence_{name}"] = one.confidence
            columns[f"novelty_{name}"] = one.novelty
            columns[f"status_{name}"] = pd.Categorical(one.status, categories=list(STATUSES))
        named = {f"{key_added}_{name}": values for name, values in columns.items()}
        return pd.DataFrame(named, index=pd.Index(self.cells))

    def obsm(self, key_added: str = "scvec") -> dict[str, npt.NDArray[Any]]:
        """Return vectors and probabilities of each reference, for ``adata.obsm``."""
        found: dict[str, npt.NDArray[Any]] = {}
        for name, one in self.annotations.items():
            found |= {f"X_{key_added}_{name}": one.vectors, f"{key_added}_proba_{name}": one.proba}
        return found

    def uns(self) -> dict[str, Any]:
        """Return the entry of ``adata.uns``: classes and parameters of each reference, and disagreements."""
        parts = self.annotations.items()
        return {
            "references": np.array(list(self.annotations), dtype=object),
            "classes": {name: np.array(one.classes, dtype=object) for name, one in parts},
            "made_by": json.dumps({name: one.parameters for name, one in parts}, sort_keys=True),
            "disagreements": self.disagreements.to_json(orient="records"),
            "notes": np.array(self.notes, dtype=object),
        }

    def colors(self, key_added: str = "scvec") -> dict[str, Any]:
        """Return the colours of statuses for scanpy."""
        return {f"{key_added}_status_colors": np.array([STATUS_COLORS[s] for s in STATUSES], dtype=object)}

    def to_adata(self, adata: AnnData, *, key_added: str = "scvec", copy: bool = False) -> Any:
        """Write the result to ``adata.obs``, ``.obsm`` and ``.uns``; return the copy if ``copy``.

        Raises
        ------
        ValueError
            If ``adata`` has another number of cells.
        """
        if adata.n_obs != len(self):
            raise ValueError(f"the annotation has {len(self)} cells, adata {adata.n_obs}")
        target = adata.copy() if copy else adata
        for name, values in self.to_table(key_added).items():
            target.obs[str(name)] = values.array
        target.obsm.update({name: np.asarray(values) for name, values in self.obsm(key_added).items()})
        target.uns[key_added] = self.uns()
        target.uns.update(self.colors(key_added))
        return target if copy else None

    def counts(self) -> dict[str, int]:
        """Return the number of cells per label, most first."""
        names, numbers = np.unique(self.label.astype(str), return_counts=True)
        return {str(names[i]): int(numbers[i]) for i in np.lexsort((names, -numbers))}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able summary."""
        return {
            "n_cells": len(self),
            "labels": self.counts(),
            "status": {s: int((self.status == s).sum()) for s in STATUSES},
            "references": {name: int((self.reference == name).sum()) for name in self.annotations},
            "mean_confidence": float(self.confidence.mean()),
            "disagreements": self.disagreements.to_dict(orient="records"),
            "parameters": {name: one.parameters for name, one in self.annotations.items()},
            "output": self.output or None,
            "notes": list(self.notes),
            "seconds": {name: round(s, 3) for name, s in self.seconds.items()},
        }

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        found = self.to_dict()
        lines = [f"{len(self):,} cells annotated by the references {', '.join(self.annotations)}"]
        width = max(map(len, found["labels"]), default=0)
        for name, number in found["labels"].items():
            here = self.label == name
            sure = 100 * float((self.status[here] == "confident").mean())
            of = ", ".join(r for r in self.annotations if (self.reference[here] == r).any())
            lines.append(f"  {name:<{width}}  {number:>7,}  {sure:>3.0f}% confident  ({of})")
        lines.append("status: " + ", ".join(f"{n:,} {s}" for s, n in found["status"].items() if n))
        for row in found["disagreements"][:5]:
            lines.append(
                f"disagreement on {row['n_cells']:,} cells: {row['reference']} says {row['label']}, "
                f"{row['other_reference']} {row['other_label']}"
            )
        return [*lines, f"written to {self.output}"] if self.output else lines

    @property
    def next_step(self) -> NextStep | None:
        """An output, if there is none; names for many novel cells."""
        if not self.output:
            return NextStep(("-o", "annotated.h5ad"), again=True)
        many = float((self.status == "novel").mean()) > MANY_NOVEL
        if many and self.output.endswith(".h5ad"):
            return NextStep(("name", self.output, "--only", "novel", "-o", "named.h5ad"))
        return None


def query_many(
    one: Callable[..., Annotation],
    store: Path | str,
    cells: Path | str | AnnData,
    options: QueryOptions,
    target: Path | None,
    *,
    progress: Progress = no_progress,
) -> JointAnnotation:
    """Annotate cells with each of ``options.reference`` and combine the labels.

    Parameters
    ----------
    one
        Function that annotates with one reference, :func:`scvec.workflows.query.query_one`.
    target
        File for the result, already checked.

    Raises
    ------
    InputError
        See ``one``; or an option needs a single reference.
    """
    for name in ("report", "majority_vote", "name_novel", "columns"):
        if name in options.changed():
            flag = f"--{name.replace('_', '-')}"
            what = f"{flag} works only with a single reference"
            raise InputError(what, flag, "omit it, or give one --reference")
    opened, annotations = Store(store), {}
    ontologies = [
        ClassOntology.from_dict(opened.reference(name).meta["ontology"]) for name in options.reference or ()
    ]
    for name in options.reference or ():
        alone = replace(options, reference=name, output=None)
        annotations[name] = one(store, cells, alone, progress=progress)
    joint = _joined(annotations, ontologies, _likeness(opened, cells, annotations, options))
    if target is not None:
        progress("writing", 0, None)
        _write(joint, cells, target, options.memory)
        joint = replace(joint, output=str(target))
    return joint


def _write(joint: JointAnnotation, cells: Any, target: Path, memory: str | int | None) -> None:
    table = joint.to_table()
    if target.suffix == ".h5ad":
        uns = {"scvec": joint.uns(), **joint.colors()}
        write_annotated(cells, target, obs=table, obsm=joint.obsm(), uns=uns, checked=True, memory=memory)
    else:
        write_tables([table.rename_axis("cell")], target)


def _likeness(
    opened: Store, cells: Any, annotations: Mapping[str, Annotation], options: QueryOptions
) -> Float64 | None:
    """Return (n_references, n) cosines of each cell to the mean cell of its label in each reference.

    The cosines use the genes that the query and all references measured, so they are comparable between
    references. Novelty is not: each reference scores it in its own cell space, which may not separate its
    types from the types of another reference. None if the references share too few genes (other species, or
    vectors of ``obsm``).
    """
    stored = [opened.reference(name) for name in annotations]
    if any(obsm_key(one) for one in stored) or len({one.meta["species"] for one in stored}) > 1:
        return None
    own = genes_of(stored[0])
    shared = set(own).intersection(*map(genes_of, stored[1:]))
    best = [a.proba.argmax(axis=1) for a in annotations.values()]
    found = np.zeros((len(stored), len(best[0])))
    with open_cells(
        cells, columns=False, layer=options.layer, memory=options.memory, values=options.values
    ) as source:
        resolver = stored_resolver(opened)
        matched = match_genes(source, resolver, species=options.species, force=True)
        in_all = np.array([gene in shared for gene in own])
        for part in by_gene_sets(matched, ""):
            genes = query_genes(opened, stored[0], part, force=True)
            kept = np.flatnonzero(genes.measured & in_all)
            if len(kept) < MIN_SHARED:
                return None
            means = []
            for one in stored:
                place = {gene: i for i, gene in enumerate(genes_of(one))}
                mean = class_statistics(one.tensors)[0][:, [place[own[i]] for i in kept]].astype(np.float64)
                means.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
            cells, start = np.arange(source.n_obs) if part.rows is None else part.rows, 0
            for chunk in part.chunks(genes):
                X = chunk.X[:, kept]
                rows = cells[start : start + X.shape[0]]
                length = np.maximum(np.sqrt(X.multiply(X).sum(axis=1)).A1, 1e-12)
                for r, mean in enumerate(means):
                    found[r, rows] = (X @ mean.T)[np.arange(len(rows)), best[r][rows]] / length
                start += len(rows)
    return found


def _weights(parts: Sequence[Annotation], likeness: Float64 | None) -> Float64:
    """Return (n_references, n) weights of the probabilities of each reference for each cell.

    The weight decreases with novelty, and if the cell is more similar to the label of another reference. It
    is 0 if the cell is novel to the reference or has too few genes for it, unless the cell is most similar to
    the label of this reference: then its novelty is not evidence for another reference.
    """
    status = np.array([a.status for a in parts])
    novelty = np.array([a.novelty for a in parts], dtype=np.float64)
    weights = np.maximum(1.0 - novelty, LEAST)
    mute = status == "novel"
    if likeness is not None:
        behind = likeness - likeness.max(axis=0)
        alike = np.exp(ALIKE * behind)
        weights *= alike / alike.sum(axis=0)
        mute &= behind < 0
    return np.where(mute | (status == "low_quality"), 0.0, weights)


def _spoken_for(
    parts: Sequence[Annotation],
    ontologies: Sequence[ClassOntology],
    counts: Float64,
    best: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return (n,) the reference that provides the label with the largest total weighted probability.

    A type in several references gets the sum over them. The label comes from the one with the largest
    weighted probability.
    """
    n, weights = len(parts), np.zeros_like(counts)
    support, same = np.zeros_like(counts), np.zeros((n, *counts.shape), dtype=bool)
    for r in range(n):
        weights[r] = counts[r] * parts[r].proba.max(axis=1)
        for s in range(n):
            types = _same(parts[r].classes, ontologies[r], parts[s].classes, ontologies[s])[best[r]]
            support[r] += counts[s] * (parts[s].proba * types).sum(axis=1)
            same[r, s] = types[np.arange(len(types)), best[s]]
    support[counts <= 0] = -1.0
    first, cells = support.argmax(axis=0), np.arange(counts.shape[1])
    return np.asarray(np.where(same[first, :, cells].T, weights, -1.0).argmax(axis=0), dtype=np.int64)


def _joined(
    annotations: dict[str, Annotation], ontologies: Sequence[ClassOntology], likeness: Float64 | None = None
) -> JointAnnotation:
    """Return the consensus; ``likeness`` is from :func:`_likeness`."""
    parts, names = list(annotations.values()), np.array(list(annotations), dtype=object)
    status = np.array([a.status for a in parts])
    confidence = np.array([a.confidence for a in parts], dtype=np.float64)
    novelty = np.array([a.novelty for a in parts], dtype=np.float64)
    counts = _weights(parts, likeness)
    best = np.array([a.proba.argmax(axis=1) for a in parts])
    weights = counts * confidence
    silent = weights.sum(axis=0) <= 0
    taken = np.where(silent, novelty.argmin(axis=0), _spoken_for(parts, ontologies, counts, best))
    cells = np.arange(weights.shape[1])
    # If all weights are 0, the reference with the lowest novelty is used alone.
    weights[taken[silent], cells[silent]] = 1.0
    weights /= weights.sum(axis=0)
    agrees = np.array([confidence[taken, cells]] * len(parts))
    against = np.zeros(len(cells))
    for r in range(len(parts)):
        for s in range(len(parts)):
            rows = np.flatnonzero((taken == r) & (s != r))
            related = _related(parts[r].classes, ontologies[r], parts[s].classes, ontologies[s])[
                best[r][rows]
            ]
            agrees[s][rows] = (parts[s].proba[rows] * related).sum(axis=1)
            apart = ~related[np.arange(len(rows)), best[s][rows]]
            against[rows] += weights[s][rows] * apart
    joint = (weights * agrees).sum(axis=0)
    verdict = status[taken, cells]
    unsure = (verdict == "confident") & ((against >= HEARD) | (joint < MIN_CONFIDENCE))
    verdict[unsure] = "ambiguous"
    return JointAnnotation(
        annotations,
        np.array([a.label for a in parts])[taken, cells],
        joint.astype(np.float32),
        novelty[taken, cells].astype(np.float32),
        verdict,
        _deepest(parts, ontologies, weights),
        names[taken],
        against.astype(np.float32),
        _disagreements(annotations, taken, weights, best, ontologies),
        list(dict.fromkeys(f"{name}: {note}" for name, a in annotations.items() for note in a.notes)),
    )


def _same(
    classes: Sequence[str], ontology: ClassOntology, others: Sequence[str], other: ClassOntology
) -> npt.NDArray[np.bool_]:
    """Return (n_classes, n_others) bool: whether labels are the same type, by their term or their text."""
    known = [term or folded(label) for label, term in zip(classes, ontology.terms, strict=True)]
    theirs = [term or folded(label) for label, term in zip(others, other.terms, strict=True)]
    found = np.array(known, dtype=object)[:, None] == np.array(theirs, dtype=object)
    if ontology is other:
        found = np.eye(len(known), dtype=bool)
    return np.asarray(found, dtype=bool)


def _related(
    classes: Sequence[str], ontology: ClassOntology, others: Sequence[str], other: ClassOntology
) -> npt.NDArray[np.bool_]:
    """Return (n_classes, n_others) bool: whether labels are equal, or one is an ancestor of the other."""
    found = np.zeros((len(classes), len(others)), dtype=bool)
    for i, (label, term) in enumerate(zip(classes, ontology.terms, strict=True)):
        for j, (name, its) in enumerate(zip(others, other.terms, strict=True)):
            above = term in other.lineage.get(its, ()) or its in ontology.lineage.get(term, ())
            found[i, j] = above if term and its else folded(label) == folded(name)
    return found


def _deepest(parts: Sequence[Annotation], ontologies: Sequence[ClassOntology], weights: Float64) -> Strings:
    """Return (n,) the deepest term that the weighted probabilities support, or empty.

    If a reference has no type below a term, its probability for ancestors neither supports nor opposes the
    term: ``lymphocyte`` does not contradict ``B cell``.
    """
    depth: dict[str, int] = {}
    for ontology in ontologies:
        depth |= ontology.depth
    terms = sorted(depth)
    if not terms:
        return np.full(weights.shape[1], "", dtype=object)
    number = {term: i for i, term in enumerate(terms)}
    lineage = {t: path for ontology in ontologies for t, path in ontology.lineage.items()}
    under, above = [], []
    for ontology in ontologies:
        below = np.zeros((len(ontology.terms), len(terms)))
        over = np.zeros_like(below)
        for c, own in enumerate(ontology.terms):
            below[c, [number[t] for t in ontology.lineage.get(own, ())]] = 1.0
            over[c, [number[t] for t, path in lineage.items() if own in path and t != own]] = 1.0
        under.append(below)
        above.append(over * ~below.any(axis=0))
    depths, names = (
        np.array([depth[t] for t in terms], dtype=np.float64),
        np.array([*terms, ""], dtype=object),
    )
    found = np.full(weights.shape[1], len(terms))
    for rows in blocks(weights.shape[1], 2**13):
        supported, judged = np.zeros((2, rows.stop - rows.start, len(terms)))
        for part, w, below, over in zip(parts, weights[:, rows], under, above, strict=True):
            supported += w[:, None] * (part.proba[rows] @ below)
            judged += w[:, None] * (1.0 - part.proba[rows] @ over)
        support = np.where(supported > 1e-6, supported / np.maximum(judged, 1e-6), 0.0)
        rank = np.where(support >= BAR - 1e-6, depths + 0.5 * np.minimum(support, 1.0), -1.0)
        found[rows] = np.where(rank.max(axis=1) >= 0, rank.argmax(axis=1), len(terms))
    return np.asarray(names[found], dtype=object)


def _disagreements(
    annotations: dict[str, Annotation],
    taken: npt.NDArray[np.int64],
    weights: Float64,
    best: npt.NDArray[np.int64],
    ontologies: Sequence[ClassOntology],
) -> pd.DataFrame:
    """Return the pairs of unrelated labels between the chosen reference and another with enough weight."""
    import pandas as pd

    names, parts = list(annotations), list(annotations.values())
    found: list[tuple[str, str, str, str, int]] = []
    for r, one in enumerate(parts):
        for s, other in enumerate(parts):
            related = _related(one.classes, ontologies[r], other.classes, ontologies[s])
            rows = np.flatnonzero((taken == r) & (s != r) & (weights[s] > 0))
            rows = rows[~related[best[r][rows], best[s][rows]]]
            pairs, n_cells = np.unique(np.stack([best[r][rows], best[s][rows]]), axis=1, return_counts=True)
            found += [
                (names[r], one.classes[a], names[s], other.classes[b], int(n))
                for (a, b), n in zip(pairs.T, n_cells, strict=True)
            ]
    columns = ["reference", "label", "other_reference", "other_label", "n_cells"]
    found.sort(key=lambda row: (-row[4], row))
    return pd.DataFrame(found, columns=columns)
