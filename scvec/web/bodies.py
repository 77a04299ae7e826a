"""Error bodies of REST answers: one shape for all, without paths of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from scvec.base.errors import ScvecError

__all__ = ["error_bytes", "without_paths"]

#: An absolute path of two parts or more, but not the path of a URL. Its last part may be told.
_PATH = re.compile(
    r"(?<![\w:/.~])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\"(),;]+)*[/\\](?=[^\s/\\])([^\s/\\'\"(),;]+)"
)


def without_paths(body: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return an error body whose absolute paths are gone.

    Parameters
    ----------
    names
        Path -> what a client calls it. Of other paths the last part stays.
    """
    told = {}
    for key, text in body.items():
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        told[key] = _PATH.sub(r"\1", text)
    return told


def error_bytes(error: ScvecError) -> bytes:
    """Return an error as the JSON of an answer."""
    return json.dumps({"error": error.body()}).encode()
