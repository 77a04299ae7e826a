"""Recognise a file or folder of cells by its content (not by its name), check it, and open it.

A reader is one file with one registration, and one line in ``_MODULES``::

    @reader("toy", "a .toy file", sniff=lambda given: given.head.startswith(b"TOY"))
    def read_toy(given: Given, memory: int) -> Contents: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from scvec.ingest.cells.contents import Contents
from scvec.ingest.cells.readers.checks import Given, check_hdf5, look_at, unreadable

__all__ = ["Reader", "contents_of", "formats", "kind_of", "reader"]

#: Modules of this folder that register readers; the first reader whose ``sniff`` returns True is used.
_MODULES = ("tenx", "anndata", "loom", "mudata", "folders", "rds", "parquet", "table")


@dataclass(frozen=True)
class Reader:
    """A format: how to recognise and to read it.

    Attributes
    ----------
    name
        Short name, such as ``h5ad``.
    title
        Name for messages, such as "an h5ad file".
    sniff
        Returns whether a file has this format, from its first bytes or from the root of an HDF5 file.
    read
        Lists the content within some bytes of memory; ``Contents.close`` closes ``given.file``.
    parts
        Groups in the root of an HDF5 file that ``read`` uses: only these are checked for unknown types
        and huge chunks. Empty means all.
    last
        Whether to try the other readers first, because ``sniff`` accepts files of other formats too.
    """

    name: str
    title: str
    sniff: Callable[[Given], bool]
    read: Callable[[Given, int], Contents]
    parts: tuple[str, ...] = ()
    last: bool = False


_READERS: dict[str, Reader] = {}


def reader(
    name: str, title: str, *, sniff: Callable[[Given], bool], parts: tuple[str, ...] = (), last: bool = False
) -> Callable[[Callable[[Given, int], Contents]], Callable[[Given, int], Contents]]:
    """Register a function as the reader of a format; see :class:`Reader`."""

    def register(read: Callable[[Given, int], Contents]) -> Callable[[Given, int], Contents]:
        _READERS[name] = Reader(name, title, sniff, read, parts, last)
        return read

    return register


def _readers() -> list[Reader]:
    for module in _MODULES:
        import_module(f"{__name__}.{module}")
    return sorted(_READERS.values(), key=lambda each: each.last)


def formats() -> str:
    """Return the readable formats, for messages: "an h5ad file, ... or ..."."""
    *titles, last = (each.title for each in _readers())
    return f"{', '.join(titles)} or {last}"


def _reader_of(given: Given) -> Reader:
    for each in _readers():
        if each.sniff(given):
            return each
    raise unreadable(given, f"give {formats()}")


def kind_of(path: str | os.PathLike[str], memory: int, *, checked: bool = False) -> str:
    """Return the name of the format of a file or folder, and check it unless ``checked``.

    Raises
    ------
    InputError
        If no reader recognises it, or it is damaged.
    """
    given = look_at(path, checked=checked)
    try:
        found = _reader_of(given)
        if given.file is not None and not checked:
            check_hdf5(given, memory, found.parts)
        return found.name
    finally:
        given.close()


def contents_of(path: str | os.PathLike[str], memory: int) -> Contents:
    """Check and open a file or folder of any format that has a reader.

    Raises
    ------
    InputError
        If no reader recognises it, or it is damaged.
    ResourceError
        If it needs more than ``memory``.
    """
    given = look_at(path)
    try:
        found = _reader_of(given)
        if given.file is not None:
            check_hdf5(given, memory, found.parts)
        return found.read(given, memory)
    except BaseException:
        given.close()
        raise
