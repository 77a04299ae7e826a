"""What a query leaves behind: a file, a report, and a way to ask why."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import InputError
from scvec.base.types import no_progress

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.base.types import Progress
    from scvec.model.annotation import Annotation
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["check_output_file", "command_line", "explainer_of", "report_query", "reporter_of", "write_output"]

#: Arguments of a query that are no options of the command.
NOT_OPTIONS = ("path", "title", "progress")
OUTPUTS = (".h5ad", ".csv", ".parquet")


def check_output_file(output: Path | str | None, path: Any) -> Path | None:
    """Return where the answer goes, or raise InputError before any work is done."""
    if output is None:
        return None
    from scvec.ingest.cells.write import check_output

    target = check_output(output, path if isinstance(path, str | Path) else None)
    if target.suffix not in OUTPUTS:
        what = (
            f"the ending {target.suffix!r} names no format" if target.suffix else "the output has no ending"
        )
        raise InputError(
            what,
            str(target),
            f"end its name in {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}",
            code="output-format",
        )
    return target


def command_line(path: Any, options: Mapping[str, Any]) -> str:
    """Return the command that does a query again.

    Parameters
    ----------
    options
        Arguments of :func:`scvec.query`; those with their default value are left out.
    """
    from scvec.workflows.query import query

    words = ["scvec", "query", str(path) if isinstance(path, str | Path) else "CELLS.h5ad"]
    for name, parameter in inspect.signature(query).parameters.items():
        value = options.get(name)
        if name in NOT_OPTIONS or value is None or value == parameter.default:
            continue
        flag = f"--{name.replace('_', '-')}" if name != "output" else "-o"
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def explainer_of(store: Path | str, path: Path | str | AnnData) -> Callable[..., Any]:
    """Return what :meth:`scvec.model.annotation.Annotation.explain` asks."""

    def explain(annotation: Annotation, **options: Any) -> Any:
        from scvec.model.explainer import Explainer

        with Explainer.of_annotation(store, path, annotation) as explainer:
            return explainer.explain(**options)

    return explain


def report_query(
    page: Path,
    annotation: Annotation,
    stored: StoredReference,
    obs: pd.DataFrame,
    asked: dict[str, Any],
    progress: Progress,
) -> Annotation:
    """Write the report of a query.

    Parameters
    ----------
    asked
        The arguments of :func:`scvec.query`.
    """
    from scvec.model.storage import CODE_COLUMN
    from scvec.report.write_report import write_report

    path, title = asked["path"], asked["title"]
    command = command_line(path, asked)
    if title is not None:
        # Where the file lay does not matter to whoever gave it a title.
        names = {k: Path(asked[k]).name for k in ("output", "report") if asked[k] is not None}
        command = command_line(title, {**asked, **names, "store": None})
    write_report(
        page,
        annotation,
        stored,
        stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64),
        obs,
        store=asked["store"],
        path=path,
        title=title,
        command=command,
        memory=asked["memory"],
        progress=progress,
    )
    return annotation.changed(report=str(page))


def reporter_of(asked: dict[str, Any]) -> Callable[..., Any]:
    """Return what :meth:`scvec.model.annotation.Annotation.to_report` asks.

    Parameters
    ----------
    asked
        The arguments of :func:`scvec.query`.
    """

    def report(annotation: Annotation, output: Path | str) -> Annotation:
        from scvec.ingest.cells.source import CellSource
        from scvec.model.explanation import generation_of, same_reference
        from scvec.report.write_report import check_report

        page = check_report(output, asked["path"])
        if page is None:
            raise InputError("a report needs a file to go to", fix="to_report('report.html')")
        stored = same_reference(generation_of(asked["store"], annotation.parameters), annotation.parameters)
        how = {key: asked[key] for key in ("layer", "values", "memory")}
        with CellSource.open(asked["path"], **how) as source:
            if source.n_obs != len(annotation):
                what = f"the annotation has {len(annotation):,} cells, the data {source.n_obs:,}"
                raise InputError(what, source.name, "query the cells again", code="annotation-outdated")
            obs = source.obs
        return report_query(page, annotation, stored, obs, {**asked, "report": str(page)}, no_progress)

    return report


def write_output(annotation: Annotation, path: Any, target: Path, columns: str, memory: int) -> Annotation:
    """Write an annotation beside what it annotates, or as a table; returns it with its file named.

    The cells were read for the annotation just now, and checked before that. Where they are read again,
    ``memory`` bytes may be used.
    """
    from scvec.ingest.cells.write import write_annotated, write_tables

    if target.suffix == ".h5ad":
        table = annotation.to_table(named=False)
        if columns != "scvec":
            table = table.join(annotation.to_table(columns=columns, named=False))
        uns = {"scvec": annotation.uns(), **annotation.colors()}
        write_annotated(path, target, obs=table, obsm=annotation.obsm(), uns=uns, checked=True, memory=memory)
    else:
        write_tables((part.rename_axis("cell") for part in annotation.tables(columns=columns)), target)
    return annotation.changed(output=str(target))
