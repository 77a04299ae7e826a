"""Several files to be annotated, each with outputs of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError
from scvec.base.types import Progress, no_progress

if TYPE_CHECKING:
    from scvec.model.annotation import Annotation

__all__ = ["AnnotatedFile", "QueryFile", "annotate_files", "query_files"]

#: Stands in the name of an output for the name of the file that it answers.
PLACE = "{}"


@dataclass(frozen=True)
class QueryFile:
    """A file, and where its answer and its report go."""

    path: Path
    output: Path | None = None
    report: Path | None = None


@dataclass(frozen=True)
class AnnotatedFile:
    """The answer about one file of several, which says whose it is."""

    path: Path
    annotation: Annotation

    @property
    def notes(self) -> Iterable[str]:
        """The notes, with the file's name: those of several files stand below each other."""
        marked = (n.removeprefix("warning: ") for n in self.annotation.notes)
        for note, text in zip(self.annotation.notes, marked, strict=True):
            yield f"{'warning: ' if text != note else ''}{self.path.name}: {text}"

    def to_dict(self) -> dict[str, Any]:
        """Return the answer's object with the file as ``query``."""
        return {"query": str(self.path), **self.annotation.to_dict()}

    def lines(self) -> list[str]:
        """Return the answer's lines under the file's name."""
        return [f"{self.path}:", *self.annotation.lines(), ""]


def query_files(
    paths: Sequence[Path | str],
    output: Path | str | None = None,
    report: Path | str | None = None,
) -> list[QueryFile]:
    """Return each file with the outputs that are meant for it.

    Parameters
    ----------
    paths
        Files, in the order in which they are to be annotated.
    output, report
        As for :func:`scvec.query`; ``{}`` in them stands for the name of the file without its ending, as in
        ``annotated/{}.h5ad``. Files of one name in several folders have those before it.

    Raises
    ------
    InputError
        If several files would be answered in one, or one of them is not there.
    """
    once = list(dict.fromkeys(map(Path, paths)))
    found = [
        QueryFile(path, _placed(output, name), _placed(report, name))
        for path, name in zip(once, _names(once), strict=True)
    ]
    for option, given, targets in (
        ("--output", output, [f.output for f in found]),
        ("--report", report, [f.report for f in found]),
    ):
        taken: dict[Path, Path] = {}
        for file, target in zip(found, targets, strict=True):
            if target is not None and target in taken:
                raise _shared(option, Path(str(given)), taken[target], file.path)
            if target is not None:
                taken[target] = file.path
    missing = [file.path for file in found if not file.path.exists()]
    if missing and len(found) > 1:
        raise InputError(
            f"{len(missing)} of the {len(found)} files are not there, the first of them",
            str(missing[0]),
            "check the names; none was annotated",
            code="file-not-found",
        )
    return found


def annotate_files(
    store: Path | str,
    files: Sequence[QueryFile],
    *,
    progress: Callable[[], AbstractContextManager[Progress]] = lambda: nullcontext(no_progress),
    **options: Any,
) -> Iterator[AnnotatedFile | InputError]:
    """Annotate files one by one; yield the answer of each, or why it could not be used.

    Parameters
    ----------
    progress
        Returns a context that gives what the progress of one file is reported to.
    **options
        As for :func:`scvec.query`.

    Raises
    ------
    InputError
        Two files in a row were refused in the same words: it is not a matter of the files.
    StoreError, NetworkError
        As :func:`scvec.query`.
    """
    from scvec.workflows.query import query

    refused: InputError | None = None
    for file in files:
        try:
            with progress() as report:
                annotation = query(
                    store, file.path, output=file.output, report=file.report, progress=report, **options
                )
        except InputError as error:
            if refused is not None and error.lines() == refused.lines():
                raise
            refused = error
            yield error
        else:
            yield AnnotatedFile(file.path, annotation)


def _placed(target: Path | str | None, name: str) -> Path | None:
    return None if target is None else Path(str(target).replace(PLACE, name))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its own, and where others have it too the folders that tell them apart.

    So ``a/outs/cells.h5`` and ``b/outs/cells.h5`` are ``a-cells`` and ``b-cells``.
    """
    places = [Path(os.path.abspath(path)) for path in paths]  # a link keeps its own name
    stems = [_stem(place) for place in places]
    names = []
    for place, stem in zip(places, stems, strict=True):
        alike = [p.parent.parts for p, s in zip(places, stems, strict=True) if s == stem]
        folders = place.parent.parts
        start = _n_shared(alike)
        stop = len(folders) - _n_shared([parts[start:][::-1] for parts in alike])
        names.append("-".join([*(folders[start:stop] if len(alike) > 1 else ()), stem]))
    return names


def _n_shared(many: Sequence[Sequence[str]]) -> int:
    """Return how many of their first parts are the same in all."""
    return next(
        (i for i, parts in enumerate(zip(*many, strict=False)) if len(set(parts)) > 1), min(map(len, many))
    )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".h5ad", ".h5", ".zarr"):
        name = name.removesuffix(ending)
    return name


def _shared(option: str, given: Path, one: Path, other: Path) -> InputError:
    what = f"{one} and {other} would both be answered in one {option}"
    if PLACE in str(given):
        return InputError(what, str(given), "annotate one of them by a command of its own")
    example = given.with_stem(PLACE)
    return InputError(
        what, str(given), f"put {PLACE} into the name, which stands for the file's: '{example}'"
    )
