"""What stands behind a label, as a result: genes, neighbours, and the sum that they make."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, StoreError
from scvec.base.results import Record, Report, human_odds
from scvec.model.storage import SOURCE_COLUMN

if TYPE_CHECKING:
    from scvec.base.types import Neighbors
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = [
    "Explanation",
    "GeneEvidence",
    "Voter",
    "files_of",
    "generation_of",
    "origins",
    "same_reference",
    "voters",
]


def generation_of(store: Path | str, parameters: Mapping[str, Any]) -> Store:
    """Return the store as it was when the cells were annotated; as it is now where that is gone."""
    from scvec.stores.store.store import Store

    opened = Store(store)
    number = int(parameters["generation"])
    if number == opened.generation.number:
        return opened
    try:
        return opened.at(number)
    except InputError:
        return opened


def same_reference(store: Store, parameters: Mapping[str, Any]) -> StoredReference:
    """Return the reference that cells were annotated by.

    Raises
    ------
    StoreError
        If the store has none of that name, or another one.
    """
    name, number = str(parameters["reference"]), int(parameters["generation"])
    fix = "give the --store that annotated the file, or annotate the cells again: scvec query"
    if name not in store.generation.manifest.references:
        what = f"the cells were annotated by reference {name!r}, which this store does not have"
        raise StoreError(what, str(store.path), fix, code="annotation-outdated")
    stored = store.reference(name)
    if not stored.is_the_one(str(parameters["reference_fingerprint"])):
        what = (
            f"the cells were annotated by reference {name!r} of store generation {number}; the one here, of "
            f"generation {store.generation.number}, is another"
        )
        raise StoreError(what, str(store.path), fix, code="annotation-outdated")
    return stored


WIDTH = 100
#: Lines about voters that people are shown.
MAX_VOTERS = 15
NO_LABEL = "(no label)"


@dataclass(frozen=True, kw_only=True)
class GeneEvidence(Record):
    """What one gene adds to the log odds.

    Attributes
    ----------
    gene_id, symbol
        Of the reference's species.
    contribution
        Natural-log odds, positive for the label; the mean over the cells. A gene that is lower than usual can
        speak for a label that lacks it.
    by_member
        Member (``head``) -> its part; they sum to ``contribution``.
    expression
        log1p of counts per ten thousand, mean over the cells.
    expected, expected_against
        Mean expression over the reference cells of the label, and of the label compared with (where the cells
        are compared with several, the mean over cells).
    description, source, source_version, kind
        The text that the knowledge base prefers, and where it comes from; empty where there is none. ``kind``
        is ``human``, ``llm``, ``composed`` or ``borrowed``.
    """

    gene_id: str
    symbol: str
    contribution: float
    by_member: dict[str, float]
    expression: float
    expected: float
    expected_against: float
    description: str = ""
    source: str = ""
    source_version: str = ""
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Voter(Record):
    """Reference cells that voted: one of them for a cell, those of a donor and label together for a label.

    Attributes
    ----------
    cell
        Name of the reference cell; empty for several.
    label
        Its label; empty for a cell without one, which has no vote.
    dataset, donor
        The file or study, and the donor or batch, it comes from; empty where the reference does not say.
    n
        Number of votes, over all cells explained.
    distance
        Euclidean distance between cell vectors (the mean for several).
    """

    cell: str
    label: str
    dataset: str
    donor: str
    n: int
    distance: float


@dataclass(frozen=True, kw_only=True)
class Explanation(Report):
    """Why a cell, or the cells of a label, were given their label and not the next best one.

    ``log_odds`` is the sum of the genes' contributions (``genes_total``), ``neighbors_total``, ``constant``
    and ``undivided``, but for ``completeness_error``. All are natural-log odds of ``label`` against the label
    compared with, as both members say them, before they are calibrated to a confidence, and means over the
    ``n_cells`` cells.

    Attributes
    ----------
    reference, label
        The reference asked, and the label explained.
    cell
        Name of the cell; empty where the cells of a label are explained.
    against
        Label compared with -> number of cells: each cell's runner-up, or the one asked for.
    n_cells, n_labelled
        Cells looked at, and cells that were given the label.
    confidence
        Mean calibrated probability of the label.
    genes
        The genes of the largest contributions, in absolute value, largest first.
    n_genes, genes_total
        All genes that contribute, and the sum of their contributions, those in ``genes`` included.
    neighbors_total
        What the labels of the nearest reference cells add.
    constant
        What the intercept of the head adds, which belongs to no gene.
    undivided
        What a head adds whose encoder's vectors are no sums over genes (``sentence``, ``prompt``).
    members
        Member -> what it adds in all; they sum to ``log_odds``.
    voters
        The reference cells that voted.
    completeness_error
        Mean absolute difference between a cell's log odds and the sum of its terms, as a share of the mean
        absolute log odds (0.01 is 1%).
    parameters
        What made it: reference, store generation, space, method.
    """

    reference: str
    label: str
    cell: str
    against: dict[str, int]
    n_cells: int
    n_labelled: int
    confidence: float
    log_odds: float
    genes: list[GeneEvidence]
    n_genes: int
    genes_total: float
    neighbors_total: float
    constant: float
    undivided: float
    members: dict[str, float]
    voters: list[Voter]
    completeness_error: float
    parameters: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the explanation as lines for people."""
        if self.cell:
            other = next(iter(self.against))
            head = f"cell {self.cell}: '{self.label}' (confidence {self.confidence:.2f}), not '{other}'"
        else:
            looked = "" if self.n_cells == self.n_labelled else f"{self.n_cells:,} of "
            cells = "cell" if self.n_labelled == 1 else "cells"
            head = (
                f"label '{self.label}': {looked}{self.n_labelled:,} {cells} (mean confidence "
                f"{self.confidence:.2f}), not {self._others()}"
            )
        lines = [head, f"log odds {self.log_odds:+.2f}: {human_odds(self.log_odds)}"]
        lines += self._gene_lines()
        listed = sum(g.contribution for g in self.genes)
        rows = [(f"the other {self.n_genes - len(self.genes):,} genes", self.genes_total - listed)]
        rows += [("the nearest reference cells", self.neighbors_total), ("intercepts", self.constant)]
        if self.undivided:
            rows.append(("the head, whose encoder cannot be divided among genes", self.undivided))
        lines += [f"  {value:+7.2f}  {name}" for name, value in rows]
        lines.append(
            f"  {self.log_odds:+7.2f}  in all (terms miss it by {100 * self.completeness_error:.2g}%)"
        )
        lines.append("members: " + ", ".join(f"{name} {value:+.2f}" for name, value in self.members.items()))
        return [*lines, *self._voter_lines(), *self._text_lines()]

    def _others(self) -> str:
        if len(self.against) == 1:
            return f"'{next(iter(self.against))}'"
        names = [f"'{name}' ({n:,})" for name, n in self.against.items()]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return f"each cell's next best: {', '.join(names[:4])}{more}"

    def _gene_lines(self) -> list[str]:
        if not self.genes:
            return []
        against = next(iter(self.against)) if len(self.against) == 1 else "the others"
        heads = ["gene", "here", _cut(self.label), _cut(against)]
        width = max(len(heads[0]), *(len(g.symbol) for g in self.genes))
        one, two = max(len(heads[2]), 5), max(len(heads[3]), 5)
        lines = [
            f"  {'':>7}  {'':<{width}}  mean log1p of counts per 10,000",
            f"  {'adds':>7}  {heads[0]:<{width}}  {heads[1]:>5}  {heads[2]:>{one}}  {heads[3]:>{two}}",
        ]
        for g in self.genes:
            lines.append(
                f"  {g.contribution:+7.2f}  {g.symbol:<{width}}  {g.expression:>5.2f}  "
                f"{g.expected:>{one}.2f}  {g.expected_against:>{two}.2f}"
            )
        return lines

    def _voter_lines(self) -> list[str]:
        if not self.voters:
            return []
        n = sum(v.n for v in self.voters)
        head = f"{n:,} nearest reference cells:" if self.cell else f"{n:,} votes of nearest reference cells:"
        shown = self.voters[:MAX_VOTERS]
        width = max(len(_cut(v.label or NO_LABEL)) for v in shown)
        lines = [head, f"  distance  {'label':<{width}}  from"]
        for v in shown:
            who = v.cell or f"{v.n:,} of"
            origin = ", ".join(filter(None, [v.dataset, v.donor]))
            origin = f"({origin})" if origin and v.cell else origin
            lines.append(
                f"  {v.distance:8.3f}  {_cut(v.label or NO_LABEL):<{width}}  {who} {origin}".rstrip()
            )
        if len(self.voters) > len(shown):
            left = sum(v.n for v in self.voters[len(shown) :])
            lines.append(f"  and {left:,} more")
        return lines

    def _text_lines(self) -> list[str]:
        lines = []
        for g in self.genes:
            if g.description:
                source = " ".join(filter(None, [g.source, g.source_version]))
                text = f"{g.symbol} [{g.kind}, {source}] {g.description}"
                short = textwrap.shorten(text, 2 * WIDTH, placeholder=" …")
                lines += textwrap.wrap(short, WIDTH, initial_indent="  ", subsequent_indent="    ")
        return ["what is known of these genes (scvec info genes SYMBOL tells all):", *lines] if lines else []


