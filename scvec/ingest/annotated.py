"""What an annotated h5ad says about how it was annotated."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from scvec.errors import InputError
from scvec.ingest.borders import reading
from scvec.ingest.checks import check_h5ad

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["read_parameters"]

#: Parameters are some thousand characters; a file is not trusted to hold no more.
MAX_CHARACTERS = 2**20


def read_parameters(source: str | os.PathLike[str] | AnnData, key: str = "scvec") -> dict[str, Any]:
    """Return the parameters in ``uns[key]`` of an annotated file or AnnData object.

    A file is checked first, as all files are.

    Raises
    ------
    InputError
        If there are none: the file was not annotated by scvec, or they are damaged.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else "the AnnData object"
    text = _text(source, key, name)
    if text is None:
        raise InputError(
            f"there is no uns['{key}']: these cells were not annotated by scvec",
            name,
            "annotate them first: scvec query FILE.h5ad --reference NAME -o OUT.h5ad, and give OUT.h5ad",
        )
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found["reference"], str):
            raise ValueError("no reference is named")
        if not isinstance(found["generation"], int) or not isinstance(found["regime"], str):
            raise ValueError("generation or regime are missing")
    except (ValueError, KeyError, RecursionError) as error:
        what = f"uns['{key}'] is damaged: {error}"
        raise InputError(what, name, "annotate the cells again: scvec query") from error
    return found


def _text(source: str | os.PathLike[str] | AnnData, key: str, name: str) -> str | None:
    if not isinstance(source, str | os.PathLike):
        entry = source.uns.get(key)
        text = entry.get("parameters") if hasattr(entry, "get") else None
        return None if text is None else str(text)
    import h5py

    check_h5ad(source)
    with reading(name, f"uns/{key}"), h5py.File(source, "r", locking="best-effort") as file:
        item = file.get("uns")
        for part in (key, "parameters"):
            item = item.get(part) if isinstance(item, h5py.Group) else None
        if not isinstance(item, h5py.Dataset) or item.shape != ():
            return None
        value = item[()]
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"uns['{key}'] holds {len(text):,} characters of parameters", name, "annotate again")
    return text
