"""What a generation consists of, and what made it."""

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
# An absolute path, perhaps behind a prefix as in ``st:/models/mine``; no URL.
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
            raise ValueError(f"not a size and SHA-256: {self.n_bytes!r}, {self.sha256!r}")


@dataclass(frozen=True, slots=True)
class KnowledgeEntry:
    """The gene knowledge base. Its bytes differ between equal runs, its digest does not."""

    file: str
    digest: str
    schema_version: int

    def __post_init__(self) -> None:
        if (
            not is_plain_name(self.file)
            or not isinstance(self.digest, str)
            or not _is_count(self.schema_version)
        ):
            raise ValueError(f"not a knowledge base: {self.file!r}")


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
            raise ValueError(f"not a space: {self.n!r} genes, index {self.index_kind!r}")

    def files(self) -> tuple[str, ...]:
        """Names of the files it is made of."""
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
            raise ValueError(f"not a segment of a reference: {self.n!r} cells")


@dataclass(frozen=True, slots=True)
class ReferenceEntry:
    """Labelled cells: ``n`` cells of ``dim`` dimensions.

    Attributes
    ----------
    vectors, index
        Of the cells that it was made of.
    appended
        Segments of cells appended later, in order.
    deleted
        File with the numbers of deleted rows, counted through all segments; empty for none.
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
            raise ValueError(f"not a reference: {self.n!r} x {self.dim!r}")
        if bool(self.deleted) != (self.n_deleted > 0) or self.n_first < 0:
            raise ValueError(f"not a reference: {self.n!r} cells in segments that do not hold as many")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ReferenceEntry:
        """Return what :meth:`to_dict` gave."""
        appended = tuple(SegmentEntry(**segment) for segment in raw.get("appended", ()))
        return cls(**{**raw, "appended": appended})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without the fields of appended and deleted cells where there are none."""
        values = asdict(self)
        return {k: v for k, v in values.items() if v or k not in ("appended", "deleted", "n_deleted")}

    @property
    def n_first(self) -> int:
        """Number of cells that it was made of, deleted or not."""
        return self.n + self.n_deleted - sum(segment.n for segment in self.appended)

    @property
    def is_whole(self) -> bool:
        """True if no cell was appended or deleted since it was made."""
        return not self.appended and not self.deleted

    def files(self) -> tuple[str, ...]:
        """Names of the files it is made of."""
        later = [name for segment in self.appended for name in (segment.vectors, segment.index)]
        later += [self.deleted] if self.deleted else []
        return (self.meta, self.tensors, self.obs, self.vectors, self.index, *later)


@dataclass(frozen=True)
class Manifest:
    """All that a generation holds.

    Attributes
    ----------
    generation
        Its number; 0 is the empty store.
    command, params
        What made it. Paths are cut to file names: no manifest tells where a machine keeps its files.
    versions
        Versions of scvec, Python and the libraries.
    files
        Name under ``files/`` -> size and SHA-256, of every file but the knowledge base.
    knowledge, spaces, references
        What the files are.
    run
        All that differs between equal runs: times, and size and SHA-256 of the knowledge base, which carries
        a random id of its database.
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
            raise ValueError(f"not a generation: {self.generation!r}")
        _check_files(tuple(self.files))
        for fingerprint, space in self.spaces.items():
            if not _FINGERPRINT.fullmatch(fingerprint) or space.space.fingerprint != fingerprint:
                raise ValueError(f"space {fingerprint!r} does not match its fingerprint")
        for name in self.references:
            if not is_plain_name(name):
                raise ValueError(f"not a name of a reference: {name!r}")
        used = self.used_files()
        if used != set(self.files):
            odd = sorted(used ^ set(self.files))
            raise ValueError(f"files listed and files used differ: {', '.join(odd[:3])}")
        if self.knowledge is not None:
            if self.knowledge.file in self.files:
                raise ValueError("the knowledge base is listed twice")
            self.entry(self.knowledge.file)

    def used_files(self) -> set[str]:
        """Names of all files that spaces and references are made of."""
        return _used(self.spaces, self.references)

    def all_files(self) -> dict[str, FileEntry]:
        """Every file of the generation, the knowledge base included."""
        everything = dict(self.files)
        if self.knowledge is not None:
            everything[self.knowledge.file] = self.entry(self.knowledge.file)
        return everything

    def entry(self, name: str) -> FileEntry:
        """Return size and SHA-256 of a file; KeyError if the generation has no such file."""
        if self.knowledge is not None and name == self.knowledge.file:
            return FileEntry(self.run["kb_bytes"], self.run["kb_sha256"])
        return self.files[name]

    def with_files_of_use(self, **changes: Any) -> Manifest:
        """Return a changed copy without the files that nothing uses any more."""
        files: Mapping[str, FileEntry] = changes.pop("files", self.files)
        used = _used(changes.get("spaces", self.spaces), changes.get("references", self.references))
        return replace(self, files={n: e for n, e in files.items() if n in used}, **changes)

    def to_bytes(self) -> bytes:
        """Return the JSON text that is stored."""
        return _dump(self._to_dict())

    def deterministic_bytes(self) -> bytes:
        """Return the JSON text without ``run``: equal for two runs with one seed on one machine."""
        data = self._to_dict()
        del data["run"]
        return _dump(data)

    def _to_dict(self) -> dict[str, Any]:
        spaces = {k: {**asdict(s), "space": s.space.to_dict()} for k, s in self.spaces.items()}
        return {
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

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest, believing nothing in it.

        Raises
        ------
        StoreError
            Not a manifest, a newer format (names the version needed), or names that lead out of the store.
        """
        try:
            raw = json.loads(data)
            number = raw["format"]
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"format {number!r}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _damaged(where, error) from error
        if number > FORMAT:
            raise StoreError(
                f"the store has format {number}; scvec {__version__} reads up to format {FORMAT}",
                where,
                f"install scvec {str(raw.get('needs', 'of a newer version'))[:20]} or later",
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
    """Return plain JSON in which absolute paths are cut to their last part."""
    plain = plain_json(value)
    return _without_paths(plain)


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
    """Versions of scvec, Python and the libraries that make files or numbers."""
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
            raise ValueError(f"not a plain file name: {name!r}")


def _damaged(where: str, error: BaseException) -> StoreError:
    return StoreError(
        f"the manifest of the store is damaged ({type(error).__name__}: {error})",
        where,
        "restore the store from a copy, or ingest into a new one",
    )
