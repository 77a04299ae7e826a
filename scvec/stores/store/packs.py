"""Packs: a reference in one zip file. Members are uncompressed and named by content, the manifest first."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scvec import __version__
from scvec.base.errors import InputError, StoreError
from scvec.base.resources import Closes
from scvec.stores.store.files import is_plain_name, os_errors, sha256_file
from scvec.stores.store.manifest import FileEntry, ReferenceEntry

__all__ = ["CARD", "PACK_FORMAT", "PackManifest", "PackReader", "write_pack"]

#: Version of the pack format, and the first scvec that reads it.
PACK_FORMAT = 1
NEEDS = "0.1.0"
MANIFEST, CARD, FOLDER = "manifest.json", "README.md", "files/"
#: Limits on sizes and counts that a pack may state, checked before any allocation.
MAX_MANIFEST, MAX_CARD, MAX_MEMBERS = 16 << 20, 4 << 20, 1000
BLOCK = 1 << 20
#: Bytes of the last record of a zip, of the locator of its 64-bit form, and of both with that form.
END, LOCATOR, LONG_END = 22, 20, 76
#: The only flag that a member may have: a UTF-8 name.
UTF8 = 0x800
#: Largest sizes of a JSON file, and of the directory of the zip, in bytes. Longer ones could fill the memory.
MAX_JSON, MAX_DIRECTORY = 64 << 20, 1 << 20
#: Allowed file types of each part of a reference. Reading them runs no code.
ENDINGS = {
    "meta": ("json",),
    "tensors": ("safetensors",),
    "obs": ("parquet",),
    "vectors": ("safetensors",),
    "index": ("faiss", "npy"),
}
#: Time stamp of all members, so that equal content gives equal packs.
TIME = (1980, 1, 1, 0, 0, 0)
_NEEDS = re.compile(r"[0-9][0-9A-Za-z.+-]{0,19}")


@dataclass(frozen=True, slots=True)
class PackManifest:
    """Contents of a pack.

    Attributes
    ----------
    name
        Name of the reference in the store that it was packed from.
    reference
        Files of the reference, by their names in the pack.
    with_cells
        False if the pack holds no vector, no expression profile and no row of obs of any cell.
    golden
        Names of the two files of the golden query: its cells, and the expected answers.
    files
        Name under ``files/`` -> size and SHA-256.
    card_sha256
        SHA-256 of ``README.md``.
    scvec
        Version of scvec that wrote the pack.
    """

    name: str
    reference: ReferenceEntry
    with_cells: bool
    golden: tuple[str, str]
    files: Mapping[str, FileEntry]
    card_sha256: str
    scvec: str = __version__

    def __post_init__(self) -> None:
        if not is_plain_name(self.name):
            raise ValueError(f"{self.name!r} is not a valid name of a reference")
        if not self.reference.is_whole:
            raise ValueError("the reference is not complete")
        used = {*self.reference.files(), *self.golden}
        if used != set(self.files) or len(self.files) > MAX_MEMBERS:
            raise ValueError("the listed files differ from the used files")
        if len(self.golden) != 2 or not isinstance(self.with_cells, bool):
            raise ValueError("the golden query is missing")
        roles = [(getattr(self.reference, part), endings) for part, endings in ENDINGS.items()]
        roles += [(self.golden[0], ("safetensors",)), (self.golden[1], ("json",))]
        for name, endings in roles:
            entry, ending = self.files[name], name.rpartition(".")[2]
            if not is_plain_name(name) or ending not in endings or entry.sha256[:16] not in name:
                raise ValueError(f"{name!r} is not a valid file name in a pack")
            if ending == "json" and entry.n_bytes > MAX_JSON:
                raise ValueError(f"{name!r} is too large")

    def to_bytes(self) -> bytes:
        """Return the JSON text that is stored."""
        data = {
            "pack": PACK_FORMAT,
            "needs": NEEDS,
            "scvec": self.scvec,
            "name": self.name,
            "with_cells": self.with_cells,
            "reference": self.reference.to_dict(),
            "golden": list(self.golden),
            "card": self.card_sha256,
            "files": {n: {"bytes": e.n_bytes, "sha256": e.sha256} for n, e in sorted(self.files.items())},
        }
        return (json.dumps(data, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> PackManifest:
        """Read a manifest and check all its fields.

        Raises
        ------
        StoreError
            The text is not a valid manifest, or its format is newer.
        """
        try:
            raw = json.loads(data)
            number = raw["pack"]
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"format {number!r}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _damaged(where, f"its manifest cannot be read ({type(error).__name__})") from error
        if number > PACK_FORMAT:
            needs = str(raw.get("needs", ""))
            fix = f"install scvec {needs} or later" if _NEEDS.fullmatch(needs) else "install a newer scvec"
            raise StoreError(
                f"the pack has format {number}; scvec {__version__} reads up to format {PACK_FORMAT}",
                where,
                fix,
                code="store-format",
            )
        try:
            golden = raw["golden"]
            return cls(
                name=raw["name"],
                reference=ReferenceEntry.from_dict(raw["reference"]),
                with_cells=raw["with_cells"],
                golden=(str(golden[0]), str(golden[1])),
                files={n: FileEntry(e["bytes"], e["sha256"]) for n, e in raw["files"].items()},
                card_sha256=str(raw["card"]),
                scvec=str(raw["scvec"])[:40],
            )
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise _damaged(where, f"its manifest is not valid ({error})") from error


def write_pack(
    target: Path, manifest: PackManifest, card: str, sources: Mapping[str, Path | bytes]
) -> tuple[int, str]:
    """Write a pack; return its size in bytes and its SHA-256.

    Parameters
    ----------
    target
        Path of the pack.
    manifest
        Manifest of the pack.
    card
        Text of ``README.md``.
    sources
        Name of each file of the manifest -> its path, or its content.

    Raises
    ------
    ResourceError
        The disk is full; ``target`` is unchanged.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with os_errors(target):
            with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as pack:
                _put(pack, MANIFEST, manifest.to_bytes())
                _put(pack, CARD, card.encode())
                for name in sorted(manifest.files):
                    _put(pack, FOLDER + name, sources[name])
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            size, sha256 = temporary.stat().st_size, sha256_file(temporary)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return size, sha256


