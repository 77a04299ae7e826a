"""Looking into a store, proving it whole, taking things out and throwing things away."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvec.base.errors import ScvecError
from scvec.base.results import human_bytes
from scvec.base.types import Progress, no_progress
from scvec.workflows.reports import (
    Check,
    CompactReport,
    DoctorReport,
    InfoReport,
    ReferenceInfo,
    RmReport,
    SpaceInfo,
    VerifyReport,
)

if TYPE_CHECKING:
    from scvec.stores.store.store import Store
    from scvec.workflows.reports import DoctorReport

__all__ = ["compact", "doctor", "examine", "info", "rm", "verify"]

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
#: Disk that a first reference needs: knowledge base, vectors, working copies.
DISK = 500_000_000


def examine(store: Path | None) -> DoctorReport:
    """Run all checks; none of them changes anything."""
    return DoctorReport(checks=list(_checks(store)))


def _checks(store: Path | None) -> Iterator[Check]:
    python = platform.python_version()
    yield Check(
        name="python",
        ok=(3, 11) <= sys.version_info[:2] <= (3, 13),
        detail=f"{python} on {platform.system()} {platform.machine()}",
        fix="scvec is tested on Python 3.11 to 3.13",
    )
    yield _libraries()
    yield _guarded("cores and memory", _machine, "")
    yield _guarded("device", _device, "")
    yield _guarded("default model", _model, "pip install 'scvec[offline]'")
    if store is not None:
        yield _disk(store)
        yield _store(store)


def _guarded(name: str, look: Callable[[], str], fix: str) -> Check:
    try:
        return Check(name=name, ok=True, detail=look())
    except ScvecError as error:
        return Check(name=name, ok=False, detail=error.what, fix=error.fix or fix)
    except Exception as error:  # doctor's job is to say what is broken, whatever it is
        return Check(name=name, ok=False, detail=f"{type(error).__name__}: {error}", fix=fix)


def _libraries() -> Check:
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            # faiss-gpu brings the same module and replaces faiss-cpu
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
    return f"CPU (torch {torch.__version__} sees no GPU; none is needed)"


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
    from scvec.base.errors import InputError
    from scvec.stores.store.store import Store

    try:
        opened = Store(store)
    except InputError as error:
        return Check(name="store", ok=True, detail=f"{error.what}: {store}")
    except ScvecError as error:
        return Check(name="store", ok=False, detail=error.what, fix=error.fix)
    number = len(opened.generation.manifest.references)
    return Check(
        name="store", ok=True, detail=f"generation {opened.generation.number}, {number} references: {store}"
    )


#: Largest difference between a stored vector and a fresh one that is rounding and not another encoder.
PARITY = 1e-4


def info(store: Path | str, reference: str | None = None) -> InfoReport:
    """Say what is inside a store; with ``reference``, more about that one.

    Raises
    ------
    InputError
        If there is no store, or no reference of that name.
    """
    from scvec.stores.store.manifest import FORMAT
    from scvec.stores.store.store import Store

    opened = Store(store)
    names = [reference] if reference is not None else sorted(opened.generation.manifest.references)
    genes: dict[str, int] = {}
    if opened.generation.manifest.knowledge is not None:
        with opened.knowledge() as kb:
            counts = kb.counts()
        genes = {k.removeprefix("genes "): n for k, n in counts.items() if k.startswith("genes ")}
    return InfoReport(
        store=opened.path,
        generation=str(opened.generation.number),
        format_version=FORMAT,
        size_bytes=_size(opened.path),
        genes=genes,
        spaces=[
            SpaceInfo(
                fingerprint=fingerprint,
                backbone=space.space.backbone,
                dim=space.space.dim,
                n_genes=space.n,
                template=space.space.template,
            )
            for fingerprint, space in opened.spaces().items()
        ],
        references=[_reference_info(opened, name) for name in names],
        detailed=reference is not None,
    )


def verify(
    store: Path | str, *, device: str = "auto", llm: str | None = None, progress: Progress = no_progress
) -> VerifyReport:
    """Check every file of the current generation, and that encoders still give the vectors that are stored.

    Parameters
    ----------
    device, llm
        Where encoders compute, and where the language model of ``prompt`` references lies if it was moved.

    Raises
    ------
    InputError
        If there is no store.
    StoreError
        If not even the manifest can be read.
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
            if not problems:  # else it is the consequence of what was found already
                problems.append(f"reference {name!r}: {error.what}")
            continue
        if not parity[name] <= allowed:
            problems.append(
                f"reference {name!r}: its encoder differs by {parity[name]:.2g} from stored vectors"
            )
    return VerifyReport(
        store=opened.path,
        generation=str(found.generation),
        n_files=found.n_files,
        n_bytes=found.n_bytes,
        seconds=time.monotonic() - started,
        encoder_parity=parity,
        problems=problems,
        notes=[f"{len(found.unreferenced)} files of older generations: scvec compact removes them"]
        if found.unreferenced
        else [],
    )


def doctor(store: Path | str | None = None) -> DoctorReport:
    """Look at the machine, the libraries, the default model and the store."""
    from scvec.stores.store.store import expanded

    return examine(None if store is None else expanded(store))


def rm(store: Path | str, reference: str) -> RmReport:
    """Drop a reference. Its space is given back by :func:`compact`.

    Raises
    ------
    InputError
        If there is no such reference.
    LockedError
        If another process writes to the store.
    """
    from scvec.stores.store.store import Store

    opened = Store(store)
    opened.reference(reference)  # names those there are
    with opened.begin("rm", {"reference": reference}) as txn:
        txn.remove_reference(reference)
        generation = txn.commit()
    return RmReport(
        reference=reference,
        generation=str(generation.number),
        remaining=sorted(generation.manifest.references),
    )


def compact(store: Path | str) -> CompactReport:
    """Delete older versions and unused files; merge the segments of references.

    Raises
    ------
    LockedError
        If another process writes to the store.
    """
    from scvec.model.cell_index import merge_segments
    from scvec.stores.store.store import Store

    opened = Store(store)
    before = _size(opened.path)
    # Merging takes room, which a full disk has once the unused files are deleted.
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
            *(f"version {number} is kept: it is being read" for number in done.kept),
        ],
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
            "record": calibration["record"],
        },
    )


def _parity(opened: Store, name: str, device: str, llm: str | None) -> tuple[float, float]:
    """Return how far fresh vectors of a few cells are from the stored ones, and how far they may be.

    The largest difference of a number; for encoders that read with a model, whose rounding goes with device
    and precision, the largest cosine distance.
    """
    from scvec.model.storage import load_model, probe_cells

    stored = opened.reference(name)
    cells, rows = probe_cells(stored.tensors, len(stored.meta["genes"]))
    if not len(rows):  # they were dropped from the reference
        return 0.0, PARITY
    used = llm if stored.meta["model"]["encoder"].get("llm") else None
    encoder = load_model(stored, device=device, llm=used).members.encoder
    fresh, kept = encoder.encode(cells).astype(np.float64), np.asarray(stored.vectors[rows], dtype=np.float64)
    allowed = getattr(encoder, "parity", None)
    if allowed is None:
        return float(np.abs(fresh - kept).max()), PARITY
    lengths = np.linalg.norm(fresh, axis=1) * np.linalg.norm(kept, axis=1)
    return float((1.0 - (fresh * kept).sum(axis=1) / np.maximum(lengths, 1e-12)).max()), float(allowed)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
