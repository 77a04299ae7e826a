"""Resources of this machine that a command may use: memory, device, cache folder."""

from __future__ import annotations

import glob
import os
import re
import sys
from pathlib import Path

from scvec.base.errors import InputError

__all__ = ["available_memory", "cache_folder", "check_device", "expanded", "parse_memory", "resolved_device"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_memory(text: str | int | None) -> int:
    """Convert ``"4G"``, ``"512M"``, ``"1.5GiB"`` or a number of bytes to bytes.

    Parameters
    ----------
    text
        Amount of memory. None means half of the free memory, but at least 256 MiB.

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
    """Return the free memory in bytes, or 4 GiB if the system does not report it."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def check_device(device: str) -> str:
    """Check a device option and return it unchanged.

    Raises
    ------
    InputError
        If ``device`` is not ``auto``, ``cpu`` or ``cuda``, or is ``cuda`` and torch finds no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        what, fix = f"there is no device {device!r}", "devices: auto, cpu, cuda"
        raise InputError(what, "--device", fix, code="unknown-choice")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "torch finds no CUDA device on this machine",
                f"torch {torch.__version__}",
                "leave out --device, or install a CUDA build of torch on a machine with a GPU",
                code="no-gpu",
            )
    return device


def resolved_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for a device option.

    Raises
    ------
    InputError
        As :func:`check_device`.
    """
    if check_device(device) == "auto":
        if "torch" not in sys.modules and not _may_have_gpu():
            return "cpu"  # loading torch takes longer than annotating a thousand cells
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _may_have_gpu() -> bool:
    """Return False if there is certainly no GPU. On Linux, the driver of every GPU has a device file."""
    if sys.platform != "linux":
        return True
    # NVIDIA; AMD, which torch calls CUDA too; Windows Subsystem for Linux
    return any(glob.glob(pattern) for pattern in ("/dev/nvidia*", "/dev/kfd", "/dev/dxg"))


_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~``, ``~user`` and ``$NAME`` replaced, as a shell does.

    A path that is there is taken as it is: names may hold these signs.

    Raises
    ------
    InputError
        If there is no such user or no such variable, so that nothing is made under the name of one.
    """
    given = os.fspath(path)
    if os.path.lexists(given):
        return Path(given)
    found = os.path.expanduser(os.path.expandvars(given))
    if found.startswith("~"):
        what = f"there is no user {found.split(os.sep, 1)[0][1:]!r}"
        raise InputError(what, given, f"write ./{given} for a name that begins with ~", code="file-not-found")
    if missing := _VARIABLE.search(found):
        what = f"the variable {missing[0]} is not set"
        raise InputError(what, given, "set it, or write the path out", code="file-not-found")
    return Path(found)


def cache_folder() -> Path:
    """Return the folder for reproducible files: ``$SCVEC_CACHE``, else the user's cache folder."""
    if found := os.environ.get("SCVEC_CACHE"):
        return Path(found).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("scvec", appauthor=False)
