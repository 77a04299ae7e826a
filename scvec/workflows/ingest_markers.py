"""``scvec ingest markers``: what tables say of marker genes of cell types, into the knowledge base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scvec.base.results import Report
from scvec.base.types import Progress, no_progress
from scvec.celltypes.markers import MarkerFile, read_markers
from scvec.celltypes.terms import TermMatcher
from scvec.model.resolvers import ensure_knowledge
from scvec.stores.knowledge.tables import marker_table
from scvec.stores.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MarkersReport", "ingest_markers"]

#: Names without a term that are shown.
N_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class MarkersReport(Report):
    """Tables of markers that were read.

    Attributes
    ----------
    columns
        Per file, what each column was taken for.
    unmapped
        Names of cell types that stand for no term of the Cell Ontology, with their rows.
    """

    n_markers: int
    n_terms: int
    n_stored: int
    columns: dict[str, dict[str, str]]
    unmapped: dict[str, int]
    generation: str = ""

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [f"{self.n_markers:,} markers of {self.n_terms:,} terms of the Cell Ontology"]
        for file, columns in self.columns.items():
            taken = ", ".join(f"{what} from {name!r}" for what, name in columns.items())
            lines.append(f"  {file}: {taken}")
        if self.unmapped:
            most = sorted(self.unmapped.items(), key=lambda item: -item[1])
            named = ", ".join(f"{name!r} ({n})" for name, n in most[:N_SHOWN])
            more = f", and {len(most) - N_SHOWN} others" if len(most) > N_SHOWN else ""
            lines.append(f"  without a term, left out: {named}{more}")
        if self.generation:
            lines.append(f"the store has {self.n_stored:,} markers now")
        else:
            lines.append("nothing was changed")
        return lines


def ingest_markers(
    store: Path | str,
    files: list[Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    species: str = "human",
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> MarkersReport:
    """Read tables of marker genes into the knowledge base, for :func:`scvec.name`.

    Parameters
    ----------
    files
        Tables as CellMarker 2.0, PanglaoDB, ScType, HuBMAP ASCT+B and CellMarkerAccordion offer them, a GMT
        file, or any csv or tsv with columns of genes and cell types (also .gz). A file read again replaces
        what it said before.
    columns
        What columns mean where their names do not say it, as ``{"gene": "Symbol"}``.
    species
        Of rows that name none.
    dry_run
        Read and count; change nothing.

    Raises
    ------
    InputError
        A file cannot be read or has no such columns.
    """
    opened = Store.open(store, create=True)
    with opened.begin("ingest markers", {"files": [Path(f).name for f in files]}) as txn:
        kb = txn.open_knowledge()
        ensure_knowledge(kb, progress=progress)
        matcher = TermMatcher(kb.cl_names())
        read: dict[str, MarkerFile] = {}
        for file in files:
            progress("reading markers", len(read), len(files))
            read[Path(file).name] = read_markers(Path(file), matcher, columns=columns, species=species)
        n_stored, generation = 0, ""
        if not dry_run:
            for name, found in read.items():
                n_stored = kb.put_markers(_table(name, found), name)
            generation = str(txn.commit().number)
    unmapped: dict[str, int] = {}
    for found in read.values():
        for name, n in found.unmapped.items():
            unmapped[name] = unmapped.get(name, 0) + n
    return MarkersReport(
        n_markers=sum(len(found.markers) for found in read.values()),
        n_terms=len({m.cl_id for found in read.values() for m in found.markers}),
        n_stored=n_stored,
        columns={name: found.columns for name, found in read.items()},
        unmapped=unmapped,
        generation=generation,
    )


def _table(name: str, found: MarkerFile) -> pa.Table:
    """Return the markers of a file as rows of the knowledge base."""
    return marker_table(
        m if m.source == name else replace(m, source=f"{name}: {m.source}") for m in found.markers
    )
