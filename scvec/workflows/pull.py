"""``scvec pull``: a reference that somebody packed, into a store."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, StoreError
from scvec.base.results import Report, Stages, times_line
from scvec.base.types import Progress, no_progress

if TYPE_CHECKING:
    from scvec.ingest.sources.download import Address
    from scvec.stores.store.packs import PackReader
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.transaction import Transaction

__all__ = ["PullReport", "pull", "shipped_packs"]

#: Environment variable: a folder or an address that has packs by name, for machines without the network.
MIRROR = "SCVEC_MIRROR"


@dataclass(frozen=True, kw_only=True)
class PullReport(Report):
    """A reference that was pulled.

    Attributes
    ----------
    source
        Where it came from.
    card
        Its card, as lines.
    n_golden
        Cells whose answers were checked.
    """

    name: str
    source: str
    n_cells: int
    with_cells: bool
    n_labels: int
    n_golden: int
    card: list[str]
    generation: str
    seconds: dict[str, float]

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        return [
            *self.card,
            "",
            f"pulled reference '{self.name}' from {self.source}",
            f"golden query: {self.n_golden} answers as they must be",
            f"times: {times_line(self.seconds)}",
            f"next: scvec query NEW.h5ad --reference {self.name} -o annotated.h5ad",
        ]


def pull(
    store: Path | str,
    source: Path | str,
    *,
    name: str | None = None,
    trust: bool = False,
    max_bytes: int | None = None,
    progress: Progress = no_progress,
) -> PullReport:
    """Put a packed reference into a store, once everything about it was checked.

    Every byte is compared with its checksum, then the golden query is run: the cells that came with the
    pack must get the answers that they got where it was packed. Only then the store changes, at once.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    source
        A file; ``https://...#sha256=HEX``; ``hf:OWNER/NAME@COMMIT[:FILE]``; or the name of a reference that
        ships with scvec. ``SCVEC_MIRROR`` names a folder or an address that is asked first.
    name
        What the reference is called here; as it was where it was packed by default.
    trust
        Also take an address without a hash or a commit.
    max_bytes
        The largest file that is downloaded.

    Raises
    ------
    InputError
        There is no such pack, or an address has no hash.
    NetworkError
        It cannot be downloaded.
    StoreError
        The pack is damaged, was made to do harm, or does not give the answers that it must.
    """
    from scvec.model.card import card_of
    from scvec.model.golden import check_golden
    from scvec.model.resolvers import ensure_knowledge
    from scvec.stores.store.files import check_reference_name
    from scvec.stores.store.packs import PackReader
    from scvec.stores.store.store import Store

    stages = Stages()
    with ExitStack() as stack:
        path, told = stack.enter_context(_located(str(source), trust, max_bytes, progress))
        pack = stack.enter_context(PackReader(path))
        called = name or pack.manifest.name
        check_reference_name(called)
        opened = Store.open(store, create=True)
        txn = stack.enter_context(opened.begin("pull", {"source": told, "name": called}))
        replaced = txn.reference(called) is not None
        with stages("check"):
            stored, golden, described = _staged(txn, pack, called)
        with stages("golden query"):
            n_golden = check_golden(stored, golden, described)
        with stages("knowledge"):
            kb = txn.open_knowledge()
            ensure_knowledge(kb, progress=progress)
            notes = _notes(stored.meta, set(kb.genes()["gene_id"]))
        if replaced:
            notes.append(f"reference {called!r} was there and is replaced")
        card, n_labels, n = card_of(stored).lines(), len(stored.meta["classes"]), stored.n
        generation = txn.commit()
        with_cells = pack.manifest.with_cells
    return PullReport(
        name=called,
        source=told,
        n_cells=n if with_cells else 0,
        with_cells=with_cells,
        n_labels=n_labels,
        n_golden=n_golden,
        card=card,
        generation=str(generation.number),
        seconds=stages.seconds,
        notes=notes,
    )


def _staged(
    txn: Transaction, pack: PackReader, name: str
) -> tuple[StoredReference, dict[str, Any], dict[str, Any]]:
    """Copy the files of a pack into a transaction, checked.

    Returns
    -------
    The reference under the name that it has here, and arrays and JSON values of its golden query.
    """
    from scvec.stores.store.files import read_tensors

    renamed: dict[str, str] = {}
    entry = pack.manifest.reference
    for file in entry.files():
        stem, _, ending = file.rpartition(".")
        part = stem.rpartition("-")[0].removeprefix(f"{pack.manifest.name}.")
        renamed[file] = txn.put_file(f"{name}.{part}", ending, _copying(pack, file))
    moved = replace(
        entry,
        meta=renamed[entry.meta],
        tensors=renamed[entry.tensors],
        obs=renamed[entry.obs],
        vectors=renamed[entry.vectors],
        index=renamed[entry.index],
    )
    txn.adopt_reference(name, moved)
    stored = txn.reference(name)
    if stored is None or not entry.is_whole:
        raise StoreError("the pack holds no whole reference", str(pack.path))
    golden = txn.put_file("golden", "safetensors", _copying(pack, pack.manifest.golden[0]))
    try:
        described = json.loads(pack.read(pack.manifest.golden[1]))
    except (ValueError, RecursionError) as error:
        raise StoreError("the golden query of the pack cannot be read", str(pack.path)) from error
    return stored, read_tensors(txn.path_of(golden)), described


def _copying(pack: PackReader, file: str) -> Any:
    return lambda path: pack.copy(file, path)


def _notes(meta: dict[str, Any], known: set[str]) -> list[str]:
    notes = []
    genes = [str(g) for g in meta["all_genes"]]
    unknown = 0 if meta["model"]["encoder"]["name"] == "obsm" else sum(gene not in known for gene in genes)
    if unknown:
        notes.append(
            f"warning: the knowledge base of this store lacks {unknown:,} of the {len(genes):,} genes of the "
            "reference; they count as not measured until scvec ingest genes has loaded them"
        )
    if meta.get("without_cells"):
        notes.append("the pack holds no cells: its trained head annotates, without neighbours")
    return notes


def shipped_packs() -> dict[str, dict[str, Any]]:
    """Return name -> file, sha256 and what it is, of the references that ship with scvec."""
    from importlib.resources import files

    listed = files("scvec") / "data" / "packs" / "packs.json"
    found: dict[str, dict[str, Any]] = json.loads(listed.read_text(encoding="utf-8"))
    return found


@contextmanager
def _located(
    source: str, trust: bool, max_bytes: int | None, progress: Progress
) -> Iterator[tuple[Path, str]]:
    """Yield the path of a pack and what to call where it came from; what was downloaded goes afterwards."""
    from scvec.ingest.sources.download import MAX_BYTES, Address, cache_folder, download, from_hub

    limit = MAX_BYTES if max_bytes is None else max_bytes
    if source.startswith("hf:"):
        yield from_hub(source, trust=trust)
        return
    if not re.match(r"https?://", source):
        with _local(source) as path:
            yield path, Path(source).name
        return
    address = Address.parse(source)
    mirrored = _mirrored(address.file_name)
    if isinstance(mirrored, Path):
        _check_hash(mirrored, address)
        yield mirrored, address.shown
        return
    if not address.sha256 and not trust:
        raise InputError(
            "the address has no hash, so that nobody knows whether the file is the right one",
            address.shown,
            "add #sha256=HEX as it was published, or give --trust",
            code="bad-address",
        )
    where = address if mirrored is None else Address(mirrored, address.sha256)
    path = download(where, cache_folder(), max_bytes=limit, progress=progress)
    try:
        yield path, address.shown
    finally:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """Yield the path of a file, or of a reference that ships or lies in the mirror."""
    path = Path(os.path.expanduser(source))
    packs = shipped_packs()
    if path.exists() or path.suffix == ".scvec" or path.name != source:
        yield path
    elif isinstance(mirrored := _mirrored(f"{source}.scvec"), Path):
        yield mirrored
    elif source in packs:
        with tempfile.TemporaryDirectory(prefix="scvec-pull-") as folder:
            yield _unpacked(packs[source], Path(folder))
    else:
        raise InputError(
            f"there is no reference {source!r} to pull",
            source,
            f"give a file, an address, or one of: {', '.join(sorted(packs))}",
            code="unknown-reference",
        )


def _unpacked(listed: dict[str, Any], folder: Path) -> Path:
    """Decompress a reference that ships; return its path."""
    import hashlib
    import lzma
    from importlib.resources import files

    small = files("scvec") / "data" / "packs" / listed["file"]
    data = lzma.LZMADecompressor().decompress(small.read_bytes(), max_length=int(listed["bytes"]) + 1)
    if hashlib.sha256(data).hexdigest() != listed["sha256"]:
        raise StoreError("a file of this installation is damaged", str(small), "install scvec again")
    path = folder / str(listed["file"]).removesuffix(".xz")
    path.write_bytes(data)
    return path


def _mirrored(file: str) -> Path | str | None:
    """Return where the mirror has a file: a path, an address, or None without a mirror."""
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror or not re.fullmatch(r"[\w.+-]+", file) or file.startswith("."):
        return None
    if re.match(r"https?://", mirror):
        return f"{mirror.rstrip('/')}/{file}"
    path = Path(os.path.expanduser(mirror)) / file
    return path if path.is_file() else None


def _check_hash(path: Path, address: Address) -> None:
    from scvec.stores.store.files import sha256_file

    if address.sha256 and sha256_file(path) != address.sha256:
        raise StoreError("the file in the mirror is not the one that was asked for", str(path))
