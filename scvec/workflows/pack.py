"""``scvec pack``: a reference as one file that can be handed on."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.results import Report, human_bytes
from scvec.base.types import Progress, no_progress
from scvec.model.card import CardOptions

if TYPE_CHECKING:
    import pandas as pd

    from scvec.stores.store.manifest import FileEntry, ReferenceEntry
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["CardOptions", "PackReport", "pack"]

#: Without cells, a label's mean must be of at least as many: fewer would show single cells.
MIN_CELLS = 10
#: Arrays that hold cells of the reference.
OF_CELLS = ("sample.", "probe.")


@dataclass(frozen=True, kw_only=True)
class PackReport(Report):
    """A pack that was written.

    Attributes
    ----------
    sha256
        Of the whole file: what ``scvec pull https://...#sha256=`` is given.
    """

    name: str
    output: str
    n_bytes: int
    sha256: str
    with_cells: bool
    n_cells: int
    n_golden: int

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        cells = f"{self.n_cells:,} cells" if self.with_cells else "no cells"
        return [
            f"packed reference '{self.name}' with {cells}: {human_bytes(self.n_bytes)}",
            f"golden query: {self.n_golden} cells whose answers are checked when the pack is pulled",
            f"sha256 {self.sha256}",
            f"written to {self.output}",
        ]


def pack(
    store: Path | str,
    reference: str | None = None,
    *,
    output: Path | str,
    with_cells: bool = True,
    card: CardOptions | None = None,
    progress: Progress = no_progress,
) -> PackReport:
    """Write a reference as one file: model, card, golden query, and its cells if wanted.

    Parameters
    ----------
    store
        Folder of the store.
    reference
        Name of the reference; may be left out where the store has one.
    output
        The file, by custom ``NAME.scvec``.
    with_cells
        False leaves out every vector, profile and row of obs of a cell: the head of the reference then
        annotates alone, with its cell space, mean cells, calibration and thresholds. For data that may not
        be handed on.
    card
        What the card says besides what the reference knows.

    Raises
    ------
    InputError
        There is no such reference, the output cannot be written, or a label has too few cells to be packed
        without cells.
    """
    from scvec.ingest.cells.write import check_output
    from scvec.model.card import card_of
    from scvec.model.golden import make_golden
    from scvec.stores.store.packs import PackManifest, write_pack
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store
    from scvec.workflows.query import only_reference

    target = check_output(output, None)
    opened = Store(store)
    stored = opened.reference(only_reference(opened, reference))
    progress("packing", 0, None)
    facts = card_of(stored, card or CardOptions(), with_cells=with_cells)
    with tempfile.TemporaryDirectory(prefix="scvec-pack-") as folder:
        staged = _Staged(Path(folder))
        entry = _entry(staged, stored, {**stored.meta, "card": facts.to_dict()}, with_cells=with_cells)
        tensors, described = make_golden(StoredReference(staged, stored.name, entry))
        golden = (staged.put_tensors("golden", tensors), staged.put_json("golden", described))
        text = facts.markdown()
        manifest = PackManifest(
            name=stored.name,
            reference=entry,
            with_cells=with_cells,
            golden=golden,
            files=staged.entries,
            card_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        size, sha256 = write_pack(target, manifest, text, staged.paths)
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


def _entry(
    staged: _Staged, stored: StoredReference, meta: dict[str, Any], *, with_cells: bool
) -> ReferenceEntry:
    """Stage the files of a reference; return the entry that names them."""
    from scvec.stores.store.reference_reader import new_reference

    if with_cells and stored.is_whole:
        entry = stored.entry
        for name in entry.files():
            if name != entry.meta:
                staged.take(name, stored.path_of(name))
        return replace(entry, meta=staged.put_json(f"{stored.name}.meta", meta))
    if with_cells:
        return new_reference(
            staged,
            stored.name,
            meta=meta,
            tensors=stored.tensors,
            obs=stored.obs,
            vectors=stored.vectors,
            index=None,
        )
    return _without_cells(staged, stored, meta)


def _without_cells(staged: _Staged, stored: StoredReference, meta: dict[str, Any]) -> ReferenceEntry:
    """Stage a reference whose rows are the mean vectors of its labels."""
    import pandas as pd

    from scvec.model.storage import CODE_COLUMN
    from scvec.stores.store.reference_reader import new_reference

    classes = list(meta["classes"])
    few = [f"{label} ({n})" for label, n in stored.meta["counts"].items() if n < MIN_CELLS]
    if few:
        raise InputError(
            f"without cells every label needs at least {MIN_CELLS}, or its mean shows single cells: "
            + ", ".join(few[:6]),
            stored.name,
            f"ingest it with --min-cells {MIN_CELLS}, or pack it with its cells",
        )
    tensors = {k: v for k, v in stored.tensors.items() if not k.startswith(OF_CELLS)}
    left = {k: v for k, v in meta.items() if k not in ("sample", "index", "appended")}
    codes = np.arange(len(classes), dtype=np.int64)
    names = pd.Index([f"mean of {label}" for label in classes], name="cell")
    label_key = str(meta["options"].get("label_key") or "cell_type")
    obs = pd.DataFrame({label_key: pd.Categorical(classes), CODE_COLUMN: codes}, index=names)
    vectors = np.ascontiguousarray(stored.tensors["members.centers"], dtype=np.float32)
    left["without_cells"] = True
    return new_reference(
        staged, stored.name, meta=left, tensors=tensors, obs=obs, vectors=vectors, index=None
    )


class _Staged:
    """Files of a pack before they are put together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.paths: dict[str, Path | bytes] = {}
        self.entries: dict[str, FileEntry] = {}

    def path_of(self, name: str) -> Path:
        """Return the path of a file."""
        path = self.paths[name]
        if isinstance(path, bytes):
            raise KeyError(name)
        return path

    def take(self, name: str, path: Path) -> None:
        """Name a file of the store, which stays where it is."""
        from scvec.stores.store.files import sha256_file
        from scvec.stores.store.manifest import FileEntry

        self.paths[name], self.entries[name] = path, FileEntry(path.stat().st_size, sha256_file(path))

    def put_file(self, name: str, ext: str, write: Callable[[Path], None]) -> str:
        """Let ``write(path)`` write a file; return the name it has in the pack."""
        from scvec.stores.store.files import content_name, os_errors, sha256_file

        path = self._folder / f"{len(self.paths)}.{ext}"
        with os_errors(self._folder):
            write(path)
        final = content_name(name, sha256_file(path), ext)
        self.take(final, path)
        return final

    def put_tensors(self, name: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
        """Write named arrays."""
        from scvec.stores.store.tensors import write_tensors

        return self.put_file(name, "safetensors", lambda path: write_tensors(path, tensors))

    def put_table(self, name: str, table: pd.DataFrame) -> str:
        """Write a table."""
        from scvec.stores.store.tensors import write_table

        def write(path: Path) -> None:
            write_table(path, table)

        return self.put_file(name, "parquet", write)

    def put_json(self, name: str, value: Mapping[str, Any]) -> str:
        """Write JSON values."""
        from scvec.stores.store.tensors import write_json

        return self.put_file(name, "json", lambda path: write_json(path, dict(value)))
