"""Read which names of cell types mean the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scvec.errors import InputError
from scvec.ingest.borders import reading

__all__ = ["as_label_map", "read_label_map"]

_FORMATS = 'a JSON object {"their name": "my name"}, or a csv or tsv file of two columns without a header'


def as_label_map(given: Mapping[str, str] | Path | str | None) -> Mapping[str, str]:
    """Return a map of labels as it is, read from a file, or empty for None."""
    if given is None:
        return {}
    return given if isinstance(given, Mapping) else read_label_map(given)


def read_label_map(path: Path | str) -> dict[str, str]:
    """Return name -> the name that it is scored under.

    Parameters
    ----------
    path
        A JSON object, or a csv or tsv file of two columns without a header. An empty second name leaves
        the cells of that label out.

    Raises
    ------
    InputError
        If the file cannot be read, is of another form, or maps one name to two.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file of labels", str(path), f"it is {_FORMATS}")
    with reading(str(path)):
        text = path.read_text(encoding="utf-8-sig")
    rows: list[list[Any]]
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(
                f"the map of labels is no JSON: {error}", str(path), f"it is {_FORMATS}"
            ) from error
        rows = [[str(k), v] for k, v in data.items()]
    else:
        import csv

        separator = "\t" if "\t" in text else ","
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    found: dict[str, str] = {}
    for row in rows:
        if len(row) != 2 or not isinstance(row[1], str):
            raise InputError(
                f"a line of the map of labels has not two names: {row}", str(path), f"it is {_FORMATS}"
            )
        name, other = row[0].strip(), row[1].strip()
        if found.setdefault(name, other) != other:
            raise InputError(f"the map of labels gives '{name}' two names", str(path), "leave one line of it")
    return found
