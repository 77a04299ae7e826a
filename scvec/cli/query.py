"""``scvec query`` and ``scvec explain``: annotate new cells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scvec.base.errors import InputError
from scvec.cli.options import (
    FilePath,
    Session,
    any_species_option,
    coverage_option,
    device_option,
    engine_options,
    false_novel_option,
    global_options,
    layer_option,
    llm_option,
    memory_option,
    method_option,
    n_neighbors_option,
    novelty_option,
    pass_session,
    unmatched_option,
    values_option,
    vectors_only_option,
    where_option,
)
from scvec.model.query_options import COLUMNS, QueryOptions

if TYPE_CHECKING:
    from scvec.base.results import NextStep
    from scvec.base.types import Progress
    from scvec.model.annotation import Annotation
    from scvec.workflows.query_many import JointAnnotation

__all__ = ["AnnotatedFile", "QueryFile", "explain", "query", "query_files"]


@click.command()
@click.argument("annotated", metavar="OUT.h5ad", type=FilePath())
@click.option("--cell", metavar="ID", help="Explain this cell.")
@click.option("--label", metavar="NAME", help="Explain the cells with this label.")
@click.option(
    "--against",
    metavar="LABEL",
    help="Compare with this label.  [default: the second most likely label of each cell]",
)
@click.option("--n-genes", type=click.IntRange(min=0), default=10, show_default=True, help="Number of genes.")
@memory_option
@global_options
@pass_session
def explain(
    session: Session,
    annotated: Path,
    cell: str | None,
    label: str | None,
    against: str | None,
    n_genes: int,
    memory: str | None,
) -> None:
    """Show the evidence for a label.

    It lists the genes and reference cells that support the label of a cell, or of all cells of a label.

    OUT.h5ad is the output of scvec query. The cells are annotated again with the store of that query.
    Give --cell or --label.

    \b
    Examples:
      scvec explain annotated.h5ad --label beta
      scvec explain annotated.h5ad --cell AAACCTGAGAAACCAT-1 --against alpha
    """
    from scvec.workflows.explain import explain as explain_

    with session.progress() as progress:
        found = explain_(
            session.store,
            annotated,
            cell=cell,
            label=label,
            against=against,
            n_genes=n_genes,
            memory=memory,
            progress=progress,
        )
    session.show(found)


#: Placeholder in the name of an output for the name of the annotated file.
PLACE = "{}"


@click.command()
@click.argument("queries", metavar="QUERY...", nargs=-1, required=True, type=FilePath())
@click.option(
    "--reference",
    multiple=True,
    metavar="NAME",
    help="Name of the reference; repeat it to combine several.  [default: the only one]",
)
@click.option(
    "-o",
    "--output",
    type=FilePath(),
    metavar="OUT",
    help="Output file: .h5ad, .csv or .parquet; {} is replaced by the name of QUERY.  "
    "[default: print the counts only]",
)
@click.option(
    "--report",
    type=FilePath(),
    metavar="OUT.html",
    help="File for the report: map, tables, evidence; also writes the numbers as JSON.",
)
@n_neighbors_option
@method_option
@vectors_only_option
@any_species_option
@layer_option
@values_option
@memory_option
@where_option
@click.option("--exact", is_flag=True, help="Compare with every reference cell, without approximation.")
@click.option(
    "--recall",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    metavar="FRACTION",
    help="Fraction of the nearest cells that an approximate index must find.  [default: from the ingest]",
)
@coverage_option
@false_novel_option
@novelty_option
@click.option(
    "--majority-vote",
    is_flag=True,
    help="Add the most frequent label in the cluster of each cell; needs igraph.",
)
@click.option("--name-novel", is_flag=True, help="Name groups of novel cells with known markers.")
@click.option("--tissue", default="", help="Tissue of the cells for --name-novel, such as lung.")
@click.option(
    "--columns",
    type=click.Choice(COLUMNS),
    default=QueryOptions.columns,
    show_default=True,
    help="Column names: those of scvec or of CellTypist.",
)
@unmatched_option
@click.option("--force", is_flag=True, help="Continue even if few genes match.")
@device_option
@llm_option("Path of the language model of the reference, if it moved.")
@engine_options
@global_options
@pass_session
def query(
    session: Session, /, queries: tuple[Path, ...], output: Path | None, report: Path | None, **chosen: Any
) -> None:
    """Annotate the cells of QUERY with a reference. QUERY is never changed.

    QUERY is an h5ad, zarr, loom, h5mu, rds (extra r), csv or tsv, or the output folder of Cell Ranger,
    STARsolo, kb or Parse, or a GEO sample by its prefix.
    Several files are annotated separately: the label of a cell does not depend on the other files.

    \b
    Examples:
      scvec query new.h5ad --reference pancreas -o annotated.h5ad --report report.html
      scvec query new.h5ad --where "donor = 'human1'" -o labels.csv
      scvec query sample1.h5ad sample2.h5ad -o '{}-labels.csv'
      scvec query new.h5ad --reference lung --reference blood -o annotated.h5ad
    """
    files = query_files(queries, output, report)
    found = annotate_files(session.store, files, QueryOptions(**chosen), progress=session.progress)
    errors: list[InputError] = []
    step: NextStep | None = None
    for one in found:
        if not isinstance(one, InputError):
            session.show(one if len(files) > 1 else one.annotation)
            step = step or one.annotation.next_step
        elif len(files) == 1:
            raise one
        else:
            session.error(one, one)
            errors.append(one)
    if len(files) > 1 and step is not None and not step.again:
        session.suggest(step)
    if errors:
        session.note(f"{len(files) - len(errors)} of {len(files)} files were annotated")
        click.get_current_context().exit(errors[0].exit_code)


@dataclass(frozen=True)
class QueryFile:
    """A query file, and the paths of its output and report."""

    path: Path
    output: Path | None = None
    report: Path | None = None


@dataclass(frozen=True)
class AnnotatedFile:
    """The annotation of one of several files, with the name of the file."""

    path: Path
    annotation: Annotation | JointAnnotation

    @property
    def notes(self) -> Iterable[str]:
        """The notes, each with the name of the file."""
        marked = (n.removeprefix("warning: ") for n in self.annotation.notes)
        for note, text in zip(self.annotation.notes, marked, strict=True):
            yield f"{'warning: ' if text != note else ''}{self.path.name}: {text}"

    def to_dict(self) -> dict[str, Any]:
        """Return the summary of the annotation with the file as ``query``."""
        return {"query": str(self.path), **self.annotation.to_dict()}

    def lines(self) -> list[str]:
        """Return the summary as lines of text, under the name of the file."""
        return [f"{self.path}:", *self.annotation.lines(), ""]


def query_files(
    paths: Sequence[Path | str], output: Path | str | None = None, report: Path | str | None = None
) -> list[QueryFile]:
    """Return each file with its outputs.

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
        If several files would have one output, or one of them does not exist.
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
            f"{len(missing)} of the {len(found)} files do not exist; this is the first",
            str(missing[0]),
            "check the names; no file was annotated",
            code="file-not-found",
        )
    return found


