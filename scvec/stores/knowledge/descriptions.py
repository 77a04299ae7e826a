"""Texts about genes, and what else sources tell about them, as the knowledge base has them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from scvec.base.records import Note
from scvec.base.types import Description
from scvec.stores.knowledge.tables import Tables

__all__ = ["Descriptions"]

_FIELDS = (
    "gene_id",
    "text",
    "source",
    "source_version",
    "retrieved_at",
    "kind",
    "model",
    "prompt",
    "provenance",
)


class Descriptions(Tables):
    """The part of the knowledge base that is about texts."""

    def descriptions(
        self,
        gene_ids: Sequence[str] | None = None,
        prefer: Sequence[str] = ("human", "llm", "composed", "borrowed"),
    ) -> dict[str, Description]:
        """The best description of each gene, by gene id; genes that have none are left out.

        ``prefer`` ranks kinds, and kinds it leaves out are not used. Of one kind the latest counts; of those
        of one day NCBI's, which others copy. With ``gene_ids`` the result is in their order, else in the
        order of ids.
        """
        import pyarrow as pa

        wanted = None if gene_ids is None else list(dict.fromkeys(gene_ids))
        tables = {"prefer": pa.table({"kind": list(prefer), "rank": list(range(len(prefer)))})}
        if wanted is not None:
            tables["wanted"] = pa.table({"gene_id": pa.array(wanted, pa.string())})
        with self._registered(**tables):
            rows = self._all(
                f"SELECT {', '.join(_FIELDS)} FROM descriptions JOIN prefer USING (kind)"
                + (" SEMI JOIN wanted USING (gene_id)" if wanted is not None else "")
                + " QUALIFY row_number() OVER (PARTITION BY gene_id ORDER BY rank,"
                " left(retrieved_at, 10) DESC, source <> 'ncbi', retrieved_at DESC, source, model, prompt"
                ") = 1 ORDER BY gene_id"
            )
        found = {row[0]: Description(*row) for row in rows}
        return found if wanted is None else {g: found[g] for g in wanted if g in found}

    def all_descriptions(self, gene_id: str) -> list[Description]:
        """Every description of one gene, of every source."""
        rows = self._all(
            f"SELECT {', '.join(_FIELDS)} FROM descriptions WHERE gene_id = ? ORDER BY source, model, prompt",
            [gene_id],
        )
        return [Description(*row) for row in rows]

    def notes(self, gene_id: str) -> list[Note]:
        """The facts of every source about one gene, by source."""
        rows = self._all(
            "SELECT gene_id, source, source_version, retrieved_at, facts FROM notes WHERE gene_id = ?"
            " ORDER BY source",
            [gene_id],
        )
        return [Note(g, source, version, at, json.loads(facts)) for g, source, version, at, facts in rows]
