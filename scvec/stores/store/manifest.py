"""Manifests: the files of a generation, and the command that made it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any

from scvec import __version__
from scvec.base.errors import StoreError
from scvec.base.types import Space
from scvec.stores.store.files import is_plain_name, plain_json

__all__ = [
    "FORMAT",
    "FileEntry",
    "KnowledgeEntry",
    "Manifest",
    "ReferenceEntry",
    "SegmentEntry",
    "SpaceEntry",
    "library_versions",
    "portable",
]

#: Version of the store's format, and the first scvec that reads it.
FORMAT = 1
NEEDS = "0.1.0"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_LIBRARIES = ("anndata", "duckdb", "faiss-cpu", "numpy", "pandas", "pyarrow", "safetensors", "scipy", "torch")
# An absolute path, with or without a prefix such as ``st:`` in ``st:/models/mine``. URLs do not match.
_PATH = re.compile(r"((?!file:)[A-Za-z][\w-]+:)?(?:/(?!/)|~|[A-Za-z]:[\\/]|\\\\|file:/).*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and SHA-256 of a file under ``files/``."""

    n_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if (
            not _is_count(self.n_bytes)
            or not isinstance(self.sha256, str)
            or not _SHA256.fullmatch(self.sha256)
        ):
            raise ValueError(f"invalid size or SHA-256: {self.n_bytes!r}, {self.sha256!r}")


@dataclass(frozen=True, slots=True)
class KnowledgeEntry:
    """The gene knowledge base. Equal runs give equal digests, but different bytes."""

    file: str
    digest: str
    schema_version: int

    def __post_init__(self) -> None:
        if (
            not is_plain_name(self.file)
            or not isinstance(self.digest, str)
            or not _is_count(self.schema_version)
        ):
            raise ValueError(f"invalid entry of a knowledge base: {self.file!r}")


@dataclass(frozen=True, slots=True)
class SpaceEntry:
    """Gene vectors of one embedding space: ``n`` genes of ``space.dim`` dimensions."""

    space: Space
    n: int
    genes: str
    vectors: str
    index: str
    index_kind: str

    def __post_init__(self) -> None:
        _check_files(self.files())
        if not _is_count(self.n) or not isinstance(self.index_kind, str):
            raise ValueError(f"invalid entry of a space: {self.n!r} genes, index {self.index_kind!r}")

    def files(self) -> tuple[str, ...]:
        """Return the names of the space's files."""
        return (self.genes, self.vectors, self.index)


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """Vectors and exact index of ``n`` cells that were appended to a reference."""

    n: int
    vectors: str
    index: str

    def __post_init__(self) -> None:
        _check_files((self.vectors, self.index))
        if not _is_count(self.n) or self.n == 0:
            raise ValueError(f"invalid segment of a reference: {self.n!r} cells")


@dataclass(frozen=True, slots=True)
class ReferenceEntry:
    """Labelled cells: ``n`` cells of ``dim`` dimensions.

    Attributes
    ----------
    vectors, index
        Files of the first segment: the cells of the ingest.
    appended
        Segments of cells that were appended later, in order.
    deleted
        File with the numbers of deleted rows, numbered through all segments; empty if none is deleted.
    n_deleted
        Number of deleted rows.
    """

    n: int
    dim: int
    meta: str
    tensors: str
    obs: str
    vectors: str
    index: str
    index_kind: str
    appended: tuple[SegmentEntry, ...] = ()
    deleted: str = ""
    n_deleted: int = 0

    def __post_init__(self) -> None:
        _check_files(self.files())
        counts = (self.n, self.dim, self.n_deleted)
        if not all(map(_is_count, counts)) or not isinstance(self.index_kind, str):
            raise ValueError(f"invalid entry of a reference: {self.n!r} x {self.dim!r}")
        if bool(self.deleted) != (self.n_deleted > 0) or self.n_first < 0:
            raise ValueError(f"invalid entry of a reference: its segments do not hold {self.n!r} cells")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ReferenceEntry:
        """Rebuild an entry from the result of :meth:`to_dict`."""
        appended = tuple(SegmentEntry(**segment) for segment in raw.get("appended", ()))
        return cls(**{**raw, "appended": appended})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; empty fields about appended and deleted cells are left out."""
        values = asdict(self)
        return {k: v for k, v in values.items() if v or k not in ("appended", "deleted", "n_deleted")}

    @property
    def n_first(self) -> int:
        """Number of cells in the first segment, deleted cells included."""
        return self.n + self.n_deleted - sum(segment.n for segment in self.appended)

    @property
    def is_whole(self) -> bool:
        """True if no cell was appended or deleted since the ingest or the last merge."""
        return not self.appended and not self.deleted

    def files(self) -> tuple[str, ...]:
        """Return the names of the reference's files."""
        later = [name for segment in self.appended for name in (segment.vectors, segment.index)]
        later += [self.deleted] if self.deleted else []
        return (self.meta, self.tensors, self.obs, self.vectors, self.index, *later)


