"""``scvec labels``: show and change the Cell Ontology terms of the labels of a reference."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, did_you_mean
from scvec.base.results import Record, Report

if TYPE_CHECKING:
    from scvec.celltypes.terms import Match
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.store import Store

__all__ = ["LabelTerm", "LabelsReport", "labels"]

#: Kind of match -> text in the report.
WAYS = {
    "label": "its label",
    "synonym": "a synonym",
    "plural": "its name, except for case, plural or 'cell'",
    "tissue": "the meaning of the word in this tissue",
    "spelling": "a common spelling",
    "broader": "broader: without markers or states",
    "text": "GUESSED from similar text",
    "column": "an id in obs",
    "hand": "set by hand",
    "no cell type": "no cell type",
    "": "none found",
}


@dataclass(frozen=True, kw_only=True)
class LabelTerm(Record):
    """A label of a reference and its term.

    Attributes
    ----------
    cl_id, cl_name
        Cell Ontology term; empty for a label without a term.
    how
        Kind of match (:class:`scvec.celltypes.terms.Match`); ``text`` is a guess.
    confidence
        Confidence in the term, 0 to 1.
    """

    label: str
    n_cells: int
    cl_id: str
    cl_name: str
    how: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class LabelsReport(Report):
    """Terms of the labels of a reference. ``changed`` lists the labels that were set or unset now."""

    reference: str
    generation: int
    labels: list[LabelTerm]
    changed: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        with_term = sum(bool(row.cl_id) for row in self.labels)
        lines = [
            f"reference '{self.reference}': {with_term} of {len(self.labels)} labels have a term of the Cell "
            f"Ontology"
        ]
        one = max(len("label"), *(len(row.label) for row in self.labels))
        two = max(len("name"), *(len(row.cl_name) for row in self.labels))
        lines.append(f"  {'label':<{one}}  {'cells':>7}  {'term':<10}  {'name':<{two}}  sure  how")
        for row in self.labels:
            sure = f"{row.confidence:.2f}" if row.cl_id else ""
            how = WAYS.get(row.how, row.how)
            lines.append(
                f"  {row.label:<{one}}  {row.n_cells:>7,}  {row.cl_id or '-':<10}  {row.cl_name:<{two}}  "
                f"{sure:<4}  {how}"
            )
        if self.changed:
            lines.append(f"changed: {', '.join(self.changed)}; the store now has version {self.generation}")
        return lines


def labels(
    store: Path | str, reference: str, *, set: Mapping[str, str] | None = None, unset: Collection[str] = ()
) -> LabelsReport:
    """Return the Cell Ontology term of each label of a reference, after optional changes.

    A change makes a new version of the store. Cells, vectors, model and annotated files do not change. If the
    reference is ingested again, the terms are matched again.

    Parameters
    ----------
    store
        Folder of the store.
    reference
        Name of the reference.
    set
        Label -> Cell Ontology id, such as ``{"B": "CL:0000236"}``.
    unset
        Labels whose terms are removed.

    Raises
    ------
    InputError
        If the reference, label or term does not exist.
    LockedError
        If another process writes to the store.
    """
    from scvec.celltypes.terms import ClassOntology, Match, class_ontology
    from scvec.stores.store.store import Store

    opened = Store(store)
    stored = opened.reference(reference)
    if not set and not unset:
        return _report(opened, reference)
    classes = [str(c) for c in stored.meta["classes"]]
    wanted = dict(set or {})
    for label in [*wanted, *unset]:
        if label not in classes:
            raise InputError(
                f"the reference has no label {label!r}",
                reference,
                _near(label, classes),
                code="unknown-label",
            )
        if label in wanted and label in unset:
            what = f"{label!r} is both set and unset"
            raise InputError(what, "scvec labels", "give it only once", code="usage")
    old = ClassOntology.from_dict(stored.meta["ontology"])
    with opened.knowledge() as kb:
        found = {}
        for i, label in enumerate(classes):
            found[label] = _match_of(old, i)
            if label in wanted:
                found[label] = _checked(kb, wanted[label])
            elif label in unset:
                found[label] = Match(how="hand", confidence=1.0)
        ontology = class_ontology(kb, classes, found)
    params = {"name": reference, "set": wanted, "unset": sorted(unset)}
    with opened.begin("labels", params) as txn:
        now = txn.reference(reference)
        if now is None or now.meta != stored.meta:
            what = f"another process changed the reference {reference!r} meanwhile"
            raise InputError(what, str(opened.path), "run the same command again", code="store-changed")
        txn.put_meta(reference, {**stored.meta, "ontology": ontology.to_dict()})
        txn.commit()
    return _report(opened, reference, changed=[*wanted, *sorted(unset)])


def _match_of(ontology: Any, number: int) -> Match:
    """Return the term of class ``number`` of a reference."""
    from scvec.celltypes.terms import Match

    cl_id = ontology.terms[number]
    return Match(cl_id, ontology.names.get(cl_id, ""), ontology.how[number], ontology.confidence[number])


def _checked(kb: KnowledgeBase, cl_id: str) -> Match:
    from scvec.celltypes.terms import Match

    text = cl_id.strip().upper().replace("_", ":")
    if not re.fullmatch(r"CL:\d{7}", text):
        raise InputError(
            f"{cl_id!r} is not a Cell Ontology id",
            "--set",
            "write it like CL:0000236; see https://www.ebi.ac.uk/ols4",
            code="bad-name",
        )
    name = kb.cl_label(text)
    if name == text:
        raise InputError(
            f"the Cell Ontology has no term {text}",
            "--set",
            "look it up: https://www.ebi.ac.uk/ols4",
            code="bad-name",
        )
    return Match(text, name, "hand", 1.0)


def _report(store: Store, reference: str, changed: list[str] | None = None) -> LabelsReport:
    from scvec.celltypes.terms import ClassOntology

    meta = store.reference(reference).meta
    ontology = ClassOntology.from_dict(meta["ontology"])
    rows = []
    for i, label in enumerate(meta["classes"]):
        match = _match_of(ontology, i)
        rows.append(
            LabelTerm(
                label=str(label),
                n_cells=int(meta["counts"].get(label, 0)),
                cl_id=match.cl_id,
                cl_name=match.name,
                how=match.how,
                confidence=match.confidence,
            )
        )
    rows.sort(key=lambda row: (-row.n_cells, row.label))
    return LabelsReport(
        reference=reference, generation=store.generation.number, labels=rows, changed=changed or []
    )


def _near(name: str, known: list[str]) -> str:
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"{did_you_mean(name, known, 2)}labels: {listed}"
