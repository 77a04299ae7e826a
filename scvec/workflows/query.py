"""``scvec query``: naming new cells by a reference."""

from __future__ import annotations

import inspect
import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base import arrays
from scvec.base.arrays import coded
from scvec.base.errors import InputError
from scvec.base.parallel import n_cores, side_by_side
from scvec.base.results import Stages
from scvec.base.types import Progress, no_progress
from scvec.engines.engine import AT_ONCE
from scvec.model.annotation import Annotation, check_columns, judged, provenance
from scvec.model.majority import clusters, majority, need_igraph

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.base.types import Progress
    from scvec.ingest.cells.source import CellSource
    from scvec.ingest.genes.names import GeneMap
    from scvec.model.annotation import Annotation
    from scvec.model.matching import MatchedSource
    from scvec.model.reference import Prediction, ReferenceModel
    from scvec.stores.store.reference_reader import StoredReference

__all__ = [
    "AnnotatedFile",
    "QueryFile",
    "annotate",
    "annotate_files",
    "check_output_file",
    "check_overlap",
    "command_line",
    "explainer_of",
    "only_reference",
    "query",
    "query_files",
    "report_query",
    "reporter_of",
    "write_output",
]

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
        raise InputError(what, str(target), f"end its name in {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}")
    return target


def command_line(path: Any, options: Mapping[str, Any]) -> str:
    """Return the command that does a query again.

    Parameters
    ----------
    options
        Arguments of :func:`scvec.query`; those with their default value are left out.
    """

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
        from scvec.model.explanation import Explainer

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
                raise InputError(what, source.name, "query the cells again")
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


#: Chunks after which what was freed goes back to the system: several threads leave holes in several heaps,
#: and more of them the more chunks there are.
TRIM_EVERY = 16
#: What novelty may be judged by.
NOVELTY = ("relative", "absolute")
#: Fewer genes of the reference than this say nothing about a cell.
MIN_GENES = 10


