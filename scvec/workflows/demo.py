"""``scvec demo``: the main job on the cells that ship with scvec."""

from __future__ import annotations

import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.results import Stages
from scvec.base.types import Progress, no_progress
from scvec.model.metrics import accuracy, macro_f1
from scvec.workflows.ingest_cells import ingest_cells
from scvec.workflows.query import query
from scvec.workflows.reports import DemoQuery, DemoReport

__all__ = ["MERGED", "demo", "merge_labels"]

#: Baron's human and mouse cells were labelled apart: these types are told apart in one species only.
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

#: Donors of the human reference; the other two are annotated.
REFERENCE_DONORS = ("human1", "human2")


def merge_labels(labels: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Return labels with the stellate types as one and the immune types as one."""
    return np.array([MERGED.get(str(label), str(label)) for label in labels])


def demo(
    out: Path | str, *, store: Path | None = None, seed: int = 0, progress: Progress = no_progress
) -> DemoReport:
    """Annotate held-out human donors, then mouse cells, by two human donors (Baron et al. 2016, GSE84133).

    Parameters
    ----------
    out
        Folder for the annotated files; made where there is none.
    store
        Folder of the store; inside ``out`` when None.

    Returns
    -------
    Labels, true accuracy and macro-F1 of both queries. Mouse cells are scored with the stellate and the
    immune types merged (``MERGED``), since the two species were not labelled alike.
    """
    import anndata

    stages = Stages()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            "a file is where the folder should be",
            str(folder),
            "give another --out",
            code="output-not-writable",
        ) from error
    data = files("scvec") / "data"
    with (
        as_file(data / "baron_human.h5ad") as human,
        as_file(data / "baron_mouse.h5ad") as mouse,
        stages("prepare"),
    ):
        progress("splitting donors", 0, None)
        cells = anndata.read_h5ad(human)
        cells.uns = {}
        known = cells.obs["donor"].isin(REFERENCE_DONORS).to_numpy()
        paths = {name: folder / f"{name}.h5ad" for name in ("reference", "human_query", "mouse_query")}
        cells[known].write_h5ad(paths["reference"], compression="lzf")
        cells[~known].write_h5ad(paths["human_query"], compression="lzf")
        paths["mouse_query"].write_bytes(mouse.read_bytes())
    where = store if store is not None else folder / "store"
    with stages("ingest"):
        made = ingest_cells(
            where,
            [paths["reference"]],
            name="pancreas",
            label_key="cell_type",
            batch_key="donor",
            seed=seed,
            progress=progress,
        )
    queries = []
    for key, title in (
        ("human_query", "human donors 3 and 4, by donors 1 and 2"),
        ("mouse_query", "mouse pancreas, by human donors 1 and 2 (stellate and immune types merged)"),
    ):
        output = folder / f"{key.removesuffix('_query')}_annotated.h5ad"
        with stages(key.replace("_", " ")):
            started = time.monotonic()
            found = query(where, paths[key], reference="pancreas", output=output, progress=progress)
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
    )


def _detailed(seconds: dict[str, float], ingest: dict[str, float]) -> dict[str, float]:
    """Return the stages with those of the ingest in its place."""
    found: dict[str, float] = {}
    for stage, value in seconds.items():
        if stage == "ingest":
            found |= ingest
            found["checks"] = value - sum(ingest.values())
        else:
            found[stage] = value
    return found