def _cut(text: str, width: int = 24) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


Strings = npt.NDArray[Any]

#: Columns of obs that name the study and the donor of a cell, the likeliest first.
DATASET_COLUMNS = ("dataset", "dataset_id", "dataset_title", "study", "study_id")
DONOR_COLUMNS = ("donor", "donor_id", "individual", "patient", "subject", "sample", "sample_id", "batch")


def origins(stored: StoredReference) -> tuple[Strings, Strings]:
    """Return (n,) data set and (n,) donor of every reference cell; empty where nothing tells.

    A column of obs tells the data set, else the file; the batch key tells the donor, else a column of obs.
    """
    obs, meta = stored.obs, stored.meta
    batch = meta["options"].get("batch_key")

    def column(names: tuple[str, ...]) -> Strings | None:
        for name in names:
            if name in obs.columns:
                values = obs[name]
                return np.where(values.isna(), "", values.astype(str)).astype(object)
        return None

    dataset = column(DATASET_COLUMNS)
    donor = column((str(batch), *DONOR_COLUMNS) if batch else DONOR_COLUMNS)
    nothing = np.full(stored.n, "", dtype=object)
    return files_of(stored) if dataset is None else dataset, nothing if donor is None else donor


def files_of(stored: StoredReference) -> Strings:
    """Return (n,) the file that every reference cell came from; empty where nothing tells."""
    if SOURCE_COLUMN in stored.obs.columns:
        return stored.obs[SOURCE_COLUMN].astype(str).to_numpy(dtype=object)
    sources = stored.meta["sources"]
    sizes = [int(source["n_cells"]) for source in sources]
    if sum(sizes) != stored.n:  # cells joined or left before the files were noted
        return np.full(stored.n, "", dtype=object)
    names = [PurePath(str(source["name"])).name for source in sources]
    return np.repeat(np.array(names, dtype=object), sizes)


