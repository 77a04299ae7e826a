"""Where foreign errors become ours: damaged HDF5 files, full disks, too little memory."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from scvec.base.errors import InputError, ResourceError, ScvecError

__all__ = ["available_memory", "count_text", "disk_errors", "parse_memory", "reading", "size_text"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# EFBIG is a file-size limit of the process or file system: to the user the same thing, no room.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ROOM_TEXT = re.compile(
    rf"errno = (?:{'|'.join(map(str, sorted(_NO_ROOM)))})\b|No space left|quota exceeded", re.IGNORECASE
)


def parse_memory(text: str | int | None) -> int:
    """Turn ``"4G"``, ``"512M"``, ``"1.5GiB"`` or a number of bytes into bytes.

    Parameters
    ----------
    text
        None means half of the memory that is free now.

    Raises
    ------
    InputError
        If the text is not a positive amount.
    """
    if text is None:
        return max(available_memory() // 2, 2**28)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.I)
    amount = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if amount <= 0:
        raise InputError(
            f"cannot read {text!r} as an amount of memory",
            "--memory",
            "write it like 4G or 512M",
            code="option-out-of-range",
        )
    return amount


def available_memory() -> int:
    """Bytes of memory that are free now, or 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def count_text(n: int, noun: str) -> str:
    """Write ``1 cell`` or ``2,000 cells``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def size_text(n_bytes: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


@contextlib.contextmanager
def reading(path: str | Path, part: str = "") -> Iterator[None]:
    """Turn whatever h5py or anndata raise on a damaged file into an ``InputError``.

    Both let errors of every kind through when a file lies (OSError, KeyError, ValueError, TypeError,
    UnicodeDecodeError, ...), so nothing narrower will do; only foreign reading belongs inside.
    """
    where = f"{path} ({part})" if part else str(path)
    try:
        yield
    except ScvecError:
        raise
    except MemoryError as error:
        raise ResourceError(
            "the file asks for more memory than there is", where, "check the file, or use a larger machine"
        ) from error
    except Exception as error:
        reason = str(error).strip("'\"").split("\n")[0][:160] or type(error).__name__
        raise InputError(
            f"the file is damaged or not a valid h5ad: {reason}",
            where,
            "copy or download it again, or write it anew with adata.write_h5ad()",
            code="damaged-file",
        ) from error


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of writing to ``path`` into ``ResourceError`` (no room) or ``InputError``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # HDF5 raises OSError or RuntimeError and keeps errno in its text only.
        code = getattr(error, "errno", None)
        if code in _NO_ROOM or _NO_ROOM_TEXT.search(str(error)):
            raise ResourceError(
                "the disk is full; nothing was written",
                str(path),
                "free some space, or write elsewhere",
                code="disk-full",
            ) from error
        if isinstance(error, OSError):
            reason = os.strerror(code) if code else str(error).split("\n")[0]
            raise InputError(
                f"cannot write the output: {reason}",
                str(path),
                "choose another place for it",
                code="output-not-writable",
            ) from error
        raise
