"""What the tests of pickles share: writing them, and reading them in this process."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from scvec.ingest import pickle_child, safe_pickle


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


def load_here(folder: Path, data: bytes) -> Any:
    """Do what the child does, in this process: without its limits, and without the time it takes to start."""
    path = folder / "result"
    with path.open("wb") as out:
        try:
            pickle_child.convert(data, io.BytesIO(data), out, 2**30)
        except pickle_child.Refused as refused:
            said = {"refused": str(refused), "name": refused.name, "kind": refused.kind}
            pickle_child._finish(out, said)
        except Exception:
            pickle_child._finish(out, {"refused": "damaged", "kind": "damaged"})
    return safe_pickle._read(path, 0, folder / "x.pkl", 2**30)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module: str, name: str) -> bytes:
    return short(module) + short(name) + b"\x93"
