"""``scvec pull``: add a packed reference to a store."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from scvec import __version__
from scvec.base.errors import InputError, NetworkError, ResourceError, StoreError
from scvec.base.resources import cache_folder, expanded
from scvec.base.results import NextStep, Report, Stages, times_line
from scvec.base.types import Progress, no_progress

if TYPE_CHECKING:
    from scvec.stores.store.packs import PackReader
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.transaction import Transaction

__all__ = ["Address", "PullReport", "download", "from_hub", "pull", "shipped_packs"]

#: Default limit on the size of a file.
MAX_BYTES = 20 << 30
BLOCK = 1 << 20
#: Limits on a table of cells: number of values, bytes of a text, and allowed compression.
MAX_VALUES, MAX_TEXT, CODECS = 1 << 28, 1 << 16, ("UNCOMPRESSED", "SNAPPY", "ZSTD")
#: Timeout of a server, in seconds without data.
TIMEOUT = 60.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Address:
    """``https://HOST/PATH#sha256=HEX``: the address of a file and its hash.

    Raises
    ------
    InputError
        The address is not http or https, or the hash is not a SHA-256.
    """

    url: str
    sha256: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.password:
            raise InputError(
                "this is not the address of a file", self.shown, "give https://HOST/FILE", code="bad-address"
            )
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise InputError("the SHA-256 must have 64 hexadecimal digits", self.shown, "copy it again")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address and the hash after ``#sha256=``."""
        url, _, fragment = text.partition("#")
        known = fragment.removeprefix("sha256=").lower() if fragment.startswith("sha256=") else ""
        if fragment and not known:
            raise InputError("the part after '#' is not a hash", text[:200], "write #sha256=HEX")
        return cls(url, known)

    @property
    def shown(self) -> str:
        """The address without parts that may be secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"

    @property
    def file_name(self) -> str:
        """Last part of the path."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


def download(
    address: Address, folder: Path, *, max_bytes: int = MAX_BYTES, progress: Progress = no_progress
) -> Path:
    """Download a file to ``folder`` and return its path; continue an interrupted download.

    Raises
    ------
    NetworkError
        The server is unreachable, interrupts the download, or refuses.
    ResourceError
        The file is larger than ``max_bytes`` or the free disk space.
    StoreError
        The SHA-256 differs; the file is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{address.url} {address.sha256}".encode()).hexdigest()[:24]
    part, done = folder / f"{key}.part", folder / f"{key}.scvec"
    if not done.exists():
        try:
            # A partial file that does not match the file on the server is deleted once.
            if not _fetch(address, part, max_bytes, progress):
                _fetch(address, part, max_bytes, progress)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise ResourceError(
                    "the disk is full", str(folder), "free space", code="disk-full"
                ) from error
            reason = getattr(error, "reason", error)
            what = f"the download was interrupted ({type(error).__name__}: {reason})"
            raise NetworkError(what, address.shown, "run the command again, which continues") from error
        os.replace(part, done)
    if address.sha256:
        digest = hashlib.sha256()
        with open(done, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != address.sha256:
            done.unlink()
            raise StoreError(
                f"the file is not the published one (its SHA-256 is {digest.hexdigest()[:16]}...)",
                address.shown,
                "copy the address again from its publisher",
            )
    return done


def _fetch(address: Address, part: Path, max_bytes: int, progress: Progress) -> bool:
    """Download the rest of a file; return False if the partial file was unusable and was deleted."""
    have = part.stat().st_size if part.exists() else 0
    asked = urllib.request.Request(address.url, headers={"User-Agent": f"scvec/{__version__}"})
    if have:
        asked.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(asked, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:
            part.unlink()
            return False
        what = f"the server answers {error.code}"
        raise NetworkError(what, address.shown, "check the address, or try again later") from error
    with answer:
        if answer.status == 200:
            have = 0
        elif not str(answer.headers.get("content-range", "")).startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            return False
        length = str(answer.headers.get("content-length", ""))
        total = have + int(length) if length.isdigit() else None
        _check_room(address, part.parent, total, have, max_bytes)
        with open(part, "ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                have += len(block)
                if have > max_bytes:
                    raise _too_large(address, max_bytes)
                file.write(block)
                progress("downloading", have, total)
    if total is not None and have != total:
        raise NetworkError(
            "the download was interrupted", address.shown, "run the command again, which continues"
        )
    return True


def _check_room(address: Address, folder: Path, total: int | None, have: int, max_bytes: int) -> None:
    if total is None:
        return
    if total > max_bytes:
        raise _too_large(address, max_bytes)
    if total - have > shutil.disk_usage(folder).free:
        raise ResourceError(f"the disk has no room for {total:,} bytes", str(folder), "free space")


def _too_large(address: Address, max_bytes: int) -> ResourceError:
    return ResourceError(
        f"the file is larger than {max_bytes:,} bytes", address.shown, "check the address, or give --max-size"
    )


def from_hub(text: str, *, trust: bool) -> tuple[Path, str]:
    """Download ``hf:owner/name[@commit][:file]`` from the Hugging Face hub; return its path and full address.

    Raises
    ------
    InputError
        The address is invalid, or has no commit and ``trust`` is False.
    NetworkError
        The hub is unreachable or does not have the file.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?::([\w./-]+))?", text)
    if found is None or ".." in text:
        raise InputError(
            "this is not an address on the hub",
            text[:200],
            "write hf:OWNER/NAME@COMMIT:FILE",
            code="bad-address",
        )
    repo, commit, file = found.groups()
    if not trust and not re.fullmatch(r"[0-9a-f]{40}", commit or ""):
        raise InputError(
            "the address has no commit, so its file may change",
            text,
            f"write hf:{repo}@COMMIT with all 40 digits, or give --trust",
            code="bad-address",
        )
    try:
        info = HfApi().model_info(repo, revision=commit)
        names = [s.rfilename for s in info.siblings or [] if s.rfilename.endswith(".scvec")]
        if file is None:
            if len(names) != 1:
                what = f"the repository has {len(names)} packs"
                raise InputError(what, text, f"give one: hf:{repo}@{info.sha}:FILE")
            file = names[0]
        path = hf_hub_download(repo, file, revision=info.sha)
    except (HfHubHTTPError, OSError, ValueError) as error:
        what = f"the hub did not return the file ({type(error).__name__})"
        raise NetworkError(what, text, "check the address, or set HF_ENDPOINT") from error
    return Path(path), f"hf:{repo}@{info.sha}:{file}"