def voters(
    neighbors: Neighbors,
    codes: npt.NDArray[np.int64],
    classes: list[str],
    names: Strings,
    dataset: Strings,
    donor: Strings,
    *,
    single: bool,
) -> list[Voter]:
    """Return who voted: each neighbour of a single cell, nearest first; else the most votes first.

    Parameters
    ----------
    codes
        (n_reference,) int64 class numbers, -1 for none.
    names
        (n_reference,) names of the reference cells.
    """
    there = neighbors.indices >= 0
    rows, distances = neighbors.indices[there], np.sqrt(np.maximum(neighbors.distances[there], 0.0))
    label = np.array([*classes, ""], dtype=object)[codes[rows]]  # -1 takes the empty one at the end
    if single:
        return [
            Voter(
                cell=str(names[r]),
                label=str(of),
                dataset=str(dataset[r]),
                donor=str(donor[r]),
                n=1,
                distance=float(d),
            )
            for r, of, d in zip(rows, label, distances, strict=True)
        ]
    groups: dict[tuple[str, str, str], list[float]] = {}
    for r, of, d in zip(rows, label, distances, strict=True):
        groups.setdefault((str(of), str(dataset[r]), str(donor[r])), []).append(float(d))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        Voter(cell="", label=of, dataset=data, donor=who, n=len(each), distance=float(np.mean(each)))
        for (of, data, who), each in ordered
    ]
