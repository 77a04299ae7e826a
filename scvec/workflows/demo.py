"""``scvec demo``: ingest, query and report with the cells that ship with scvec."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import anndata
import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.results import NextStep, Record, Report, Stages, counts_line, table, times_line
from scvec.base.types import Progress, no_progress
from scvec.model.calibration import accuracy, macro_f1
from scvec.model.query_options import QueryOptions
from scvec.workflows.ingest_cells import ingest_cells
from scvec.workflows.query import query_one

__all__ = ["MERGED", "demo", "merge_labels"]

#: Baron's human and mouse cells were labelled separately: one species has finer labels for these types.
MERGED = {
    "activated_stellate": "stellate",
    "quiescent_stellate": "stellate",
    "T_cell": "immune",
    "t_cell": "immune",
    "B_cell": "immune",
    "immune_other": "immune",
    "macrophage": "immune",
    "mast": "immune",
}

#: Name of the reference, which is not a name that users give to their own.
REFERENCE = "demo-pancreas"
#: Donors of the human reference; the other two are the query.
REFERENCE_DONORS = ("human1", "human2")


def merge_labels(labels: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Return labels with one stellate type and one immune type."""
    return np.array([MERGED.get(str(label), str(label)) for label in labels])


def demo(
    out: Path | str, *, store: Path | None = None, seed: int = 0, progress: Progress = no_progress
) -> DemoReport:
    """Annotate held-out human donors and mouse cells with two human donors (Baron et al. 2016, GSE84133).

    Parameters
    ----------
    out
        Folder for the annotated files; created if missing.
    store
        Folder of the store. Default: a folder in ``out``.

    Returns
    -------
    DemoReport
        Labels, accuracy and macro-F1 of both queries, and the report of the mouse cells. Mouse cells are
        scored with merged stellate and immune types (``MERGED``), because the two species have different
        labels.
    """
    stages = Stages()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            "the output folder is a file",
            str(folder),
            "give another --out",
            code="output-not-writable",
        ) from error
    with stages("prepare"):
        progress("splitting donors", 0, None)
        paths = _split(folder)
    where = store if store is not None else folder / "store"
    with stages("ingest"):
        made = ingest_cells(
            where,
            [paths["reference"]],
            name=REFERENCE,
            label_key="cell_type",
            batch_key="donor",
            seed=seed,
            progress=progress,
        )
    queries = []
    for key, title in (
        ("human_query", "human donors 3 and 4, annotated with donors 1 and 2"),
        (
            "mouse_query",
            "mouse pancreas, annotated with human donors 1 and 2 (stellate and immune types merged)",
        ),
    ):
        output = folder / f"{key.removesuffix('_query')}_annotated.h5ad"
        with stages(key.replace("_", " ")):
            started = time.monotonic()
            page = folder / "report.html" if key == "mouse_query" else None
            options = QueryOptions(reference=REFERENCE, output=output, report=page)
            found = query_one(where, paths[key], options, progress=progress)
            seconds = time.monotonic() - started
        truth = anndata.read_h5ad(paths[key], backed="r").obs["cell_type"].to_numpy().astype(str)
        said = found.label.astype(str)
        if key == "mouse_query":
            truth, said = merge_labels(truth), merge_labels(said)
        queries.append(
            DemoQuery(
                name=title,
                n_cells=len(found),
                labels=found.counts(),
                accuracy=accuracy(truth, said),
                macro_f1=macro_f1(truth, said),
                seconds=seconds,
                file=output,
            )
        )
    return DemoReport(
        queries=queries,
        seconds=_detailed(stages.seconds, made.seconds),
        files=sorted(p for p in folder.iterdir() if p.suffix == ".h5ad"),
        store=Path(where),
        texts=made.texts,
        report=folder / "report.html",
    )


def _split(folder: Path) -> dict[str, Path]:
    """Write the shipped cells to files: two donors as the reference, the other donors and mice as queries."""
    data = files("scvec") / "data"
    paths = {name: folder / f"{name}.h5ad" for name in ("reference", "human_query", "mouse_query")}
    with as_file(data / "baron_human.h5ad") as human, as_file(data / "baron_mouse.h5ad") as mouse:
        cells = anndata.read_h5ad(human)
        cells.uns = {}
        known = cells.obs["donor"].isin(REFERENCE_DONORS).to_numpy()
        cells[known].write_h5ad(paths["reference"], compression="lzf")
        cells[~known].write_h5ad(paths["human_query"], compression="lzf")
        paths["mouse_query"].write_bytes(mouse.read_bytes())
    return paths


def _detailed(seconds: dict[str, float], ingest: dict[str, float]) -> dict[str, float]:
    """Return the seconds per stage, with the stages of the ingest instead of its sum."""
    found: dict[str, float] = {}
    for stage, value in seconds.items():
        if stage == "ingest":
            found |= ingest
            found["checks"] = value - sum(ingest.values())
        else:
            found[stage] = value
    return found


@dataclass(frozen=True, kw_only=True)
class DemoQuery(Record):
    """One annotated data set of the demo, compared with its true labels.

    Attributes
    ----------
    labels
        Cells per predicted label.
    accuracy, macro_f1
        Against the true labels, 0-1.
    file
        The annotated file.
    """

    name: str
    n_cells: int
    labels: dict[str, int]
    accuracy: float
    macro_f1: float
    seconds: float
    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DemoReport(Report):
    """Result of ``demo``.

    Attributes
    ----------
    texts
        Number of gene texts by the source of their vectors.
    seconds
        Seconds per stage.
    files
        The h5ad files of the output folder.
    report
        The page about the mouse cells.
    """

    queries: list[DemoQuery]
    seconds: dict[str, float]
    files: list[Path]
    store: Path
    texts: dict[str, int] = field(default_factory=dict)
    report: Path | None = None

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        human, mouse = self.queries
        return (
            f"With two human donors as the reference, {human.accuracy:.0%} of {human.n_cells:,} pancreas "
            f"cells of other donors and {mouse.accuracy:.0%} of {mouse.n_cells:,} mouse cells got the label "
            "of their authors."
        )

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines: list[str] = []
        for each in self.queries:
            scores = f"accuracy {each.accuracy:.3f}, macro-F1 {each.macro_f1:.3f}"
            lines += [f"{each.name}: {each.n_cells:,} cells", *table(each.labels)]
            lines += [f"  against the true labels: {scores}", ""]
        if self.texts:
            lines.append(f"gene texts: {counts_line(self.texts)}")
        lines += [f"took {sum(self.seconds.values()):.1f} s ({times_line(self.seconds)})"]
        lines += ["files:", *(f"  {path}" for path in self.files), f"store: {self.store}", "", self.sentence]
        return [*lines, f"report of the mouse cells: {self.report}"]

    @property
    def next_step(self) -> NextStep:
        """A reference for cells of one's own."""
        return NextStep(("pull", "pancreas-human"))
