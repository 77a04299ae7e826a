"""What a command gives back: facts as fields, lines for people, a dict for ``--json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scvec.base.results import Record, Report, counts_line, human_bytes, plain, table, times_line
from scvec.workflows.reference_lines import reference_lines

__all__ = [
    "CellsReport",
    "Check",
    "CompactReport",
    "DemoQuery",
    "DemoReport",
    "DoctorReport",
    "ExportReport",
    "GrowReport",
    "ImportReport",
    "InfoReport",
    "ReferenceInfo",
    "RmReport",
    "SpaceInfo",
    "VerifyReport",
]


@dataclass(frozen=True, kw_only=True)
class CellsReport(Report):
    """What ``ingest cells`` saw and made.

    Attributes
    ----------
    match_summary, expression
        One line each: what the gene names were, and what the values were and what was done with them.
    classes
        Cells per label.
    calibration
        Held-out figures (``log_loss``, ``ece``, ``accuracy``, ``macro_f1``), and ``held_out``: how the
        cells were held out.
    label_findings
        What looks odd about the labels (``kind``, ``labels`` with their numbers of cells, ``message``); the
        messages are among the notes.
    texts
        Texts of genes by where their vectors came from; empty where no text is used.
    seconds
        Seconds per stage.
    """

    name: str
    n_cells: int
    n_genes_matched: int
    match_summary: str
    expression: str
    classes: dict[str, int]
    encoder: str
    space: str
    calibration: dict[str, Any]
    seconds: dict[str, float]
    texts: dict[str, int] = field(default_factory=dict)
    label_findings: list[dict[str, Any]] = field(default_factory=list)
    generation: str = ""

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [
            f"reference '{self.name}': {self.n_cells:,} cells of {len(self.classes)} labels "
            f"(encoder {self.encoder}, space {self.space})",
            f"genes: {self.match_summary}",
            *([f"gene texts: {counts_line(self.texts)}"] if self.texts else []),
            f"values: {self.expression}",
            *table(self.classes),
        ]
        figures = {k: v for k, v in self.calibration.items() if isinstance(v, float)}
        if figures:
            how = self.calibration.get("held_out", "")
            lines.append(
                f"on held-out cells{f' ({how})' if how else ''}: "
                + ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in figures.items())
            )
        return [*lines, f"took {sum(self.seconds.values()):.1f} s ({times_line(self.seconds)})"]


@dataclass(frozen=True, kw_only=True)
class SpaceInfo(Record):
    """One embedding space of a store."""

    fingerprint: str
    backbone: str
    dim: int
    n_genes: int
    template: str = ""


@dataclass(frozen=True, kw_only=True)
class ReferenceInfo(Record):
    """One reference of a store. ``details`` is whatever else its manifest tells."""

    name: str
    n_cells: int
    species: str
    encoder: str
    space: str
    classes: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InfoReport(Report):
    """What is inside a store. ``detailed`` when one reference was asked for."""

    store: Path
    generation: str
    format_version: int
    size_bytes: int
    genes: dict[str, int]
    spaces: list[SpaceInfo]
    references: list[ReferenceInfo]
    detailed: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [
            f"store {self.store}: generation {self.generation or 'none'}, format {self.format_version}, "
            f"{human_bytes(self.size_bytes)}",
            f"genes: {counts_line(self.genes)}",
        ]
        lines += [
            f"space {s.fingerprint}: {s.n_genes:,} genes x {s.dim}, backbone {s.backbone}"
            for s in self.spaces
        ]
        for ref in self.references:
            lines.append(
                f"reference '{ref.name}': {ref.n_cells:,} {ref.species} cells, {len(ref.classes)} labels, "
                f"encoder {ref.encoder}, space {ref.space}"
            )
            if self.detailed:
                lines += table(ref.classes)
                lines += reference_lines(plain(ref.details))
        if not self.references:
            lines.append("no references yet: scvec ingest cells makes one")
        return lines


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Report):
    """What ``verify`` checked. ``problems`` is empty when the store is sound.

    Attributes
    ----------
    encoder_parity
        Per reference, the largest absolute difference between stored and freshly computed vectors.
    """

    store: Path
    generation: str
    n_files: int
    n_bytes: int
    seconds: float
    encoder_parity: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and ``ok``."""
        return {"ok": self.ok, **super().to_dict()}

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [f"checked {self.n_files:,} files, {human_bytes(self.n_bytes)}, in {self.seconds:.1f} s"]
        lines += [
            f"encoder of '{name}' differs by {d:.2g} at most" for name, d in self.encoder_parity.items()
        ]
        lines += [f"problem: {problem}" for problem in self.problems]
        return [*lines, f"store {self.store} is {'sound' if self.ok else 'damaged'}"]


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One line of ``doctor``."""

    name: str
    ok: bool
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorReport(Report):
    """What ``doctor`` found out about the machine and the store."""

    checks: list[Check]

    @property
    def ok(self) -> bool:
        """True when every check passed."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and ``ok``."""
        return {"ok": self.ok, **super().to_dict()}

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            lines.append(f"{'ok ' if check.ok else 'BAD'}  {check.name:<{width}}  {check.detail}".rstrip())
            if check.fix and not check.ok:
                lines.append(f"     {'':<{width}}  fix: {check.fix}")
        return lines


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """What ``export`` wrote."""

    reference: str
    to: str
    files: list[Path]
    n_cells: int
    size_bytes: int
    kind: str = "cells"

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        of = f"'{self.reference}'" if self.kind == "cells" else f"space {self.reference}"
        what = f"{self.n_cells:,} {self.kind} of {of} as {self.to}, {human_bytes(self.size_bytes)}"
        return [f"wrote {what}", *(f"  {path}" for path in self.files)]


