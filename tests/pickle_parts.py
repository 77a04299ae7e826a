"""What the tests of pickles share."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from scvec.workflows.import_legacy import load_plain


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


def load(folder: Path, value: Any, protocol: int = 4, **options: Any) -> Any:
    return load_plain(write(folder / "x.pkl", value, protocol), **options)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module: str, name: str) -> bytes:
    return short(module) + short(name) + b"\x93"