def query(
    store: Path | str,
    path: Path | str | AnnData,
    *,
    reference: str | None = None,
    output: Path | str | None = None,
    report: Path | str | None = None,
    title: str | None = None,
    n_neighbors: int = 15,
    method: str = "both",
    species: str = "auto",
    layer: str | None = None,
    values: str = "auto",
    memory: str | int | None = None,
    where: str | None = None,
    exact: bool = False,
    recall: float | None = None,
    coverage: float | None = None,
    false_novel_rate: float = 0.05,
    novelty: str = "relative",
    majority_vote: bool = False,
    columns: str = "scvec",
    unmatched_genes: str = "drop",
    force: bool = False,
    device: str = "auto",
    llm: str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    progress: Progress = no_progress,
) -> Annotation:
    """Name the cells of a file by a reference.

    Parameters
    ----------
    path
        An h5ad file, a zarr folder of anndata, an .h5 file or a folder (``matrix.mtx``, ``features.tsv``,
        ``barcodes.tsv``) of Cell Ranger, or an AnnData object; never changed.
    reference
        Name of the reference; may be left out where the store has one.
    output
        ``.h5ad`` (everything in the input, and the annotation), ``.csv`` or ``.parquet`` (the annotation).
    report
        An ``.html`` file for people: a map of the cells, tables, evidence for each label; the same numbers go
        into a ``.json`` file beside it. Needs the extra ``report``.
    title
        What to call the cells in the report; the name of the file where not given.
    n_neighbors
        Neighbours that vote; clipped to the number of reference cells.
    method
        ``both``, ``knn`` or ``head``.
    values
        What the values are: ``counts``, ``linear`` (CPM, TPM, RPKM), ``log1p``, ``log2-cpm``, ... (all in
        :data:`scvec.ingest.cells.values.VALUES`); ``auto`` finds it out, in a note.
    memory
        Bytes that may be used, as a number or like ``"4G"``; half of what is free where not given. It cuts
        the cells that are handled in one go and changes no answer.
    where
        SQL condition over the reference's obs: only those cells are neighbours, only their labels are given.
    exact
        Look at every cell of the reference. Flat indices, those of less than 200,000 cells, always do.
    recall
        Share (0-1) of the nearest cells that an approximate index is to find; that of the ingest by default.
    coverage
        Also give sets of labels that hold the true one for this share (0-1) of the cells of each type.
    false_novel_rate
        Fraction (0-1) of cells of known types that may be called novel.
    novelty
        ``relative``: what all cells of the query have in common against the reference (another platform, or
        another species) does not make them novel. ``absolute``: it does.
    majority_vote
        Also cluster the cells and give each the label of most of its cluster, in columns of its own. That
        label depends on the other cells of the query; needs the extra ``cluster``.
    columns
        ``scvec``, or ``celltypist``: tables get the columns that CellTypist writes instead, an h5ad both.
    unmatched_genes
        ``drop``, or ``text``: a gene of the query that stands for none of the reference's stands for one
        that is left over, where the text vectors of the two are alike (docs/species.md: what it is worth).
    force
        Go on where few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Where the language model of a ``prompt`` reference lies, if it was moved since.
    engine
        ``local``, or ``ray``: workers and shards of the index on a Ray cluster, with the same answers.
        ``memory`` is then divided among the workers. Needs the extra ``ray``.
    ray_address
        ``HOST:PORT`` of the cluster's head, or ``auto`` on a node of it; one of this machine's own is started
        and stopped where not given.

    Raises
    ------
    InputError
        If the file or an option cannot be used.
    StoreError
        If the store is damaged.
    NetworkError
        If the cluster cannot be reached, or a part of it is lost that cannot be restored.
    """
    asked = dict(locals())  # first: the report repeats the command
    from scvec.base.device import check_device
    from scvec.engines.engine import check_engine
    from scvec.ingest.cells.source import CellSource
    from scvec.model.gene_fit import fitted_to
    from scvec.model.matching import UNMATCHED, match_genes, query_genes
    from scvec.model.resolvers import stored_resolver
    from scvec.model.storage import load_model
    from scvec.report.write_report import check_report
    from scvec.stores.index.shards import unsearched
    from scvec.stores.store.store import Store

    check_device(device)
    check_engine(engine, ray_address)
    check_columns(columns)
    if majority_vote:
        need_igraph()
    if unmatched_genes not in UNMATCHED:
        raise InputError(
            f"unmatched_genes is drop or text, not {unmatched_genes!r}", fix="give one of the two"
        )
    if novelty not in NOVELTY:
        raise InputError(f"novelty is relative or absolute, not {novelty!r}", fix="give one of the two")
    _check_share("coverage", coverage)
    _check_share("recall", recall)
    _check_share("false_novel_rate", false_novel_rate)
    target = check_output_file(output, path)
    page = check_report(report, path)
    stages = Stages()
    with stages("open store"):
        opened = Store(store)
        stored = opened.reference(only_reference(opened, reference))
        subset = stored.rows_where(where)
    with stages("read"):
        progress("reading cells", 0, None)
        # Only a report asks what else is known of the cells.
        source = CellSource.open(path, layer=layer, memory=memory, columns=page is not None, values=values)
    with source:
        with stages("genes"):
            resolver = stored_resolver(opened)
            matched = match_genes(source, resolver, species=species, force=force)
            genes = query_genes(
                opened, stored, matched, unmatched_genes=unmatched_genes, device=device, progress=progress
            )
        with stages("load reference"):
            # On a cluster shards hold the index; what is left here is labels and weights.
            elsewhere = None if engine == "local" else unsearched(stored)
            model = load_model(stored, device=device, llm=llm, index=elsewhere, exact=exact, recall=recall)
        share = check_overlap(source, genes.measured[model.members.vector_genes], force)
        with stages("fit to genes"):
            ingested = model
            model, fitted = fitted_to(opened.path, stored, model, genes.measured, progress=progress)
            if fitted:
                source.notes.append(fitted)
        available = len(subset) if subset is not None else stored.n
        if n_neighbors > available:
            source.notes.append(f"n_neighbors clipped from {n_neighbors} to the {available} reference cells")
            n_neighbors = available
        spread = None
        if engine == "ray":
            from scvec.engines.ray_engine import predict_by_ray

            spread = partial(
                predict_by_ray,
                opened,
                stored,
                address=ray_address,
                memory=memory,
                exact=exact,
                recall=recall,
                device=device,
                llm=llm,
                fitted=None if model is ingested else model,
            )
        arrays.trim()  # of the reading: what the chunks need comes on top of it else
        with stages("encode and search"):
            prediction = _predict(
                model,
                matched,
                genes,
                progress=progress,
                method=method,
                n_neighbors=n_neighbors,
                subset=subset,
                coverage=coverage,
                spread=spread,
            )
        if model.calibration.held_out == "cells":
            source.notes.append(
                "confidence is optimistic for data from elsewhere: the reference was calibrated on held-out "
                "cells of its own batches (ingest it with --batch-key)"
            )
        parameters = {
            **provenance(opened.generation.number, stored, matched),
            "method": method,
            "n_neighbors": n_neighbors,
            "where": where,
            "exact": exact,
            "recall": recall,
            "layer": layer,
            "values": values,
            "coverage": coverage,
            "false_novel_rate": false_novel_rate,
            "novelty": novelty,
            "unmatched_genes": unmatched_genes,
            "reference_genes_measured": share,
            "fitted": model is not ingested,
        }
        arrays.trim()  # of the chunks
        with stages("judge"):
            detected = float(genes.measured[model.members.vector_genes].mean())
            annotation = judged(source, stored, model, prediction, detected, parameters, stages)
            annotation = annotation.changed(explainer=explainer_of(store, path), reporter=reporter_of(asked))
        if majority_vote:
            with stages("cluster"):
                progress("clustering cells", 0, None)
                cluster = clusters(annotation.vectors)
                voted = coded(majority(annotation.proba, cluster), annotation.classes)
                annotation = annotation.changed(cluster=cluster, majority=voted)
        if target is not None:
            with stages("write"):
                progress("writing", 0, None)
                annotation = write_output(annotation, path, target, columns, source.memory)
        if page is not None:
            with stages("report"):
                annotation = report_query(page, annotation, stored, source.obs, asked, progress)
    return annotation