#: Environment variable: a folder or an address with packs by name, for machines without internet.
MIRROR = "SCVEC_MIRROR"


@dataclass(frozen=True, kw_only=True)
class PullReport(Report):
    """Result of ``pull``.

    Attributes
    ----------
    source
        Path or address of the pack.
    card
        The card, as lines.
    n_golden
        Number of cells whose labels were compared.
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
        """Return the report as lines of text."""
        return [
            *self.card,
            "",
            f"pulled reference '{self.name}' from {self.source}",
            f"checked: {self.n_golden} cells of the pack got the expected labels",
            f"times: {times_line(self.seconds)}",
        ]

    @property
    def next_step(self) -> NextStep:
        """The query of new cells with the reference."""
        return NextStep.query(self.name)


def pull(
    store: Path | str,
    source: Path | str,
    *,
    name: str | None = None,
    replace: bool = False,
    trust: bool = False,
    max_bytes: int | None = None,
    progress: Progress = no_progress,
) -> PullReport:
    """Add a packed reference to a store after all checks.

    The checksum of every file is verified. Then the golden query is run: the cells in the pack must get the
    same labels as on the machine that packed them. Only then the store changes, atomically.

    Parameters
    ----------
    store
        Folder of the store; created if missing.
    source
        A file; ``https://...#sha256=HEX``; ``hf:OWNER/NAME@COMMIT[:FILE]``; or the name of a reference that
        ships with scvec. The folder or address in ``SCVEC_MIRROR`` is tried first.
    name
        Name of the reference in the store. Default: its name in the pack.
    replace
        Also replace a reference of this name that is not an unchanged copy of an earlier pull: one that was
        ingested, pulled from a pack of another name, or changed since.
    trust
        Also accept an address without a hash or a commit.
    max_bytes
        Largest file to download.

    Raises
    ------
    InputError
        The pack does not exist, an address has no hash, or a reference would be lost without ``replace``.
    NetworkError
        The download failed.
    StoreError
        The pack is damaged or malicious, or its golden query gives other labels.
    """
    from scvec.model.golden import check_golden
    from scvec.model.resolvers import ensure_knowledge
    from scvec.stores.store.files import check_reference_name
    from scvec.stores.store.packs import PackReader
    from scvec.stores.store.store import Store

    stages = Stages()
    with ExitStack() as stack:
        path, origin = stack.enter_context(_located(str(source), trust, max_bytes, progress))
        pack = stack.enter_context(PackReader(path))
        called = name or pack.manifest.name
        check_reference_name(called)
        opened = Store.open(store, create=True)
        txn = stack.enter_context(opened.begin("pull", {"source": origin, "name": called}))
        old = txn.reference(called)
        if old is not None and not replace:
            _check_replaced(old, pack.manifest.name, str(opened.path))
        with stages("check"):
            stored, golden, described = _staged(txn, pack, called)
            card = _card_lines(stored, pack)
        with stages("golden query"):
            n_golden = check_golden(stored, golden, described)
        with stages("knowledge"):
            kb = txn.open_knowledge()
            ensure_knowledge(kb, progress=progress)
            notes = _notes(stored.meta, set(kb.genes()["gene_id"]))
        if old is not None:
            notes.append(f"replaced the existing reference {called!r}")
        n_labels, n = len(stored.meta["classes"]), stored.n
        generation = txn.commit()
        with_cells = pack.manifest.with_cells
    return PullReport(
        name=called,
        source=origin,
        n_cells=n if with_cells else 0,
        with_cells=with_cells,
        n_labels=n_labels,
        n_golden=n_golden,
        card=card,
        generation=str(generation.number),
        seconds=stages.seconds,
        notes=notes,
    )


def _check_replaced(stored: StoredReference, name: str, where: str) -> None:
    """Raise InputError if a reference is not an unchanged copy of a pack of this name: it would be lost."""
    from scvec.model.card import state_of

    pulled = stored.meta.get("pulled", {})
    if pulled.get("pack", {}).get("name") != name:
        what = "which was not pulled from this pack"
    elif pulled.get("state") != state_of(stored.meta):
        what = "which was changed since it was pulled"
    else:
        return
    raise InputError(
        f"the store has a reference {stored.name!r}, {what}",
        where,
        "give another name (--name OTHER), or replace it (--replace)",
        code="reference-exists",
    )


def _staged(
    txn: Transaction, pack: PackReader, name: str
) -> tuple[StoredReference, dict[str, Any], dict[str, Any]]:
    """Copy the files of a pack into a transaction, checked.

    Returns
    -------
    The reference with its name in this store, and the arrays and JSON values of its golden query.
    """
    from scvec.model.card import n_changes, state_of
    from scvec.stores.store.files import read_json, read_tensors, write_json

    renamed: dict[str, str] = {}
    entry = pack.manifest.reference
    for file in entry.files():
        stem, _, ending = file.rpartition(".")
        part = stem.rpartition("-")[0].removeprefix(f"{pack.manifest.name}.")
        renamed[file] = txn.put_file(f"{name}.{part}", ending, _copying(pack, file))
    meta = read_json(txn.path_of(renamed[entry.meta]))
    try:
        pulled = {"pack": pack.facts(), "n_changes": n_changes(meta), "state": state_of(meta)}
        meta = {**meta, "pulled": pulled}
    except (TypeError, AttributeError) as error:
        raise StoreError("the pack has no reference", str(pack.path)) from error
    renamed[entry.meta] = txn.put_file(f"{name}.meta", "json", lambda path: write_json(path, meta))
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
    if stored is None or entry.n < 1 or len(stored.vectors) != entry.n or entry.dim < 1:
        raise StoreError("the pack has no reference", str(pack.path))
    _check_table(txn.path_of(moved.obs), entry.n, str(pack.path))
    golden = txn.put_file("golden", "safetensors", _copying(pack, pack.manifest.golden[0]))
    try:
        described = json.loads(pack.read(pack.manifest.golden[1]))
    except (ValueError, RecursionError) as error:
        raise StoreError("the golden query of the pack cannot be read", str(pack.path)) from error
    return stored, read_tensors(txn.path_of(golden)), described


def _check_table(path: Path, n: int, where: str) -> None:
    """Refuse a table of cells that would fill the memory, although its file is small.

    It must have as many rows as there are vectors, and plain columns of limited size. Texts are checked as a
    dictionary, one row group at a time, before they are expanded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = pq.read_metadata(path)
        schema = about.schema.to_arrow_schema()
        groups = [about.row_group(g) for g in range(about.num_row_groups)]
        parts = [g.column(c) for g in groups for c in range(g.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts)
        if about.num_rows != n or n * about.num_columns > MAX_VALUES or size > 8 * MAX_VALUES:
            raise ValueError(f"{about.num_rows:,} rows of {about.num_columns:,} columns")
        if not {part.compression for part in parts} <= set(CODECS):
            raise ValueError("another compression")
        texts = [f.name for f in schema if pa.types.is_dictionary(f.type) or _is_text(f.type)]
        if any(pa.types.is_nested(f.type) for f in schema):
            raise ValueError("nested columns")
        for name in texts:
            with pq.ParquetFile(path, read_dictionary=[name]) as file:
                for group in range(len(groups)):
                    for chunk in file.read_row_group(group, columns=[name])[name].chunks:
                        _check_texts(chunk, n)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = error if type(error) is ValueError else type(error).__name__
        what = f"the table of cells of the pack cannot be used ({reason})"
        raise StoreError(what, where, "download it again from its publisher") from error


def _check_texts(chunk: Any, n: int) -> None:
    """Raise ValueError if the texts of a column are too long, or many more than its rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(chunk.type) or not _is_text(chunk.type.value_type):
        return
    lengths = pc.binary_length(chunk.dictionary)
    longest = pc.max(lengths).as_py() or 0
    if (
        longest > MAX_TEXT
        or len(lengths) > n
        or (pc.sum(lengths.take(chunk.indices)).as_py() or 0) > 8 * MAX_VALUES
    ):
        raise ValueError(f"texts of {longest:,} characters")


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(t(kind) for t in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def _card_lines(stored: StoredReference, pack: PackReader) -> list[str]:
    from scvec.model.card import card_of

    try:
        return card_of(stored).lines()
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"the card of the pack cannot be read ({type(error).__name__})",
            str(pack.path),
            "download it again from its publisher",
        ) from error


def _copying(pack: PackReader, file: str) -> Any:
    return lambda path: pack.copy(file, path)


def _notes(meta: dict[str, Any], known: set[str]) -> list[str]:
    notes = []
    genes = [str(g) for g in meta["all_genes"]]
    unknown = 0 if meta["model"]["encoder"]["name"] == "obsm" else sum(gene not in known for gene in genes)
    if unknown:
        notes.append(
            f"warning: this store does not know {unknown:,} of the {len(genes):,} genes of the reference; "
            "they count as not measured until they are loaded (scvec ingest genes)"
        )
    if meta.get("without_cells"):
        notes.append("the pack has no cells: its trained head annotates, without neighbours")
    return notes


def shipped_packs() -> dict[str, dict[str, Any]]:
    """Return the shipped references: name -> file, sha256 and description."""
    from importlib.resources import files

    listed = files("scvec") / "data" / "packs" / "packs.json"
    found: dict[str, dict[str, Any]] = json.loads(listed.read_text(encoding="utf-8"))
    return found


@contextmanager
def _located(
    source: str, trust: bool, max_bytes: int | None, progress: Progress
) -> Iterator[tuple[Path, str]]:
    """Yield the path of a pack and the text of its source; delete a download afterwards."""

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
            "the address has no hash, so the file cannot be verified",
            address.shown,
            "add the published #sha256=HEX, or give --trust",
            code="bad-address",
        )
    where = address if mirrored is None else Address(mirrored, address.sha256)
    path = download(where, cache_folder() / "downloads", max_bytes=limit, progress=progress)
    kept = False
    try:
        yield path, address.shown
    except InputError:
        kept = True  # the same command with another option needs no second download
        raise
    finally:
        if not kept:
            with suppress(OSError):
                path.unlink()


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """Yield the path of a file, or of a shipped or mirrored reference."""
    path = expanded(source)
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
            f"no reference {source!r} to pull",
            source,
            f"give a file, an address, or one of: {', '.join(sorted(packs))}",
            code="unknown-reference",
        )


def _unpacked(listed: dict[str, Any], folder: Path) -> Path:
    """Decompress a shipped reference; return its path."""
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
    """Return the path or address of a file in the mirror; None without a mirror."""
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror or not re.fullmatch(r"[\w.+-]+", file) or file.startswith("."):
        return None
    if re.match(r"https?://", mirror):
        return f"{mirror.rstrip('/')}/{file}"
    path = expanded(mirror) / file
    return path if path.is_file() else None


def _check_hash(path: Path, address: Address) -> None:
    from scvec.stores.store.files import sha256_file

    if address.sha256 and sha256_file(path) != address.sha256:
        raise StoreError("the file in the mirror is not the requested one", str(path))
