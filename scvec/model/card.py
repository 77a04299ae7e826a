"""The card of a reference: its sources, cells, accuracy and known failures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from scvec import __version__
from scvec.base.errors import InputError
from scvec.base.results import count_text

if TYPE_CHECKING:
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["Card", "CardOptions", "card_of", "n_changes", "state_of"]

#: A label with a recall on held-out cells below this is a known failure.
WEAK = 0.7
MAX_TEXT = 2000
#: What people read for the units that were held out.
HELD_OUT = {"batch": "batches", "cells": "cells of the same batches"}
#: Remark of a card if the cells changed after the accuracy was measured.
MEASURED_BEFORE = "accuracy, calibration and recall of each label were measured before"
#: Fields of a card -> keys of the origin of a reference (`scvec ingest census`).
OF_ORIGIN = {"sources": "citations", "license": "license", "tissue": "tissue"}


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """Fields of the card of a pack that the user gives.

    Attributes
    ----------
    license
        SPDX name of the licence of the data, such as ``CC-BY-4.0``.
    sources
        Sources of the data: DOIs, addresses or citations.
    tissue, assay
        Tissue and assay of the cells. Default: from columns of obs with these names.
    notes
        Known failures, as text.
    """

    license: str = ""
    sources: tuple[str, ...] = ()
    tissue: str = ""
    assay: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.license, self.tissue, self.assay, *self.sources, *self.notes):
            if len(text) > MAX_TEXT or not text.isprintable():
                raise InputError(
                    f"a text of the card may have one line of {MAX_TEXT:,} characters",
                    text[:60],
                    "shorten it",
                )


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about a reference that are included in its pack.

    Attributes
    ----------
    labels
        For each label: cells, donors (None if unknown), Cell Ontology id, recall on held-out cells, and the
        most frequent wrong label.
    held_out
        Units held out to measure accuracy and calibration: batches, cells or none.
    derived_from
        Packs that it was pulled from, the latest last: ``name``, ``sha256`` of the file and version of
        ``scvec`` that wrote it.
    changed
        Changes of its cells since the ingest: ``what`` (appended or deleted), ``cells``, ``labels`` and
        ``date``, for appended cells also ``source``. The condition for deleted cells is not included, because
        it may contain the name of a person. All scores on held-out cells were measured before.
    gaps
        Recommended fields that are missing.
    """

    name: str
    license: str
    sources: list[str]
    species: str
    tissue: str
    assay: str
    n_cells: int
    with_cells: bool
    labels: list[dict[str, Any]]
    encoder: str
    n_genes: int
    embed_dim: int
    accuracy: float | None
    macro_f1: float | None
    ece: float | None
    held_out: str
    failures: list[str]
    files: list[str]
    scvec: str
    derived_from: list[dict[str, Any]] = field(default_factory=list)
    changed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def gaps(self) -> list[str]:
        """Return notes about missing fields that users of the pack need."""
        found = []
        if not self.license:
            found.append("the card has no licence: give --license")
        if not self.sources:
            found.append("the card has no source to cite: give --source")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def markdown(self) -> str:
        """Return the card as Markdown with a YAML header, in the format of the Hugging Face hub."""
        import yaml

        header = {
            "license": self.license or "unknown",
            "library_name": "scvec",
            "tags": ["single-cell", "RNA-seq", "cell type annotation"],
            "name": self.name,
            "species": self.species,
            "tissue": self.tissue or "not stated",
            "assay": self.assay or "not stated",
            "sources": self.sources,
            "cells": self.n_cells,
            "with_cells": self.with_cells,
            "labels": [
                {k: v for k, v in label.items() if v is not None and v != ""} for label in self.labels
            ],
            "space": {"encoder": self.encoder, "genes": self.n_genes, "dimensions": self.embed_dim},
            "held_out": {
                "what": self.held_out,
                "accuracy": self.accuracy,
                "macro_f1": self.macro_f1,
                "calibration_error": self.ece,
                **({"measured": MEASURED_BEFORE} if self.changed else {}),
            },
            "known_failures": self.failures,
            "derived_from": self.derived_from,
            "changed": self.changed,
            "scvec": self.scvec,
        }
        text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100)
        return f"---\n{text}---\n\n" + "\n".join(self.lines(head="# ")) + "\n"

    def lines(self, head: str = "") -> list[str]:
        """Return the card as lines of text."""
        lines = [
            f"{head}{self.name}",
            "",
            f"A reference of {self.species}{' ' + self.tissue if self.tissue else ''} for scvec: "
            f"{self.n_cells:,} cells of {len(self.labels)} types"
            + (f" ({self.assay})" if self.assay else "")
            + ("." if self.with_cells else "; the cells are not included."),
            "",
            f"Licence: {self.license or 'not stated'}",
        ]
        if self.sources:
            lines += ["Cite:", *[f"- {source}" for source in self.sources]]
        if self.accuracy is not None:
            lines.append(
                f"On held-out {HELD_OUT.get(self.held_out, self.held_out)}: accuracy {self.accuracy:.3f}, "
                f"macro-F1 {self.macro_f1:.3f}, calibration error {self.ece:.3f}"
            )
        lines.append("")
        lines += [f"- {_label_line(label)}" for label in self.labels]
        if self.failures:
            lines += ["", "Known failures:", *[f"- {text}" for text in self.failures]]
        for pack in self.derived_from:
            origin = f"{pack['name']}, sha256 {pack['sha256']}, packed by scvec {pack['scvec']}"
            lines += ["", f"Derived from: {origin}"]
        if self.changed:
            lines += ["", f"Changed since then ({MEASURED_BEFORE}):"]
            lines += [f"- {_change_line(change)}" for change in self.changed]
        # A card may come from a stranger, so terminal codes are removed.
        return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def card_of(stored: StoredReference, options: CardOptions | None = None, *, with_cells: bool = True) -> Card:
    """Return the card of a reference, from the card of its pack and the results of the ingest."""
    asked = options or CardOptions()
    meta = stored.meta
    origin: dict[str, Any] = meta["origin"] if isinstance(meta.get("origin"), dict) else {}
    known = {name: origin[key] for name, key in OF_ORIGIN.items() if key in origin}
    before: dict[str, Any] = {**known, **(meta["card"] if isinstance(meta.get("card"), dict) else {})}
    pulled: dict[str, Any] = meta.get("pulled", {})
    record = (meta.get("beside") or meta["model"])["calibration"].get("record", {})
    per_label = record.get("labels") or [{}] * len(meta["classes"])
    ontology = dict(zip(meta["classes"], meta.get("ontology", {}).get("terms", []), strict=False))
    donors = _donors(stored)
    labels = []
    failures = [*asked.notes]
    for label, found in zip(meta["classes"], per_label, strict=False):
        recall, code = found.get("recall"), found.get("taken_for")
        other = None if code is None else meta["classes"][int(code)]
        if recall is not None and recall < WEAK:
            confused = f"; most others get the label {other}" if other else ""
            failures.append(f"{label}: recall {recall:.0%} on held-out cells{confused}")
        labels.append(
            {
                "label": label,
                "cells": int(meta["counts"].get(label, 0)),
                "donors": donors.get(label),
                "cl_id": str(ontology.get(label) or ""),
                "recall": None if recall is None else round(float(recall), 3),
                "taken_for": other,
            }
        )
    return Card(
        name=stored.name,
        license=asked.license or str(before.get("license", "")),
        sources=list(asked.sources) or [str(s) for s in before.get("sources", [])],
        species=" and ".join(
            dict.fromkeys(
                [
                    *meta.get("species_cells", [meta["species"]]),
                    *(a["species"] for a in meta.get("appended", [])),
                ]
            )
        ),
        tissue=asked.tissue or str(before.get("tissue", "")) or _one(stored, "tissue"),
        assay=asked.assay or str(before.get("assay", "")) or _one(stored, "assay"),
        n_cells=int(before.get("n_cells", stored.n)) if meta.get("without_cells") else stored.n,
        with_cells=with_cells and not meta.get("without_cells"),
        labels=labels,
        encoder=str(meta["model"]["encoder"]["name"]),
        n_genes=len(meta.get("vector_genes", meta["genes"])),
        embed_dim=stored.dim,
        accuracy=_rounded(record.get("accuracy")),
        macro_f1=_rounded(record.get("macro_f1")),
        ece=_rounded(record.get("ece")),
        held_out=str(meta["model"]["calibration"].get("held_out", "none")),
        failures=failures or [str(f) for f in before.get("failures", [])],
        files=[PurePath(str(s.get("name", ""))).name for s in meta.get("sources", [])],
        scvec=__version__,
        derived_from=[*before.get("derived_from", []), *([pulled["pack"]] if pulled else [])],
        changed=[*before.get("changed", []), *_changes(meta, int(pulled.get("n_changes", 0)))],
    )