def annotate(
    adata: AnnData,
    store: Path | str,
    *,
    reference: str | None = None,
    key_added: str = "scvec",
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Name the cells of an AnnData object in place.

    Parameters
    ----------
    adata
        Cells; ``obs``, ``obsm`` and ``uns`` get the annotation, X stays as it is.
    key_added
        Prefix of the columns and keys.
    copy
        Return an annotated copy and leave ``adata`` as it is.
    **options
        As for :func:`query`.

    Returns
    -------
    The copy, or None. Warnings are given as Python warnings; all notes are in ``uns[key_added]["notes"]``.
    """
    if isinstance(adata, (str, Path)):
        raise InputError(
            "annotate takes an AnnData object first, then the store",
            str(adata),
            "scvec.annotate(adata, store); for a file: scvec.query(store, path)",
        )
    result = query(store, adata, reference=reference, **options)
    for note in result.notes:
        if note.startswith("warning: "):
            warnings.warn(note.removeprefix("warning: "), stacklevel=2)
    annotated: AnnData | None = result.to_adata(adata, key_added=key_added, copy=copy)
    return annotated


def only_reference(opened: Any, reference: str | None) -> str:
    """Return the name of the reference to ask: the one given, else the only one of the store."""
    if reference is not None:
        return reference
    names = sorted(opened.generation.manifest.references)
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise InputError(
            "the store has no reference yet",
            str(opened.path),
            "run: scvec ingest cells REF.h5ad --name NAME --label-key COLUMN",
        )
    raise InputError(
        "the store has several references", str(opened.path), f"give --reference: {', '.join(names)}"
    )


def _check_share(option: str, value: float | None) -> None:
    if value is not None and not 0.0 < value < 1.0:
        raise InputError(f"{option} is a share between 0 and 1, not {value:g}", fix="give one such as 0.9")


def check_overlap(source: CellSource, measured: npt.NDArray[np.bool_], force: bool) -> float:
    """Return the share of the reference's genes that were measured; refuse where it is next to none."""
    n, total = int(measured.sum()), len(measured)
    if n < min(MIN_GENES, total) and not force:
        raise InputError(
            f"only {n} of the {total:,} genes of the reference were measured",
            source.name,
            "check --species and the names of genes, choose another reference, or go on with --force",
        )
    if n < 0.5 * total:
        source.notes.append(
            f"warning: {n:,} of the {total:,} genes of the reference were measured; labels are less certain"
        )
    return n / total


def _predict(
    model: ReferenceModel,
    matched: MatchedSource,
    genes: GeneMap,
    *,
    progress: Progress,
    spread: Callable[..., Iterator[Prediction]] | None = None,
    **options: Any,
) -> Prediction:
    from scvec.model.reference import Prediction

    total = matched.source.n_obs
    if spread is not None:
        return Prediction.gather(spread(matched, genes, progress=progress, **options), total)

    def parts() -> Iterator[Prediction]:
        done = 0
        jobs = (partial(model.predict, chunk, **options) for chunk in matched.chunks(genes))
        with closing(side_by_side(jobs, 1 if model.takes_turns else min(n_cores(), AT_ONCE))) as predictions:
            for number, prediction in enumerate(predictions, 1):
                done += len(prediction)
                yield prediction
                if number % TRIM_EVERY == 0:
                    arrays.trim()
                progress("annotating cells", done, total)

    return Prediction.gather(parts(), total)
