"""Which device computes."""

from __future__ import annotations

import glob
import sys

from scvec.base.errors import InputError

__all__ = ["check_device", "resolved_device"]


def check_device(device: str) -> str:
    """Return ``device``.

    Raises
    ------
    InputError
        If it is none of ``auto``, ``cpu`` and ``cuda``, or ``cuda`` is asked for and there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"there is no device {device!r}", "--device", "devices: auto, cpu, cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "this machine offers no CUDA device to torch",
                f"torch {torch.__version__}",
                "leave out --device, or install a CUDA build of torch on a machine with a GPU",
                code="no-gpu",
            )
    return device


def resolved_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for what was asked for.

    Raises
    ------
    InputError
        As :func:`check_device`.
    """
    if check_device(device) == "auto":
        if "torch" not in sys.modules and not _may_have_gpu():
            return "cpu"  # loading torch takes longer than naming a thousand cells
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _may_have_gpu() -> bool:
    """Return False where there is certainly no GPU: on Linux, none without a device file of its driver."""
    if sys.platform != "linux":
        return True
    # NVIDIA; AMD, which torch calls CUDA too; Windows below this Linux
    return any(glob.glob(pattern) for pattern in ("/dev/nvidia*", "/dev/kfd", "/dev/dxg"))
