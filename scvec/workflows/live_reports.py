"""What a command that asks live services gives back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scvec.base.results import Record, Report, counts_line, table

if TYPE_CHECKING:
    from scvec.base.records import Failure

__all__ = ["ComplementReport", "Cost", "FailedGene", "LiveReport", "failed_genes", "reason_lines"]

#: Genes that a line about one reason names.
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Cost(Record):
    """What a run takes: before it an estimate, after it what was measured.

    Attributes
    ----------
    requests
        Requests; before the run the fewest that will do.
    tokens_in, tokens_out
        Tokens sent and received; None where none are counted.
    dollars
        US dollars, None where the price of the model is not known.
    seconds
        Wall time.
    """

    requests: int
    tokens_in: int | None = None
    tokens_out: int | None = None
    dollars: float | None = None
    seconds: float | None = None

    def line(self) -> str:
        """Return it in words."""
        parts = [f"{self.requests:,} requests"]
        if self.tokens_in is not None:
            parts.append(f"{self.tokens_in:,} tokens sent")
        if self.tokens_out is not None:
            parts.append(f"{self.tokens_out:,} received")
        if self.dollars is not None:
            parts.append(f"${self.dollars:.4f}")
        elif self.tokens_in is not None:
            parts.append("price not known")
        if self.seconds is not None:
            parts.append(f"{self.seconds:,.1f} s")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class FailedGene(Record):
    """A gene without an answer, and why."""

    gene: str
    reason: str
    final: bool


@dataclass(frozen=True, kw_only=True)
class LiveReport(Report):
    """What asking a live service came to.

    Attributes
    ----------
    source
        ``ncbi``, ``mygene`` or the model.
    n_wanted, n_known, n_asked, n_answered
        Genes that were wanted; of these, known from earlier runs; asked now (in a dry run: would be);
        answered.
    failed
        Genes that were asked and not answered.
    stopped
        Why the run ended before all were asked; empty where it did not.
    cost
        Of this run; in a dry run the estimate.
    """

    source: str
    n_wanted: int
    n_known: int
    n_asked: int
    n_answered: int
    failed: list[FailedGene] = field(default_factory=list)
    stopped: str = ""
    cost: Cost
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        if self.dry_run:
            return [
                f"{self.source}: {self.n_wanted:,} genes, {self.n_known:,} known, {self.n_asked:,} to ask",
                f"it would take {self.cost.line()}",
            ]
        lines = [
            f"{self.source}: {self.n_wanted:,} genes, {self.n_known:,} known, {self.n_answered:,} answered, "
            f"{len(self.failed):,} failed",
            f"took {self.cost.line()}",
        ]
        if self.stopped:
            left = self.n_asked - self.n_answered - len(self.failed)
            lines.append(f"stopped: {self.stopped}; {left:,} genes were not asked")
        return lines + reason_lines(self.failed)


@dataclass(frozen=True, kw_only=True)
class ComplementReport(Report):
    """What ``ingest complement`` wrote.

    Attributes
    ----------
    model
        The model that was asked.
    descriptions
        Descriptions in the knowledge base per kind, afterwards.
    """

    model: str
    live: LiveReport
    descriptions: dict[str, int]
    generation: str = ""
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        return [*self.live.lines(), f"descriptions: {counts_line(self.descriptions)}"]


def failed_genes(failures: Iterable[Failure]) -> list[FailedGene]:
    """Return failures in a stable order, as reports show them."""
    found = [
        FailedGene(gene=f.job.gene_id.removeprefix("ask:"), reason=f.reason, final=f.final) for f in failures
    ]
    return sorted(found, key=lambda f: (f.final, f.reason, f.gene))


def reason_lines(failed: Iterable[FailedGene]) -> list[str]:
    """Return a table of reasons, the most frequent first, with a few genes of each."""
    by_reason: dict[str, list[FailedGene]] = {}
    for gene in failed:
        by_reason.setdefault(gene.reason, []).append(gene)
    if not by_reason:
        return []
    named = {}
    for reason, genes in by_reason.items():
        more = ", ..." if len(genes) > EXAMPLES else ""
        again = "not asked again" if genes[0].final else "asked again by the next run"
        listed = ", ".join(g.gene for g in genes[:EXAMPLES])
        named[f"{reason} ({listed}{more}; {again})"] = len(genes)
    return ["failed:", *table(named)]
