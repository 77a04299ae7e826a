"""``scvec pack``: write a reference to one file for sharing."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import InputError
from scvec.base.results import NextStep, Report, human_bytes
from scvec.base.types import Progress, no_progress
from scvec.model.card import CardOptions

if TYPE_CHECKING:
    from scvec.stores.store.manifest import ReferenceEntry
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["CardOptions", "PackReport", "pack"]

#: Least cells per label for a pack without cells: a mean of fewer would reveal single cells.
MIN_CELLS = 10
#: Prefixes of arrays with cells of the reference.
OF_CELLS = ("sample.", "probe.", "index.")


@dataclass(frozen=True, kw_only=True)
class PackReport(Report):
    """Result of ``pack``.

    Attributes
    ----------
    sha256
        SHA-256 of the file, for ``scvec pull https://...#sha256=``.
    """

    name: str
    output: str
    n_bytes: int
    sha256: str
    with_cells: bool
    n_cells: int
    n_golden: int

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        cells = f"{self.n_cells:,} cells" if self.with_cells else "no cells"
        return [
            f"packed reference '{self.name}' with {cells}: {human_bytes(self.n_bytes)}",
            f"check: {self.n_golden} cells, whose labels are compared when the pack is pulled",
            f"sha256 {self.sha256}",
            f"written to {self.output}",
        ]

    @property
    def next_step(self) -> NextStep:
        """What people run who get the file."""
        return NextStep(("pull", self.output), place="where the file is used")


def pack(
    store: Path | str,
    reference: str | None = None,
    *,
    output: Path | str,
    with_cells: bool = True,
    card: CardOptions | None = None,
    progress: Progress = no_progress,
) -> PackReport:
    """Write a reference to one file: model, card, golden query, and optionally its cells.

    Parameters
    ----------
    store
        Folder of the store.
    reference
        Name of the reference; may be omitted if the store has only one.
    output
        The file, usually ``NAME.scvec``.
    with_cells
        False removes every vector, profile and row of obs of a cell, for data that must not be shared. The
        head of the reference then annotates alone, with cell space, class means, calibration and thresholds.
    card
        Additional fields of the card.

    Raises
    ------
    InputError
        The reference does not exist, the output cannot be written, or a label has too few cells for a pack
        without cells.
    """
    from scvec.ingest.cells.write import check_output
    from scvec.model.card import card_of
    from scvec.model.golden import make_golden
    from scvec.stores.store.files import sha256_file, write_json, write_tensors
    from scvec.stores.store.manifest import FileEntry
    from scvec.stores.store.packs import PackManifest, write_pack
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store
    from scvec.workflows.query import only_reference

    target = check_output(output, None)
    opened = Store(store)
    stored = opened.reference(only_reference(opened, reference))
    progress("packing", 0, None)
    facts = card_of(stored, card or CardOptions(), with_cells=with_cells)
    with tempfile.TemporaryDirectory(prefix="scvec-pack-") as temporary:
        folder = Path(temporary)
        meta = _handed_on(stored.meta) | {"card": facts.to_dict()}
        entry, paths = _packed(folder, stored, meta, with_cells=with_cells)
        tensors, described = make_golden(StoredReference(_Source(paths), stored.name, entry))
        golden = (
            _put(folder, paths, "golden", "safetensors", lambda path: write_tensors(path, tensors)),
            _put(folder, paths, "golden", "json", lambda path: write_json(path, described)),
        )
        text = facts.markdown()
        manifest = PackManifest(
            name=stored.name,
            reference=entry,
            with_cells=with_cells,
            golden=golden,
            files={n: FileEntry(p.stat().st_size, sha256_file(p)) for n, p in paths.items()},
            card_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        size, sha256 = write_pack(target, manifest, text, paths)
    return PackReport(
        name=stored.name,
        output=str(target),
        n_bytes=size,
        sha256=sha256,
        with_cells=with_cells,
        n_cells=stored.n if with_cells else 0,
        n_golden=len(tensors["proba"]),
        notes=list(facts.gaps),
    )


def _handed_on(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON values of a reference without folders of this machine.

    The source of a pulled reference is removed too, because the new card records it.
    """
    named = {
        key: [{**file, "name": PurePath(str(file["name"])).name} for file in meta[key]]
        for key in ("sources", "appended")
        if key in meta
    }
    return {k: v for k, v in meta.items() if k != "pulled"} | named


def _packed(
    folder: Path, stored: StoredReference, meta: dict[str, Any], *, with_cells: bool
) -> tuple[ReferenceEntry, dict[str, Path]]:
    """Return the entry of the reference in the pack, and the paths of its files."""
    from scvec.stores.store.files import write_json
    from scvec.stores.store.store import Store

    if with_cells and stored.is_whole:
        entry = stored.entry
        paths = {name: stored.path_of(name) for name in entry.files() if name != entry.meta}
        name = _put(folder, paths, f"{stored.name}.meta", "json", lambda path: write_json(path, meta))
        return replace(entry, meta=name), paths
    # A temporary store, in which segments are merged and cells are left out.
    made = Store.open(folder / "store", create=True)
    parts = (
        {"meta": meta, "tensors": stored.tensors, "obs": stored.obs, "vectors": stored.vectors}
        if with_cells
        else _without_cells(stored, meta)
    )
    with made.begin("pack") as txn:
        txn.put_reference(stored.name, **parts)
        txn.commit()
    bare = made.reference(stored.name)
    return bare.entry, {name: bare.path_of(name) for name in bare.entry.files()}


def _put(
    folder: Path, paths: dict[str, Path], name: str, ending: str, write: Callable[[Path], object]
) -> str:
    """Write a file of the pack by ``write(path)``, and return its name in the pack."""
    from scvec.stores.store.files import content_name, os_errors, sha256_file

    path = folder / f"{name}.{ending}"
    with os_errors(folder):
        write(path)
    final = content_name(name, sha256_file(path), ending)
    paths[final] = path
    return final


def _without_cells(stored: StoredReference, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a reference with the mean vectors of its labels instead of cells."""
    import pandas as pd

    from scvec.model.gene_members import PREFIX, bare
    from scvec.model.storage import CODE_COLUMN

    few = [f"{label} ({n})" for label, n in stored.meta["counts"].items() if n < MIN_CELLS]
    if few:
        raise InputError(
            f"a pack without cells needs at least {MIN_CELLS} cells per label: " + ", ".join(few[:6]),
            stored.name,
            f"ingest the reference with --min-cells {MIN_CELLS}, or pack it with its cells",
        )
    classes = list(meta["classes"])
    names = pd.Index([f"mean of {label}" for label in classes], name="cell")
    label_key = str(meta["options"].get("label_key") or "cell_type")
    codes = np.arange(len(classes), dtype=np.int64)
    return {
        "meta": {k: v for k, v in meta.items() if k not in ("sample", "index", "appended", "deletions")}
        | {"without_cells": True},
        "tensors": {
            **{k: v for k, v in stored.tensors.items() if not k.startswith((*OF_CELLS, PREFIX))},
            **bare(stored.tensors, OF_CELLS),
        },
        "obs": pd.DataFrame({label_key: pd.Categorical(classes), CODE_COLUMN: codes}, index=names),
        "vectors": np.ascontiguousarray(stored.tensors["members.centers"], dtype=np.float32),
    }


class _Source:
    """Files of a pack by name, as the source of a reference."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def path_of(self, name: str) -> Path:
        """Return the path of a file."""
        return self._paths[name]
