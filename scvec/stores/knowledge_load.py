"""Bulk loads into the knowledge base: the snapshot, and gene records of any other source.

Rows travel as Arrow tables, because DuckDB inserts those hundreds of times faster than single rows.
Every function here runs inside a transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scvec.types import Description, Gene

if TYPE_CHECKING:
    import pyarrow as pa

    from scvec.stores.snapshot import Snapshot

__all__ = [
    "description_table",
    "load_genes",
    "load_ontologies",
    "match_genes",
    "snapshot_genes",
    "upsert_descriptions",
]

# Tables that belong to no species and come from the snapshot alone.
_SHARED = ("go_terms", "go_parents", "cl_terms", "cl_synonyms", "cl_ancestors", "orthologs")


def _insert(con: Any, table: str, rows: pa.Table, select: str) -> int:
    """Insert ``SELECT ... FROM incoming`` and return by how many rows the table grew."""
    con.register("incoming", rows)
    try:
        return int(con.execute(f"INSERT INTO {table} BY NAME {select}").fetchall()[0][0])
    finally:
        con.unregister("incoming")


def _upsert(
    con: Any, table: str, rows: pa.Table, select: str, keys: Sequence[str], update: Mapping[str, str]
) -> int:
    """Insert ``SELECT ... FROM incoming``, or update rows that have its keys; returns rows added.

    ``update`` gives an expression over ``s`` (incoming) and ``t`` (stored) per column. Not ``ON CONFLICT``:
    that took 150 s for 100,000 rows that were there, this takes one.
    """
    con.register("incoming", rows)
    try:
        con.execute(f"CREATE OR REPLACE TEMP TABLE staged AS {select}")
    finally:
        con.unregister("incoming")
    same = " AND ".join(f"t.{key} = s.{key}" for key in keys)
    changed = " OR ".join(f"t.{column} IS DISTINCT FROM {value}" for column, value in update.items())
    sets = ", ".join(f"{column} = {value}" for column, value in update.items())
    con.execute(f"UPDATE {table} t SET {sets} FROM staged s WHERE {same} AND ({changed})")
    added = con.execute(
        f"INSERT INTO {table} BY NAME SELECT * FROM staged ANTI JOIN {table} USING ({', '.join(keys)})"
    ).fetchall()[0][0]
    con.execute("DROP TABLE staged")
    return int(added)


def upsert_descriptions(con: Any, rows: pa.Table, select: str = "SELECT * FROM incoming") -> int:
    """Insert descriptions, or replace those of one gene, source, model and prompt; returns rows added."""
    replaced = ("text", "source_version", "retrieved_at", "sha256", "kind")
    keys = ("gene_id", "source", "model", "prompt")
    return _upsert(con, "descriptions", rows, select, keys, {c: f"s.{c}" for c in replaced})


def _insert_aliases(con: Any, rows: pa.Table, select: str) -> int:
    """Insert the names that are not there yet; ``select`` gives gene_id, species, name and kind."""
    return _insert(
        con,
        "aliases",
        rows,
        f"SELECT DISTINCT gene_id, species, name, lower(name) AS folded, kind FROM ({select})"
        " ANTI JOIN aliases USING (gene_id, kind, name) WHERE name <> ''",
    )


def load_ontologies(con: Any, snapshot: Snapshot) -> None:
    """Replace Gene Ontology, Cell Ontology and orthologs by those of a snapshot."""
    for table in _SHARED:
        con.execute(f"DELETE FROM {table}")
        _insert(con, table, snapshot.table(table), "SELECT * FROM incoming")


def snapshot_genes(con: Any, snapshot: Snapshot, species: Sequence[str], source: str) -> dict[str, int]:
    """Genes, aliases, annotations and descriptions of some species; returns rows added."""
    import pyarrow as pa
    import pyarrow.compute as pc

    genes = snapshot.table("genes")
    genes = genes.filter(pc.is_in(genes["species"], pa.array(species)))
    con.register("snapshot_genes", genes)
    stamp = f"{_text(source)} AS source, {_text(snapshot.version)} AS source_version"
    try:
        con.execute(
            "CREATE OR REPLACE TEMP TABLE chosen AS"
            " SELECT gene_id, species, symbol, entrez_id FROM snapshot_genes"
        )
    finally:
        con.unregister("snapshot_genes")
    _adopt(con)
    added = {}
    added["genes"] = _upsert(
        con,
        "genes",
        genes,
        f"SELECT *, {stamp} FROM incoming",
        ("gene_id",),
        {
            "symbol": "s.symbol",
            "entrez_id": "coalesce(s.entrez_id, t.entrez_id)",
            "name": "coalesce(nullif(s.name, ''), t.name)",
            "gene_type": "s.gene_type",
            "source": "s.source",
            "source_version": "s.source_version",
        },
    )
    symbols = _insert_aliases(
        con, genes, "SELECT gene_id, species, symbol AS name, 'symbol' AS kind FROM incoming"
    )
    added["aliases"] = symbols + _insert_aliases(
        con,
        snapshot.table("aliases"),
        "SELECT gene_id, c.species, name, kind FROM incoming JOIN chosen c USING (gene_id)",
    )
    # A newer snapshot may have renamed a gene: one official symbol each, the older one is a previous symbol.
    con.execute(
        "UPDATE aliases SET kind = 'previous' FROM genes g"
        " WHERE g.gene_id = aliases.gene_id AND aliases.kind = 'symbol' AND aliases.name <> g.symbol"
    )
    # A symbol that an authority gives to a gene is only an alias of a gene that a file brought.
    con.execute(
        "UPDATE aliases SET kind = 'alias' FROM chosen c WHERE aliases.gene_id LIKE 'entrez:%'"
        " AND aliases.kind = 'symbol' AND c.symbol = aliases.name AND c.species = aliases.species"
    )
    con.execute("DELETE FROM go_annotations WHERE gene_id IN (SELECT gene_id FROM chosen)")
    added["go_annotations"] = _insert(
        con,
        "go_annotations",
        snapshot.table("go_annotations"),
        "SELECT incoming.* FROM incoming SEMI JOIN chosen USING (gene_id)",
    )
    added["descriptions"] = upsert_descriptions(
        con,
        snapshot.table("descriptions"),
        f"SELECT gene_id, text, {stamp}, {_text(snapshot.date)} AS retrieved_at, sha256(text) AS sha256,"
        " kind, '' AS model, '' AS prompt FROM incoming SEMI JOIN chosen USING (gene_id)",
    )
    con.execute("DROP TABLE chosen")
    return added


def _adopt(con: Any) -> None:
    """Genes that a file brought as ``entrez:N`` become the genes in ``chosen`` that have this Entrez id.

    Rows are copied and then deleted: an update of a key may meet a row that is there.
    """
    con.execute(
        "CREATE OR REPLACE TEMP TABLE adopted AS SELECT g.gene_id AS old_id, min(c.gene_id) AS new_id,"
        " arg_min(c.symbol, c.gene_id) AS new_symbol"
        " FROM genes g JOIN chosen c ON c.entrez_id = g.entrez_id AND c.species = g.species"
        " WHERE g.gene_id LIKE 'entrez:%' GROUP BY g.gene_id"
    )
    if con.execute("SELECT count(*) FROM adopted").fetchall()[0][0]:
        con.execute(
            "INSERT INTO aliases BY NAME"
            " SELECT DISTINCT * FROM (SELECT new_id AS gene_id, species, name, folded,"
            " if(kind = 'symbol' AND name <> new_symbol, 'alias', kind) AS kind"
            " FROM aliases JOIN adopted ON old_id = gene_id) ANTI JOIN aliases USING (gene_id, kind, name)"
        )
        con.execute("DELETE FROM aliases WHERE gene_id IN (SELECT old_id FROM adopted)")
        for table, columns in (
            ("descriptions", "text, source, source_version, retrieved_at, sha256, kind, model, prompt"),
            ("jobs", "source, model, prompt, input_sha256, status, attempts, error, updated_at"),
        ):
            con.execute(
                f"INSERT INTO {table} BY NAME SELECT new_id AS gene_id, {columns} FROM {table} t"
                " JOIN adopted ON old_id = t.gene_id ON CONFLICT DO NOTHING"
            )
            con.execute(f"DELETE FROM {table} WHERE gene_id IN (SELECT old_id FROM adopted)")
        con.execute("DELETE FROM genes WHERE gene_id IN (SELECT old_id FROM adopted)")
    con.execute("DROP TABLE adopted")


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


def load_genes(con: Any, genes: Sequence[Gene], gene_ids: Sequence[str], source: str, version: str) -> int:
    """Insert genes under the ids :func:`match_genes` gave, fill gaps of others; returns genes added."""
    import pyarrow as pa

    table = _gene_table(genes).set_column(1, "gene_id", pa.array(list(gene_ids), pa.string()))
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
    added = _upsert(
        con,
        "genes",
        table,
        f"SELECT gene_id, species, symbol, entrez_id, name, gene_type, {_text(source)} AS source,"
        f" {_text(version)} AS source_version FROM incoming"
        " QUALIFY row_number() OVER (PARTITION BY gene_id ORDER BY row) = 1",
        ("gene_id",),
        {
            "entrez_id": "coalesce(t.entrez_id, s.entrez_id)",
            "name": "coalesce(nullif(t.name, ''), s.name)",
            "gene_type": "coalesce(nullif(t.gene_type, ''), s.gene_type)",
        },
    )
    names = [(i, name, kind) for i, gene in enumerate(genes) for name, kind in _names(gene)]
    columns = list(zip(*names, strict=True)) or [(), (), ()]
    _insert_aliases(
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


def description_table(rows: Iterable[Description]) -> pa.Table:
    """Descriptions as an Arrow table; of rows with one key the last counts."""
    import pyarrow as pa

    last = {(d.gene_id, d.source, d.model, d.prompt): d for d in rows}
    fields = (
        "gene_id",
        "text",
        "source",
        "source_version",
        "retrieved_at",
        "sha256",
        "kind",
        "model",
        "prompt",
    )
    return pa.table({f: pa.array([getattr(d, f) for d in last.values()], pa.string()) for f in fields})


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
