"""Error bodies of REST answers, all in one format and without paths of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from scvec.base.errors import ScvecError

__all__ = ["error_bytes", "without_paths"]

#: An absolute path of two parts or more, but not the path of a URL. The group is the last part.
_PATH = re.compile(
    r"(?<![\w:/.~])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\"(),;]+)*[/\\](?=[^\s/\\])([^\s/\\'\"(),;]+)"
)


def without_paths(body: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return an error body without absolute paths.

    Parameters
    ----------
    names
        Path -> replacement. Other paths are replaced by their last part.
    """
    cleaned = {}
    for key, text in body.items():
        for path in sorted(names, key=len, reverse=True):
            text = text.replace(path, names[path])
        cleaned[key] = _PATH.sub(r"\1", text)
    return cleaned


def error_bytes(error: ScvecError) -> bytes:
    """Return an error as the JSON body of an answer."""
    return json.dumps({"error": error.body()}).encode()