def _put(pack: zipfile.ZipFile, name: str, source: Path | bytes) -> None:
    info = zipfile.ZipInfo(name, TIME)
    info.external_attr = 0o644 << 16
    with pack.open(info, "w", force_zip64=True) as into:
        if isinstance(source, bytes):
            into.write(source)
            return
        with open(source, "rb") as file:
            while block := file.read(BLOCK):
                into.write(block)


class PackReader(Closes):
    """An open pack with a checked structure; a context manager.

    A pack is untrusted input. Its members must be exactly the files of the manifest. They must be
    uncompressed (so that none can grow), have plain names, not be links, and not overlap. :meth:`check`
    compares every byte with the SHA-256 in the manifest.

    Parameters
    ----------
    path
        The pack.

    Raises
    ------
    InputError
        The file does not exist, or is not a pack.
    StoreError
        The pack is damaged or malicious.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._where = str(path)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                what, fix = "the pack is not a file", "give a .scvec file"
                raise InputError(what, self._where, fix, code="not-a-file")
            self._file = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            what = f"the pack cannot be opened ({error.strerror})"
            raise InputError(what, self._where, "check the path") from error
        try:
            self._members = self._checked_members()
            self.manifest = PackManifest.from_bytes(self._read(MANIFEST, MAX_MANIFEST), self._where)
            self._compare()
            card = self._read(CARD, MAX_CARD)
            if hashlib.sha256(card).hexdigest() != self.manifest.card_sha256:
                raise _damaged(self._where, "the SHA-256 of its README.md differs from the manifest")
            self.card = card.decode("utf-8", "replace")
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def facts(self) -> dict[str, str]:
        """Return ``name``, ``sha256`` of the whole file, and the ``scvec`` that wrote it."""
        return {"name": self.manifest.name, "sha256": sha256_file(self.path), "scvec": self.manifest.scvec}

    def check(self) -> None:
        """Read every member and compare its SHA-256; raise StoreError if one differs."""
        for name in self.manifest.files:
            self.copy(name, None)

    def copy(self, name: str, target: Path | None) -> None:
        """Copy a file of the pack to ``target`` and check it; None only checks.

        Raises
        ------
        StoreError
            The content differs from its SHA-256 or CRC.
        """
        entry = self.manifest.files[name]
        digest, crc = hashlib.sha256(), 0
        start, size, stated_crc = self._members[FOLDER + name]
        self._file.seek(start)
        with open(target, "xb") if target is not None else nullcontext() as out:
            while size:
                block = self._file.read(min(BLOCK, size))
                if not block:
                    break
                size -= len(block)
                digest.update(block)
                crc = zlib.crc32(block, crc)
                if out is not None:
                    out.write(block)
        if size or digest.hexdigest() != entry.sha256 or crc != stated_crc:
            raise _damaged(self._where, f"the content of {name} differs from its checksum")

    def read(self, name: str, limit: int = MAX_MANIFEST) -> bytes:
        """Return the content of a small file of the pack, after a check of its SHA-256."""
        data = self._read(FOLDER + name, limit)
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise _damaged(self._where, f"the content of {name} differs from its checksum")
        return data

    def _read(self, member: str, limit: int) -> bytes:
        if member not in self._members:
            raise _damaged(self._where, f"{member} is missing")
        start, size, crc = self._members[member]
        if size > limit:
            raise _damaged(self._where, f"{member} is too large")
        self._file.seek(start)
        data = self._file.read(size)
        if zlib.crc32(data) != crc:
            raise _damaged(self._where, f"{member} is damaged")
        return data

    def _checked_members(self) -> dict[str, tuple[int, int, int]]:
        """Check the structure of the zip; return member -> (first byte, size, CRC)."""
        total = os.fstat(self._file.fileno()).st_size
        self._check_end(total)
        try:
            with zipfile.ZipFile(self._file) as pack:
                infos, end = pack.infolist(), int(pack.start_dir)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
            raise self._no_pack() from error
        members: dict[str, tuple[int, int, int]] = {}
        known: set[str] = set()
        spans = [(end, end, "")]
        for info in infos:
            plain = info.filename in (MANIFEST, CARD) or (
                info.filename.startswith(FOLDER) and is_plain_name(info.filename.removeprefix(FOLDER))
            )
            if not plain or info.orig_filename != info.filename:
                raise _damaged(self._where, "a member has a name that is not allowed")
            if info.filename.lower() in known:
                raise _damaged(self._where, "two members have the same name")
            known.add(info.filename.lower())
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise _damaged(self._where, "a member is compressed")
            mode = info.external_attr >> 16
            if (
                info.flag_bits & ~UTF8
                or info.is_dir()
                or (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG))
            ):
                raise _damaged(self._where, "a member is encrypted, a stream, a folder or a link")
            start = self._first_byte(info, total)
            if start + info.file_size > total:
                raise _damaged(self._where, "the file is truncated")
            members[info.filename] = (start, info.file_size, info.CRC)
            spans.append((info.header_offset, start + info.file_size, info.filename))
        spans.sort()
        if spans[0][0] != 0 or spans[0][2] != MANIFEST:
            raise _damaged(self._where, "its manifest does not come first")
        if any(before[1] != after[0] for before, after in pairwise(spans)):
            raise _damaged(self._where, "its members overlap, or something lies between them")
        return members

    def _check_end(self, total: int) -> None:
        """Check the end of the zip before its directory is read: it ends the file and is not large.

        A zip larger than 4 GB has a second record with 64-bit numbers.
        """
        self._file.seek(max(total - LONG_END - END, 0))
        data = self._file.read(LONG_END + END)
        claimed = [struct.unpack("<HI", data[-12:-6])] if data[-END:][:4] == b"PK\x05\x06" else []
        if data[-LOCATOR - END : -END][:4] == b"PK\x06\x07":
            claimed += [struct.unpack("<QQ", data[32:48])] if data[:4] == b"PK\x06\x06" else [(1 << 62, 0)]
        if not claimed or data[-2:] != b"\0\0":
            raise self._no_pack()
        if any(number > MAX_MEMBERS + 2 or size > MAX_DIRECTORY for number, size in claimed):
            raise _damaged(self._where, "it has too many members")

    def _no_pack(self) -> InputError:
        return InputError(
            "the file is not a pack of scvec", self._where, "give a .scvec file that scvec pack wrote"
        )

    def _first_byte(self, info: zipfile.ZipInfo, total: int) -> int:
        """Return the position of a member's content, from the member's own header. Its name must agree."""
        self._file.seek(info.header_offset)
        header = self._file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04" or info.header_offset >= total:
            raise _damaged(self._where, "a member has no header")
        method, named, extra = struct.unpack("<8xH16xHH", header)
        if method != 0 or self._file.read(named) != info.filename.encode():
            raise _damaged(self._where, "the header of a member differs from the zip directory")
        return int(info.header_offset + 30 + named + extra)

    def _compare(self) -> None:
        wanted = {FOLDER + name: entry.n_bytes for name, entry in self.manifest.files.items()}
        there = {name: size for name, (_, size, _) in self._members.items() if name not in (MANIFEST, CARD)}
        if wanted != there:
            odd = sorted(set(wanted.items()) ^ set(there.items()))[0][0]
            raise _damaged(self._where, f"its members differ from its manifest ({odd})")


def _damaged(where: str, what: str) -> StoreError:
    return StoreError(f"the pack cannot be used: {what}", where, "download it again from its publisher")