@dataclass(frozen=True)
class Manifest:
    """Contents of a generation.

    Attributes
    ----------
    generation
        Number of the generation; 0 is the empty store.
    command, params
        Command that made the generation. Paths are cut to file names, so that no manifest reveals the folders
        of a machine.
    versions
        Versions of scvec, Python and the libraries.
    files
        Name under ``files/`` -> size and SHA-256, of all files except the knowledge base.
    knowledge, spaces, references
        Entries of the knowledge base, the spaces and the references; they name the files.
    run
        Values that differ between equal runs: times, and size and SHA-256 of the knowledge base. DuckDB
        writes a random id into each database.
    """

    generation: int
    command: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    knowledge: KnowledgeEntry | None = None
    spaces: Mapping[str, SpaceEntry] = field(default_factory=dict)
    references: Mapping[str, ReferenceEntry] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_count(self.generation) or self.generation > 999_999:
            raise ValueError(f"invalid version number: {self.generation!r}")
        _check_files(tuple(self.files))
        for fingerprint, space in self.spaces.items():
            if not _FINGERPRINT.fullmatch(fingerprint) or space.space.fingerprint != fingerprint:
                raise ValueError(f"space {fingerprint!r} does not match its fingerprint")
        for name in self.references:
            if not is_plain_name(name):
                raise ValueError(f"{name!r} is not a valid name of a reference")
        used = self.used_files()
        if used != set(self.files):
            odd = sorted(used ^ set(self.files))
            raise ValueError(f"the listed files differ from the used files: {', '.join(odd[:3])}")
        if self.knowledge is not None:
            if self.knowledge.file in self.files:
                raise ValueError("the knowledge base is listed twice")
            self.entry(self.knowledge.file)

    def used_files(self) -> set[str]:
        """Return the names of all files of spaces and references."""
        return _used(self.spaces, self.references)

    def all_files(self) -> dict[str, FileEntry]:
        """Return name -> size and SHA-256 of all files, the knowledge base included."""
        everything = dict(self.files)
        if self.knowledge is not None:
            everything[self.knowledge.file] = self.entry(self.knowledge.file)
        return everything

    def entry(self, name: str) -> FileEntry:
        """Return size and SHA-256 of a file; raise KeyError if the generation has no such file."""
        if self.knowledge is not None and name == self.knowledge.file:
            return FileEntry(self.run["kb_bytes"], self.run["kb_sha256"])
        return self.files[name]

    def with_files_of_use(self, **changes: Any) -> Manifest:
        """Return a changed copy that lists only the files in use."""
        files: Mapping[str, FileEntry] = changes.pop("files", self.files)
        used = _used(changes.get("spaces", self.spaces), changes.get("references", self.references))
        return replace(self, files={n: e for n, e in files.items() if n in used}, **changes)

    def to_bytes(self) -> bytes:
        """Return the JSON text of the manifest. But for ``run`` it is equal for two runs with one seed."""
        spaces = {k: {**asdict(s), "space": s.space.to_dict()} for k, s in self.spaces.items()}
        data = {
            "format": FORMAT,
            "needs": NEEDS,
            "generation": self.generation,
            "command": self.command,
            "params": portable(self.params),
            "versions": dict(self.versions),
            "files": {n: {"bytes": e.n_bytes, "sha256": e.sha256} for n, e in self.files.items()},
            "knowledge": None if self.knowledge is None else asdict(self.knowledge),
            "spaces": spaces,
            "references": {k: r.to_dict() for k, r in self.references.items()},
            "run": portable(self.run),
        }
        return _dump(data)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest and check all its fields.

        Raises
        ------
        StoreError
            The text is not a valid manifest, its format is newer (the message names the required scvec), or a
            file name leads out of the store.
        """
        try:
            raw = json.loads(data)
            number = raw["format"]
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"format {number!r}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _damaged(where, error) from error
        if number > FORMAT:
            needs = str(raw.get("needs", ""))[:20]
            raise StoreError(
                f"the store has format {number}; scvec {__version__} reads up to format {FORMAT}",
                where,
                f"install scvec {needs} or later" if needs else "install a newer scvec",
                code="store-format",
            )
        try:
            knowledge = raw["knowledge"]
            return cls(
                generation=raw["generation"],
                command=str(raw["command"]),
                params=dict(raw["params"]),
                versions={str(k): str(v) for k, v in raw["versions"].items()},
                files={n: FileEntry(e["bytes"], e["sha256"]) for n, e in raw["files"].items()},
                knowledge=None if knowledge is None else KnowledgeEntry(**knowledge),
                spaces={
                    k: SpaceEntry(**{**s, "space": Space.from_dict(s["space"])})
                    for k, s in raw["spaces"].items()
                },
                references={k: ReferenceEntry.from_dict(r) for k, r in raw["references"].items()},
                run=dict(raw["run"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(where, error) from error


def portable(value: Any) -> Any:
    """Return plain JSON with absolute paths cut to their last part."""
    return _without_paths(plain_json(value))


def _without_paths(value: Any) -> Any:
    if isinstance(value, str) and (match := _PATH.fullmatch(value)):
        return (match.group(1) or "") + re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    return value


@cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of scvec, Python and the libraries that write files or compute numbers."""
    versions = {"scvec": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _dump(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def _used(spaces: Mapping[str, SpaceEntry], references: Mapping[str, ReferenceEntry]) -> set[str]:
    in_spaces = {name for space in spaces.values() for name in space.files()}
    return in_spaces | {name for reference in references.values() for name in reference.files()}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_files(names: tuple[object, ...]) -> None:
    for name in names:
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is not a plain file name")


def _damaged(where: str, error: BaseException) -> StoreError:
    return StoreError(
        f"the manifest of the store is damaged ({type(error).__name__}: {error})",
        where,
        "restore the store from a copy, or ingest into a new one",
    )
