"""Looking a generation over, byte by byte and number by number."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import ResourceError, ScvecError
from scvec.base.types import Float32, Progress, no_progress
from scvec.stores.index import build_index
from scvec.stores.index.distances import Index
from scvec.stores.store.files import check_file
from scvec.stores.store.generations import Generation
from scvec.stores.store.reference_reader import StoredReference, StoredSpace

__all__ = ["VerifyReport", "unreferenced_files", "verify_generation"]

SAMPLE_QUERIES = 16
SAMPLE_NEIGHBORS = 10
#: How much less an approximate index may find of sixteen sampled vectors than it does on average.
APPROXIMATE_SLACK = 0.2


@dataclass
class VerifyReport:
    """What a check of the store found.

    Attributes
    ----------
    generation
        Number of the generation looked at.
    n_files, n_bytes
        Files read, and their size.
    problems
        One line for each thing wrong; empty if all is well.
    unreferenced
        Names under ``files/`` that the generation does not use: older generations', or left by a killed
        writer. `compact` removes them.
    """

    generation: int
    n_files: int = 0
    n_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    unreferenced: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            "ok": self.ok,
            "generation": self.generation,
            "n_files": self.n_files,
            "n_bytes": self.n_bytes,
            "problems": list(self.problems),
            "unreferenced": list(self.unreferenced),
        }


def unreferenced_files(generation: Generation) -> list[str]:
    """Names under ``files/`` that the generation does not use, sorted."""
    try:
        names = set(os.listdir(generation.folder / "files"))
    except OSError:
        return []
    return sorted(names - set(generation.manifest.all_files()))


def verify_generation(generation: Generation, *, progress: Progress = no_progress) -> VerifyReport:
    """Read every file whole and check that what is in them belongs together.

    Sizes and SHA-256; vectors, tables and indices of one length; index and vectors hold the same numbers; the
    nearest neighbours of sampled rows by the index are those by brute force; the knowledge base
    opens and has the digest noted.
    """
    report = VerifyReport(generation.number)
    manifest = generation.manifest
    damaged: set[str] = set()
    files = sorted(manifest.all_files().items())
    for done, (name, entry) in enumerate(files):
        progress("checking files", done, len(files))
        report.n_files += 1
        report.n_bytes += entry.n_bytes
        path = generation.folder / "files" / name
        if not _tried(report, lambda p=path, e=entry: check_file(p, e.n_bytes, e.sha256, fresh=True)):  # type: ignore[misc]
            damaged.add(name)
    progress("checking files", len(files), len(files))

    for fingerprint, space in manifest.spaces.items():
        if not damaged.intersection(space.files()):
            stored_space = StoredSpace(generation, space)
            _tried(report, lambda s=stored_space, f=fingerprint: _check_space(report, s, f))  # type: ignore[misc]
    for name, reference in manifest.references.items():
        if not damaged.intersection(reference.files()):
            stored = StoredReference(generation, name, reference)
            _tried(report, lambda s=stored: _check_reference(report, s))  # type: ignore[misc]
    if manifest.knowledge is not None and manifest.knowledge.file not in damaged:
        _tried(report, lambda: _check_knowledge(report, generation))
    report.unreferenced = unreferenced_files(generation)
    return report


def _tried(report: VerifyReport, check: Callable[[], object]) -> bool:
    try:
        check()
    except ResourceError:
        raise
    except ScvecError as error:
        report.problems.append(f"{error.what}: {Path(error.where).name}" if error.where else error.what)
        return False
    except Exception as error:  # a file that passed its checksum yet cannot be read is a finding, not a crash
        report.problems.append(f"unreadable ({type(error).__name__}: {error})")
        return False
    return True


def _check_space(report: VerifyReport, stored: StoredSpace, fingerprint: str) -> None:
    where = f"space {fingerprint}"
    if stored.genes["gene_id"].duplicated().any():
        report.problems.append(f"{where}: a gene is there twice")
    _check_index(report, stored.index, stored.vectors, where)


def _check_reference(report: VerifyReport, stored: StoredReference) -> None:
    _ = (stored.meta, stored.tensors, stored.obs, stored.index)
    for i, (index, vectors) in enumerate(stored.segments()):
        _check_index(report, index, vectors, f"reference {stored.name}" + (f", segment {i}" if i else ""))


def _check_index(report: VerifyReport, index: Index, vectors: Float32, where: str) -> None:
    n = len(vectors)
    held = index.vectors()
    for start in range(0, n, 65536):
        stop = min(n, start + 65536)
        if not np.isfinite(vectors[start:stop]).all():
            report.problems.append(f"{where}: a vector holds NaN or infinity")
            return
        if not np.array_equal(held[start:stop], vectors[start:stop]):
            report.problems.append(f"{where}: the index holds other vectors than the vector file")
            return
    if n == 0:
        return
    rows = np.unique(np.linspace(0, n - 1, num=min(n, SAMPLE_QUERIES)).astype(np.int64))
    queries = np.ascontiguousarray(vectors[rows])
    if not index.is_exact:
        _check_approximate(report, index, queries, where)
        return
    found = index.search(queries, min(n, SAMPLE_NEIGHBORS))
    oracle = build_index(np.asarray(vectors), "numpy").search(queries, min(n, SAMPLE_NEIGHBORS))
    same = np.array_equal(found.indices, oracle.indices) and np.array_equal(found.distances, oracle.distances)
    if not same:
        report.problems.append(f"{where}: the index finds other neighbours than brute force")


def _check_approximate(report: VerifyReport, index: Any, queries: Float32, where: str) -> None:
    """Vectors find themselves, and not many fewer neighbours than were found when the index was made.

    By distances, not by rows: of cells that are there many times any one will do.
    """
    k = min(index.n, SAMPLE_NEIGHBORS)
    found, truth = index.search(queries, k).distances, index.exact().search(queries, k).distances
    hits = float((found <= truth[:, -1:]).mean())
    if (
        hits < index.settings.recall.get("at_15", 1.0) - APPROXIMATE_SLACK
        or (found[:, 0] > truth[:, 0]).any()
    ):
        report.problems.append(f"{where}: the index finds {hits:.0%} of the neighbours of its own vectors")


def _check_knowledge(report: VerifyReport, generation: Generation) -> None:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

    entry = generation.manifest.knowledge
    if entry is None:
        return
    with KnowledgeBase.open(generation.folder / "files" / entry.file, read_only=True) as kb:
        if kb.digest() != entry.digest:
            report.problems.append("the knowledge base has another content than was stored")
        if kb.schema_version != entry.schema_version:
            report.problems.append("the knowledge base has another schema than was stored")
