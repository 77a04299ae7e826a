"""``scvec ingest census``: a balanced draw of CELLxGENE Census into a reference."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.resources import parse_memory
from scvec.base.results import Report, human_bytes, table
from scvec.base.types import Progress, Species, no_progress
from scvec.ingest.sources.census import (
    Census,
    Drawn,
    check_where,
    cost_of,
    draw,
    gathered,
    open_census,
    value_filter,
)

if TYPE_CHECKING:
    from scvec.workflows.ingest_cells import CellsReport

__all__ = ["CensusOptions", "CensusReport", "ingest_census", "recipes"]

#: Seconds of an ingest whatever the cells, and per cell, on two cores: for the estimate of a dry run.
FIXED_SECONDS, SECONDS_PER_CELL = 15.0, 0.002


@dataclass(frozen=True, kw_only=True)
class CensusOptions:
    """Which cells of the Census become a reference.

    Attributes
    ----------
    name
        What the reference is called; ``RECIPE-ORGANISM`` or ``TISSUE-ORGANISM`` where empty.
    organism
        ``human`` or ``mouse``.
    tissue
        Names of tissues, as ``tissue_general`` or ``tissue`` of the Census have them.
    where
        Condition on columns of obs, in the words of SOMA's value filters. Only primary data is taken unless
        it names ``is_primary_data``.
    max_per_type
        Cells of a type at most, evenly of its datasets and donors.
    min_cells
        Types of fewer cells are left out.
    census_version
        ``stable``, ``latest`` or the date of a build.
    uri
        A copy of the Census: a folder or the address of a mirror.
    recipe
        Name of a recipe (:func:`recipes`): what is not given is as it says.
    seed
        Two draws with one seed have the same cells.
    memory
        Bytes that may be used, as a number or like ``"4G"``; half of what is free where not given.
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If an option cannot be used, or nothing says which cells.
    """

    name: str = ""
    organism: Species = "human"
    tissue: tuple[str, ...] = ()
    where: str | None = None
    max_per_type: int | None = None
    min_cells: int | None = None
    census_version: str = "stable"
    uri: str | None = None
    recipe: str = ""
    seed: int = 0
    memory: str | int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        known = recipes().get(self.organism)
        if known is None:
            what = f"there is no organism {self.organism!r} here"
            raise InputError(what, "--organism", "give human or mouse", code="unknown-choice")
        if self.recipe and self.recipe not in known:
            what = f"there is no recipe {self.recipe!r} for {self.organism}"
            raise InputError(what, "--recipe", f"there are: {', '.join(known)}", code="unknown-choice")
        given = {"where": "", "max_per_type": 500, "min_cells": 50, **known.get(self.recipe, {})}
        for key, value in given.items():
            if getattr(self, key) in (None, ()):
                object.__setattr__(self, key, tuple(value) if isinstance(value, list) else value)
        if not self.tissue and not self.where:
            what = "nothing says which cells of the Census to take"
            raise InputError(what, "scvec ingest census", "give --recipe, --tissue or --where")
        for key, least in (("max_per_type", 2), ("min_cells", 1), ("seed", 0)):
            if getattr(self, key) < least:
                option = "--" + key.replace("_", "-")
                what = f"{option} must be {least} or more"
                raise InputError(what, option, "leave it out for the default", code="option-out-of-range")
        check_where(str(self.where))
        parse_memory(self.memory)
        what_for = self.recipe or re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(self.tissue)) or "census"
        object.__setattr__(self, "name", self.name or f"{what_for.strip('-')}-{self.organism}")

    def record(self) -> dict[str, Any]:
        """Return what a reference keeps of its options."""
        kept = ("tissue", "where", "max_per_type", "min_cells", "recipe", "seed")
        return {key: getattr(self, key) for key in kept}


def recipes() -> dict[str, dict[str, dict[str, Any]]]:
    """Return organism -> name -> tissue, where, max_per_type and min_cells of the recipes that ship."""
    import tomllib
    from importlib.resources import files

    return tomllib.loads((files("scvec") / "data" / "recipes.toml").read_text(encoding="utf-8"))


def recipe_table() -> RecipeTable:
    """Return the recipes that ship, for people and as JSON."""
    return RecipeTable(recipes=recipes())


@dataclass(frozen=True, kw_only=True)
class RecipeTable(Report):
    """The recipes that ship, by organism and name."""

    recipes: dict[str, dict[str, dict[str, Any]]]

    def lines(self) -> list[str]:
        """Return one line per recipe."""
        return [
            f"{organism} {name}: {', '.join(r['tissue'])}; {r['where']}; up to {r['max_per_type']:,} cells "
            f"of a type, types of {r['min_cells']:,} or more"
            for organism, known in self.recipes.items()
            for name, r in known.items()
        ]


@takes_options(CensusOptions)
def ingest_census(
    store: Path | str,
    options: CensusOptions | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = no_progress,
    **keywords: Any,
) -> CensusReport:
    """Make a reference of cells of CELLxGENE Census, with their curated types and citations.

    Labels are ``cell_type`` with their Cell Ontology ids, batches ``dataset_id`` with ``donor_id``. Counts
    are read in pieces that the store keeps until the reference is made: a run that was killed goes on.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    options, **keywords
        :class:`CensusOptions`, or its fields as keywords.
    dry_run
        Only draw the cells, and estimate what reading them takes; the store is not changed.

    Raises
    ------
    InputError
        If an option cannot be used, the packages are missing, or no cells are found.
    NetworkError
        If the Census cannot be reached.
    """
    asked = options_of(CensusOptions, options, keywords)
    begun = time.perf_counter()
    making = ingest_options(asked)
    memory = parse_memory(asked.memory)
    with open_census(asked.organism, uri=asked.uri, version=asked.census_version, memory=memory) as census:
        progress("drawing cells", 0, None)
        drawn = draw_cells(census, asked)
        cost = cost_of(census, drawn) if dry_run else None
        if cost is not None:
            seconds = cost.seconds + FIXED_SECONDS + SECONDS_PER_CELL * len(drawn.obs)
            return report_of(asked, census, drawn, cost.n_bytes, seconds)
        from scvec.stores.store.store import Store
        from scvec.workflows.ingest_cells import ingest_cells

        folder = Store.open(store, create=True).path / "work"
        origin = census.origin(drawn) | {"draw": asked.record(), "tissue": ", ".join(asked.tissue)}
        with gathered(census, drawn, folder, progress) as (path, n_bytes):
            made = ingest_cells(store, [path], replace(making, origin=origin), progress=progress)
    return report_of(asked, census, drawn, n_bytes, time.perf_counter() - begun, made)


def ingest_options(asked: CensusOptions) -> Any:
    """Return how the drawn cells become a reference; what cannot be used is refused before any reading."""
    from scvec.workflows.ingest_options import IngestOptions

    return IngestOptions(
        name=asked.name,
        label_key="cell_type",
        batch_key="batch",
        species=asked.organism,
        values="counts",
        seed=asked.seed,
        memory=asked.memory,
        device=asked.device,
    )


def draw_cells(census: Census, asked: CensusOptions) -> Drawn:
    """Find the cells, and draw some of each type.

    Raises
    ------
    InputError
        If fewer than two types have enough cells.
    """
    condition = value_filter(asked.tissue, str(asked.where), census.columns)
    cells = census.cells(condition)
    if not len(cells):
        raise InputError(
            f"no cells of the Census are: {condition}",
            census.where,
            f"tissues are: {', '.join(census.tissues()[:20])}",
            code="no-cells",
        )
    limits = {"max_per_type": asked.max_per_type, "min_cells": asked.min_cells, "seed": asked.seed}
    rows, notes = draw(cells, **limits)  # type: ignore[arg-type]
    n_types = cells["cell_type"].iloc[rows].nunique()
    if n_types < 2:
        what = f"of {len(cells):,} cells, {n_types} types have {asked.min_cells} or more"
        raise InputError(what, census.where, "give a wider --where or a lower --min-cells", code="no-cells")
    return census.drawn(cells, rows, notes)


def report_of(
    asked: CensusOptions,
    census: Census,
    drawn: Drawn,
    n_bytes: int,
    seconds: float,
    made: CellsReport | None = None,
) -> CensusReport:
    """Return the report of a draw, or of the reference that was ``made`` of it."""
    return CensusReport(
        name=asked.name,
        census=census.about,
        n_found=drawn.n_found,
        n_cells=len(drawn.obs),
        n_genes=len(drawn.var),
        n_datasets=int(drawn.obs["dataset_id"].nunique()),
        n_donors=int(drawn.obs["batch"].nunique()),
        classes={str(k): int(v) for k, v in drawn.obs["cell_type"].value_counts().items()},
        megabytes=n_bytes / 1e6,
        minutes=seconds / 60,
        made=made,
        notes=[*drawn.notes, *(made.notes if made else [])],
    )


@dataclass(frozen=True, kw_only=True)
class CensusReport(Report):
    """A draw of the Census, and the reference that was made of it.

    Attributes
    ----------
    census
        Version, build date and schema.
    n_found, n_cells
        Cells that the condition found, and that were drawn.
    n_donors
        Donors, each counted once per dataset.
    classes
        Drawn cells per type.
    megabytes, minutes
        Counts that were read and the time that all took; of a dry run, estimates.
    made
        Report of the reference; None of a dry run.
    """

    name: str
    census: dict[str, str]
    n_found: int
    n_cells: int
    n_genes: int
    n_datasets: int
    n_donors: int
    classes: dict[str, int]
    megabytes: float
    minutes: float
    made: CellsReport | None = field(default=None)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        about = " ".join(x for x in (self.census["version"], self.census["build_date"]) if x)
        lines = [
            f"Census {about}, {self.census['organism']}: {self.n_cells:,} of {self.n_found:,} cells drawn, "
            f"{len(self.classes)} types, {self.n_datasets} datasets, {self.n_donors} donors, "
            f"{self.n_genes:,} genes"
        ]
        if self.made is None:
            size = human_bytes(self.megabytes * 1e6)
            return [
                *lines,
                *table(self.classes),
                f"would read {size}, in about {self.minutes:.1f} minutes; nothing was changed",
            ]
        size = human_bytes(self.megabytes * 1e6)
        return [*lines, *self.made.lines(), f"read {size}; {self.minutes:.1f} minutes in all"]