@dataclass(frozen=True, kw_only=True)
class ImportReport(Report):
    """What ``import`` took.

    Attributes
    ----------
    kind
        ``cells`` or ``genes``.
    name
        The reference, or the fingerprint of the space.
    n_rows, n_new
        Rows of the file; genes that the space had not, or cells that got another label.
    columns
        Columns of obs that the reference had not.
    """

    kind: str
    name: str
    n_rows: int
    n_new: int
    columns: list[str]
    generation: str = ""
    dry_run: bool = False
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        if self.kind == "genes":
            lines = [f"space {self.name}: {self.n_rows:,} genes, {self.n_new:,} of them new"]
        else:
            lines = [f"reference '{self.name}': {self.n_rows:,} cells, {self.n_new:,} with another label"]
            if self.columns:
                lines.append(f"new columns: {', '.join(self.columns)}")
        return [*lines, "nothing was changed (--dry-run)"] if self.dry_run else lines


@dataclass(frozen=True, kw_only=True)
class RmReport(Report):
    """What ``rm`` removed."""

    reference: str
    generation: str
    remaining: list[str]

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        left = ", ".join(self.remaining) or "none"
        return [f"removed reference '{self.reference}'; left: {left}", "scvec compact gives back its space"]


@dataclass(frozen=True, kw_only=True)
class CompactReport(Report):
    """What ``compact`` gave back."""

    before_bytes: int
    after_bytes: int
    n_files_removed: int
    generation: str = ""

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        return [
            f"{human_bytes(self.before_bytes)} before, {human_bytes(self.after_bytes)} after, "
            f"{self.n_files_removed:,} files removed"
        ]


@dataclass(frozen=True, kw_only=True)
class DemoQuery(Record):
    """One annotated data set of the demo, against its true labels.

    Attributes
    ----------
    labels
        Cells per label given.
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
    """What ``demo`` did.

    Attributes
    ----------
    texts
        Texts of genes by where their vectors came from, as in :class:`CellsReport`.
    seconds
        Seconds per stage.
    files
        All that lies in the output folder.
    """

    queries: list[DemoQuery]
    seconds: dict[str, float]
    files: list[Path]
    store: Path
    texts: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines: list[str] = []
        for query in self.queries:
            lines += [f"{query.name}: {query.n_cells:,} cells", *table(query.labels)]
            lines += [
                f"  against the true labels: accuracy {query.accuracy:.3f}, macro-F1 {query.macro_f1:.3f}",
                "",
            ]
        if self.texts:
            lines.append(f"gene texts: {counts_line(self.texts)}")
        lines += [f"took {sum(self.seconds.values()):.1f} s ({times_line(self.seconds)})"]
        lines += ["files:", *(f"  {path}" for path in self.files), f"store: {self.store}"]
        return lines


@dataclass(frozen=True, kw_only=True)
class GrowReport(Report):
    """What became of a reference to which cells were added, or from which some were dropped."""

    name: str
    n_added: int
    n_dropped: int
    n_cells: int
    generation: str = ""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        done = f"{self.n_added:,} cells added" if self.n_added else f"{self.n_dropped:,} cells dropped"
        return [f"reference '{self.name}': {done}, {self.n_cells:,} now"]