def n_changes(meta: Mapping[str, Any]) -> int:
    """Return how many times cells were appended or deleted."""
    return len(meta.get("appended", [])) + len(meta.get("deletions", []))


def state_of(meta: Mapping[str, Any]) -> str:
    """Return a hash of the JSON values of a reference, which changes with its cells, labels and terms."""
    kept = {key: value for key, value in meta.items() if key not in ("pulled", "index")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _changes(meta: Mapping[str, Any], known: int) -> list[dict[str, Any]]:
    """Return the changes of the cells of a reference by date, without the first ``known`` changes."""
    appended = [
        {"what": "appended", "source": PurePath(a["name"]).name, "cells": a["n_cells"]}
        | {"labels": a.get("labels", {}), "date": a.get("date", "")}
        for a in meta.get("appended", [])
    ]
    deleted = [
        {"what": "deleted", "cells": d["n_cells"], "labels": d["labels"], "date": d["date"]}
        for d in meta.get("deletions", [])
    ]
    return sorted([*appended, *deleted], key=lambda change: str(change["date"]))[known:]


def _change_line(change: Mapping[str, Any]) -> str:
    of = f" of {change['source']}" if change.get("source") else ""
    labels = ", ".join(f"{label} {n:,}" for label, n in change.get("labels", {}).items())
    day = str(change.get("date", ""))[:10]
    when = f" on {day}" if day else ""
    return f"{change['cells']:,} cells{of} {change['what']}{when}" + (f" ({labels})" if labels else "")


def _donors(stored: StoredReference) -> dict[str, int]:
    """Return the number of batches of each label, if the reference was ingested with a batch key."""
    key = stored.meta["options"].get("batch_key")
    if not key or key not in stored.obs.columns:
        return {}
    from scvec.model.storage import CODE_COLUMN

    found = stored.obs.groupby(CODE_COLUMN, observed=True)[key].nunique()
    classes = stored.meta["classes"]
    return {classes[int(code)]: int(n) for code, n in found.items() if int(code) >= 0}


def _one(stored: StoredReference, column: str) -> str:
    """Return the values of a column of obs, at most three."""
    if column not in stored.obs.columns:
        return ""
    values = sorted({str(v) for v in stored.obs[column].dropna().unique()})
    return ", ".join(values) if 0 < len(values) <= 3 else ""


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def _label_line(label: dict[str, Any]) -> str:
    parts = [f"{label['label']}: {label['cells']:,} cells"]
    if label["donors"]:
        parts.append(count_text(label["donors"], "donor"))
    if label["cl_id"]:
        parts.append(label["cl_id"])
    if label["recall"] is not None:
        parts.append(f"recall {label['recall']:.0%}")
    return ", ".join(parts)