def annotate_files(
    store: Path | str,
    files: Sequence[QueryFile],
    options: QueryOptions,
    *,
    progress: Callable[[], AbstractContextManager[Progress]],
) -> Iterator[AnnotatedFile | InputError]:
    """Annotate files one by one; yield the annotation or the error of each.

    Parameters
    ----------
    options
        Of each query, but for ``output`` and ``report``.
    progress
        Returns a context that gives what the progress of one file is reported to.

    Raises
    ------
    InputError
        Two files in a row were refused in the same words: the files are not the reason.
    StoreError, NetworkError
        As :func:`scvec.query`.
    """
    from scvec.workflows.query import query as annotate

    refused: InputError | None = None
    for file in files:
        try:
            with progress() as report:
                of_file = replace(options, output=file.output, report=file.report)
                annotation = annotate(store, file.path, of_file, progress=report)
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
    """Return a unique name for each file: its own, with folders added if several files have the same name.

    For example, ``a/outs/cells.h5`` and ``b/outs/cells.h5`` become ``a-cells`` and ``b-cells``.
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
    """Return the number of leading parts that all have in common."""
    return next(
        (i for i, parts in enumerate(zip(*many, strict=False)) if len(set(parts)) > 1), min(map(len, many))
    )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".h5ad", ".h5", ".zarr"):
        name = name.removesuffix(ending)
    return name


def _shared(option: str, given: Path, one: Path, other: Path) -> InputError:
    what = f"{one} and {other} would have the same {option}"
    if PLACE in str(given):
        return InputError(what, str(given), "annotate one of them with a separate command")
    example = given.with_stem(PLACE)
    return InputError(what, str(given), f"use {PLACE} for the name of the query file, such as '{example}'")
