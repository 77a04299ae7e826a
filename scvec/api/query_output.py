"""What a query leaves behind: a file, a report, and a way to ask why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.annotate.annotation import Annotation
    from scvec.annotate.model import ReferenceModel
    from scvec.protocols import Progress
    from scvec.stores.stored import StoredReference

__all__ = ["check_output_file", "explainer_of", "report_query", "write_output"]

OUTPUTS = (".h5ad", ".csv", ".parquet")


def check_output_file(output: Path | str | None, path: Any) -> Path | None:
    """Return where the answer goes, or raise InputError before any work is done."""
    if output is None:
        return None
    from scvec.ingest.h5ad_output import check_output

    target = check_output(output, path if isinstance(path, str | Path) else None)
    if target.suffix not in OUTPUTS:
        what = (
            f"the ending {target.suffix!r} names no format" if target.suffix else "the output has no ending"
        )
        raise InputError(what, str(target), f"end its name in {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}")
    return target


def explainer_of(store: Path | str, path: Path | str | AnnData) -> Callable[..., Any]:
    """Return what :meth:`scvec.annotate.annotation.Annotation.explain` asks."""

    def explain(annotation: Annotation, **options: Any) -> Any:
        from scvec.api.explain import Explainer

        with Explainer.of_annotation(store, path, annotation) as explainer:
            return explainer.explain(**options)

    return explain


def report_query(
    page: Path,
    annotation: Annotation,
    stored: StoredReference,
    model: ReferenceModel,
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
    from scvec.api.write_report import command_line, write_report

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
        model.voices.labels,
        obs,
        store=asked["store"],
        path=path,
        title=title,
        command=command,
        memory=asked["memory"],
        progress=progress,
    )
    return replace(annotation, report=str(page))


def write_output(annotation: Annotation, path: Any, target: Path, columns: str) -> Annotation:
    """Write an annotation beside what it annotates, or as a table; returns it with its file named."""
    from scvec.ingest.h5ad_output import write_annotated, write_table

    if target.suffix == ".h5ad":
        table = annotation.to_table()
        if columns != "scvec":
            table = table.join(annotation.to_table(columns=columns))
        uns = {"scvec": annotation.uns(), **annotation.colors()}
        write_annotated(path, target, obs=table, obsm=annotation.obsm(), uns=uns)
    else:
        write_table(annotation.to_table(columns=columns).rename_axis("cell"), target)
    return replace(annotation, output=str(target))
