"""Gene records of any source but the snapshot: which genes they are, and what they add.

Every function here runs inside a transaction that its caller holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from scvec.base.records import Note
from scvec.base.types import Description, Gene
from scvec.stores.knowledge.tables import Tables, insert_aliases, upsert

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Descriptions", "load_genes", "match_genes"]

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


def match_genes(con: Any, genes: Sequence[Gene]) -> list[str]:
    """Return the gene id under which each record belongs in this knowledge base, in order.

    A record is an existing gene by Entrez id, else by its own id, else by an Ensembl id, else by official
    symbol; the last two only where that names one gene whose Entrez id is not another one. Of several
    records that are one gene by the same rule the first is it, the others stay themselves.
    """
    import pyarrow as pa

    con.register("incoming", _gene_table(genes))
    con.register(
        "incoming_ensembl",
        pa.table(
            {
                "row": pa.array([i for i, g in enumerate(genes) for _ in g.ensembl_ids], pa.int64()),
                "name": pa.array([e for g in genes for e in g.ensembl_ids], pa.string()),
                "numbered": pa.array(
                    [g.entrez_id is not None for g in genes for _ in g.ensembl_ids], pa.bool_()
                ),
            }
        ),
    )
    try:
        hits = con.execute(
            """
            WITH hits AS (
                SELECT i.row, g.gene_id, 1 AS step FROM incoming i
                    JOIN genes g ON g.entrez_id = i.entrez_id AND g.species = i.species
                UNION ALL SELECT i.row, g.gene_id, 2 FROM incoming i JOIN genes g USING (gene_id, species)
                -- No condition on species here: Ensembl ids are of one species, and where statistics are
                -- stale a join on species alone may come first, which is every gene with every gene.
                UNION ALL SELECT e.row, g.gene_id, 3 FROM incoming_ensembl e
                    JOIN aliases a ON a.name = e.name AND a.kind = 'ensembl'
                    JOIN genes g ON g.gene_id = a.gene_id
                    WHERE g.entrez_id IS NULL OR NOT e.numbered
                UNION ALL SELECT i.row, g.gene_id, 4 FROM incoming i
                    JOIN genes g ON g.symbol = i.symbol AND g.species = i.species
                    WHERE g.entrez_id IS NULL OR i.entrez_id IS NULL
            ), single AS (
                SELECT row, step, min(gene_id) AS gene_id FROM hits GROUP BY row, step
                HAVING min(gene_id) = max(gene_id)
            ), best AS (
                SELECT row, gene_id, step FROM single
                QUALIFY row_number() OVER (PARTITION BY row ORDER BY step) = 1
            )
            SELECT row, gene_id FROM best
            QUALIFY row_number() OVER (PARTITION BY gene_id ORDER BY step, row) = 1
            """
        ).fetchall()
    finally:
        con.unregister("incoming")
        con.unregister("incoming_ensembl")
    ids = [g.gene_id for g in genes]
    for row, gene_id in hits:
        ids[row] = gene_id
    return ids


def load_genes(
    con: Any,
    genes: Sequence[Gene],
    gene_ids: Sequence[str],
    sources: Sequence[str],
    versions: Sequence[str],
    better: str = "false",
) -> int:
    """Insert genes under the ids :func:`match_genes` gave, fill gaps of others; returns genes added.

    ``sources`` and ``versions`` say of each gene who told it; of several records of one gene the first
    counts. ``better`` says, over ``s`` (told) and ``t`` (stored), where what is told replaces what is stored.
    """
    import pyarrow as pa

    table = _gene_table(genes).set_column(1, "gene_id", pa.array(list(gene_ids), pa.string()))
    table = table.append_column("source", pa.array(list(sources), pa.string()))
    table = table.append_column("source_version", pa.array(list(versions), pa.string()))
    con.register("records", table)
    con.execute(
        # The authority's symbol stays official: what a file calls such a gene otherwise is an alias,
        # and so is the symbol of a file's own gene where an authority gave that symbol to another gene.
        "CREATE OR REPLACE TEMP TABLE fresh AS SELECT r.row, r.gene_id, r.species, CASE"
        " WHEN r.gene_id NOT LIKE 'entrez:%' THEN coalesce(g.symbol, r.symbol) = r.symbol"
        " ELSE o.symbol IS NULL AND coalesce(g.symbol, r.symbol) = r.symbol END AS official"
        " FROM records r LEFT JOIN genes g USING (gene_id)"
        " LEFT JOIN (SELECT DISTINCT species, symbol FROM genes WHERE gene_id NOT LIKE 'entrez:%'"
        "  UNION SELECT species, symbol FROM records WHERE gene_id NOT LIKE 'entrez:%') o"
        " ON o.symbol = r.symbol AND o.species = r.species"
    )
    con.unregister("records")
    added = upsert(
        con,
        "genes",
        table,
        "SELECT * EXCLUDE (row) FROM incoming"
        " QUALIFY row_number() OVER (PARTITION BY gene_id ORDER BY row) = 1",
        ("gene_id",),
        {
            "entrez_id": "coalesce(t.entrez_id, s.entrez_id)",
            **{
                c: f"coalesce(nullif(if({better}, s.{c}, t.{c}), ''), if({better}, t.{c}, s.{c}))"
                for c in ("name", "gene_type")
            },
            **{c: f"if({better}, s.{c}, t.{c})" for c in ("source", "source_version")},
        },
    )
    names = [(i, name, kind) for i, gene in enumerate(genes) for name, kind in _names(gene)]
    columns = list(zip(*names, strict=True)) or [(), (), ()]
    insert_aliases(
        con,
        pa.table(
            {
                "row": pa.array(columns[0], pa.int64()),
                "name": pa.array(columns[1], pa.string()),
                "kind": pa.array(columns[2], pa.string()),
            }
        ),
        "SELECT f.gene_id, f.species, i.name,"
        " if(i.kind = 'symbol' AND NOT f.official, 'alias', i.kind) AS kind"
        " FROM incoming i JOIN fresh f USING (row)",
    )
    con.execute("DROP TABLE fresh")
    return added


def _names(gene: Gene) -> Iterable[tuple[str, str]]:
    yield gene.symbol, "symbol"
    for kind, names in (("previous", gene.previous), ("alias", gene.aliases), ("ensembl", gene.ensembl_ids)):
        for name in names:
            if name != gene.symbol:
                yield name, kind


def _gene_table(genes: Sequence[Gene]) -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {
            "row": pa.array(range(len(genes)), pa.int64()),
            "gene_id": pa.array([g.gene_id for g in genes], pa.string()),
            "species": pa.array([g.species for g in genes], pa.string()),
            "symbol": pa.array([g.symbol for g in genes], pa.string()),
            "entrez_id": pa.array([g.entrez_id for g in genes], pa.int64()),
            "name": pa.array([g.name for g in genes], pa.string()),
            "gene_type": pa.array([g.gene_type for g in genes], pa.string()),
        }
    )
