"""Files that are written whole, reach the disk, and are checked when they are read."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scvec.base.errors import InputError, ResourceError, ScvecError, StoreError

__all__ = [
    "check_file",
    "check_reference_name",
    "content_name",
    "holds",
    "is_plain_name",
    "os_errors",
    "publish",
    "sha256_file",
    "sync_file",
    "sync_folder",
    "write_atomic",
]

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = ("No space left on device", "Disk quota exceeded", "File too large")

# (path, inode, mtime in ns, size) -> sha256 of files already read whole by this process.
_seen: dict[tuple[str, int, int, int], str] = {}


def is_plain_name(name: object) -> bool:
    """True if ``name`` is a file name that cannot lead out of its folder."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and ".." not in name


def check_reference_name(name: str) -> None:
    """Raise InputError where ``name`` cannot be the name of a reference."""
    if not is_plain_name(name):
        raise InputError(
            f"{name!r} cannot be the name of a reference",
            "--name",
            "use letters, digits, '.', '_' and '-', a letter or digit first",
            code="bad-name",
        )


def content_name(name: str, sha256: str, ext: str) -> str:
    """Return ``name-<16 hex>.ext``, the name under which content is kept."""
    full = f"{name}-{sha256[:16]}.{ext}"
    if not is_plain_name(full):
        raise ValueError(f"not a plain file name: {full!r}")
    return full


@contextmanager
def os_errors(where: str | Path) -> Iterator[None]:
    """Translate a full disk, exhausted memory or missing rights into errors of scvec.

    Libraries report a full disk each in its own way (FAISS as RuntimeError, safetensors and DuckDB as errors
    of their own), so the text of foreign errors is looked at too.
    """
    try:
        yield
    except ScvecError:
        raise
    except MemoryError as error:
        raise ResourceError("out of memory", str(where), "free memory or use a smaller reference") from error
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL or any(text in str(error) for text in _FULL_TEXT):
            raise ResourceError(
                "the disk is full; the store was not changed",
                str(where),
                "free space, then run the command again",
                code="disk-full",
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"no permission to write ({os.strerror(code)})",
                str(where),
                "choose another folder with --store",
                code="permission-denied",
            ) from error
        raise


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the platform can."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    sync_file(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a small file: readers see the old content or the new, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish(source: Path, target: Path) -> None:
    """Move a finished, flushed file to its final name on the same file system."""
    os.replace(source, target)


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hex, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def holds(path: Path, n_bytes: int, sha256: str) -> bool:
    """True if the file is there with this size and SHA-256."""
    try:
        return path.stat().st_size == n_bytes and sha256_file(path) == sha256
    except OSError:
        return False


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"a file of the store {what}",
        str(path),
        "run `scvec verify` to see all damage; restore the store from a copy, or ingest again",
    )


def _check_size(path: Path, n_bytes: int) -> os.stat_result:
    """Raise StoreError unless ``path`` is a regular file of ``n_bytes`` bytes."""
    try:
        # lstat: a link or a pipe under a file's name is not what was stored, and a pipe would block.
        found = os.lstat(path)
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(path, "is not a regular file")
    if found.st_size != n_bytes:
        raise _damaged(path, f"has {found.st_size:,} bytes instead of {n_bytes:,}")
    return found


def check_file(path: Path, n_bytes: int, sha256: str, *, fresh: bool = False) -> Path:
    """Raise StoreError unless the file has this size and SHA-256; return ``path``.

    A file is read once a process, until its inode, size or modification time changes; ``fresh`` reads it
    in any case.
    """
    found = _check_size(path, n_bytes)
    key = (str(path), found.st_ino, found.st_mtime_ns, found.st_size)
    actual = None if fresh else _seen.get(key)
    if actual is None:
        try:
            actual = sha256_file(path)
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror})") from error
        _seen[key] = actual
    if actual != sha256:
        raise _damaged(path, f"is damaged (SHA-256 {actual[:12]}…, should be {sha256[:12]}…)")
    return path
