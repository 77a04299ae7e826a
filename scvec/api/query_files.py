"""Several files to be annotated, each with outputs of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.errors import InputError

if TYPE_CHECKING:
    from scvec.annotate.annotation import Annotation

__all__ = ["AnnotatedFile", "QueryFile", "query_files"]

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
        ``annotated/{}.h5ad``.

    Raises
    ------
    InputError
        If several files would be answered in one, or one of them is not there.
    """
    found = [
        QueryFile(Path(path), _placed(output, path), _placed(report, path))
        for path in dict.fromkeys(map(Path, paths))
    ]
    for option, targets in (
        ("--output", [f.output for f in found]),
        ("--report", [f.report for f in found]),
    ):
        taken: dict[Path, Path] = {}
        for file, target in zip(found, targets, strict=True):
            if target is not None and target in taken:
                raise _shared(option, target, taken[target], file.path)
            if target is not None:
                taken[target] = file.path
    missing = [file.path for file in found if not file.path.exists()]
    if missing and len(found) > 1:
        raise InputError(
            f"{len(missing)} of the {len(found)} files are not there, the first of them",
            str(missing[0]),
            "check the names; none was annotated",
        )
    return found


def _placed(target: Path | str | None, path: Path | str) -> Path | None:
    if target is None:
        return None
    return Path(str(target).replace(PLACE, _stem(Path(path))))


def _stem(path: Path) -> str:
    name = path.resolve().name  # of "." too
    for ending in (".h5ad", ".h5", ".zarr"):
        name = name.removesuffix(ending)
    return name


def _shared(option: str, target: Path, one: Path, other: Path) -> InputError:
    if _stem(one) == _stem(other):
        fix = "give one of the files another name, or annotate it by a command of its own"
    else:
        fix = f"put {PLACE} into the name, which stands for the file's: '{target.with_stem(PLACE)}'"
    return InputError(f"{one} and {other} would both be answered in one {option}", str(target), fix)
