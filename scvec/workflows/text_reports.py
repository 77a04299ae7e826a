"""What the commands about genes and their texts give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scvec.base.results import Report, counts_line
from scvec.workflows.live import Cost, FailedGene, LiveReport, reason_lines

__all__ = ["EmbeddingsReport", "GenesReport"]


@dataclass(frozen=True, kw_only=True)
class GenesReport(Report):
    """What ``ingest genes`` put into the knowledge base.

    Attributes
    ----------
    genes
        Number of genes per species.
    descriptions
        Number of descriptions per kind (human, composed, borrowed, llm).
    orthologs
        Number of ortholog pairs.
    live
        What asking came to, where the source is a live one.
    """

    genes: dict[str, int]
    descriptions: dict[str, int]
    orthologs: int
    source: str
    seconds: float
    source_version: str = ""
    generation: str = ""
    dry_run: bool = False
    live: LiveReport | None = None

    @classmethod
    def of(cls, counts: Mapping[str, int], **fields: Any) -> GenesReport:
        """Return the report on a knowledge base with these :meth:`KnowledgeBase.counts`."""

        def by_prefix(prefix: str) -> dict[str, int]:
            return {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}

        return cls(
            genes=by_prefix("genes "),
            descriptions=by_prefix("descriptions "),
            orthologs=counts.get("orthologs", 0),
            **fields,
        )

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        verb = "would hold" if self.dry_run and self.live is None else "holds"
        version = f" {self.source_version}" if self.source_version else ""
        return [
            *(self.live.lines() if self.live is not None else []),
            f"knowledge base {verb} {counts_line(self.genes)} genes (source: {self.source}{version})",
            f"descriptions: {counts_line(self.descriptions)}",
            f"orthologs: {self.orthologs:,} human-mouse pairs",
            f"took {self.seconds:.1f} s",
        ]


@dataclass(frozen=True, kw_only=True)
class EmbeddingsReport(Report):
    """What ``ingest embeddings`` encoded.

    Attributes
    ----------
    space
        Fingerprint of the embedding space.
    dim
        Length of a vector; 0 where only the server knows it, before it was asked.
    n_genes, n_encoded, n_cached, n_shipped
        Genes that have a vector; of their texts, encoded now; taken from the store; from the package.
    failed, stopped
        Genes that have none and why; why the run ended before its end.
    cost
        Requests and dollars, where a server is asked.
    """

    space: str
    backbone: str
    dim: int
    n_genes: int
    n_encoded: int
    n_cached: int
    n_shipped: int = 0
    seconds: float
    generation: str = ""
    dry_run: bool = False
    failed: list[FailedGene] = field(default_factory=list)
    stopped: str = ""
    cost: Cost | None = None

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        verb = "would have" if self.dry_run else "have"
        todo = "to encode" if self.dry_run else "encoded"
        size = f"a vector of {self.dim} numbers" if self.dim else "a vector"
        space = f", space {self.space}" if self.space else ""
        counts = {"shipped": self.n_shipped, "from the store": self.n_cached, todo: self.n_encoded}
        lines = [
            f"{self.n_genes:,} genes {verb} {size} (backbone {self.backbone}{space})",
            f"texts: {counts_line(counts)}",
        ]
        if self.dry_run and self.cost is not None:
            lines.append(f"it would take {self.cost.line()}")
        elif self.cost is not None:
            lines.append(f"took {self.cost.line()}")
        else:
            lines.append(f"took {self.seconds:.1f} s")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        return lines + reason_lines(self.failed)
