"""The gene knowledge base: genes, names, orthologs, descriptions and ontologies in one DuckDB file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from scvec.errors import StoreError
from scvec.stores import knowledge_load as load
from scvec.stores.duckdb_errors import translate
from scvec.stores.schema import CONTENT_TABLES, SCHEMA_VERSION, TIME_COLUMNS, current_version, migrate
from scvec.stores.snapshot import SNAPSHOT_SOURCE, Snapshot
from scvec.types import SPECIES, Description, Gene

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KnowledgeBase"]

# Files are never trusted: DuckDB reads nothing but its own file and loads no extension.
_CONFIG = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    # Here and not by SET afterwards: a second connection of this process to the file would be refused.
    "lock_configuration": "true",
}

_DESCRIPTION = "gene_id, text, source, source_version, retrieved_at, kind, model, prompt"


class KnowledgeBase:
    """What is known about genes. Open it with :meth:`open`; close it, or use it as a context manager.

    One process may write, many may read while none writes.
    """

    def __init__(self, connection: Any, path: Path, *, read_only: bool) -> None:
        self._con = connection
        self._in_transaction = False
        self.path = path
        self.read_only = read_only

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False) -> KnowledgeBase:
        """Open a knowledge base; a writable one is created or brought to this schema version.

        Raises
        ------
        StoreError
            The file is damaged, no knowledge base, of a newer schema, or (read only) missing or older.
        LockedError
            Another process writes to the file.
        """
        import duckdb

        path = Path(path)
        if read_only and not path.is_file():
            raise StoreError("there is no knowledge base", str(path), "run: scvec ingest genes")
        with translate(path):
            con = duckdb.connect(str(path), read_only=read_only, config=dict(_CONFIG))
        try:
            with translate(path):
                _prepare(con, path, read_only)
        except BaseException:
            con.close()
            raise
        return cls(con, path, read_only=read_only)

    def close(self) -> None:
        """Write everything to the one file and close it; closing twice does no harm."""
        self._con.close()

    def __enter__(self) -> KnowledgeBase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def schema_version(self) -> int:
        """Version of the tables in the file."""
        with translate(self.path):
            return current_version(self._con)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that is written inside together or not at all; of nested ones the outer counts."""
        if self._in_transaction:
            yield
            return
        import duckdb

        with translate(self.path):
            self._con.execute("BEGIN")
            self._in_transaction = True
            try:
                yield
                self._con.execute("COMMIT")
            except BaseException:
                # A commit that failed, or a fatal error, has ended the transaction already.
                with suppress(duckdb.Error):
                    self._con.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = False

    # Writing

    def load_snapshot(
        self, species: Sequence[str] = SPECIES, *, snapshot: Snapshot | None = None
    ) -> dict[str, int]:
        """Load the shipped genes of some species, orthologs and ontologies; returns rows added per table.

        Loading twice changes nothing. What other sources brought is kept: their descriptions, names, and
        Entrez ids where the snapshot has none.
        """
        unknown = [s for s in species if s not in SPECIES]
        if unknown:
            raise StoreError(f"the snapshot has no species {unknown[0]!r}", "", f"use {' or '.join(SPECIES)}")
        found = snapshot or Snapshot.open()
        wanted = [s for s in SPECIES if s in species and self._meta(f"snapshot:{s}") != found.version]
        if not wanted:
            return dict.fromkeys(("genes", "aliases", "go_annotations", "descriptions"), 0)
        with self.transaction():
            if self._meta("snapshot") != found.version:
                load.load_ontologies(self._con, found)
            added = load.snapshot_genes(self._con, found, wanted, SNAPSHOT_SOURCE)
            for key in ("snapshot", *(f"snapshot:{s}" for s in wanted)):
                self._con.execute(
                    "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                    [key, found.version],
                )
        self._compact()
        return added

    def upsert_genes(
        self, genes: Sequence[Gene], *, source: str = "file", source_version: str = ""
    ) -> dict[str, str]:
        """Add genes, or fill the gaps of those that exist; returns the stored id by ``gene_id``.

        A record is an existing gene by Entrez id, else by ``gene_id``, else by Ensembl id, else by official
        symbol where that is unique. Descriptions of the record belong under the id returned.
        """
        if not genes:
            return {}
        with self.transaction():
            ids = load.match_genes(self._con, genes)
            load.load_genes(self._con, genes, ids, source, source_version)
        return {gene.gene_id: gene_id for gene, gene_id in zip(genes, ids, strict=True)}

    def upsert_descriptions(self, descriptions: Iterable[Description]) -> int:
        """Add descriptions, or replace those of one gene, source, model and prompt; returns rows added."""
        rows = load.description_table(descriptions)
        with self.transaction():
            return load.upsert_descriptions(self._con, rows)

    def upsert_records(
        self,
        batches: Iterable[Sequence[tuple[Gene, Sequence[Description]]]],
        *,
        source: str = "file",
        source_version: str = "",
    ) -> dict[str, int]:
        """Load batches of genes with descriptions, all or nothing; returns records read and rows added."""
        before = self.counts()
        read = {"records": 0, "described": 0}
        with self.transaction():
            for batch in batches:
                stored = self.upsert_genes(
                    [g for g, _ in batch], source=source, source_version=source_version
                )
                moved = [_under(d, stored.get(d.gene_id, d.gene_id)) for _, texts in batch for d in texts]
                self.upsert_descriptions(moved)
                read["records"] += len(batch)
                read["described"] += len(moved)
        self._compact()
        after = self.counts()
        return read | {t: after[t] - before[t] for t in ("genes", "aliases", "descriptions")}

    def start_run(self, command: str, parameters: dict[str, Any]) -> int:
        """Note that a command began; returns the number of the run."""
        row = self._one(
            "INSERT INTO runs (command, parameters, started_at) VALUES (?, ?, ?) RETURNING run_id",
            [command, json.dumps(parameters, sort_keys=True, default=str), _now()],
        )
        return int(row[0])

    def finish_run(self, run_id: int) -> None:
        """Note that a run is done."""
        with translate(self.path):
            self._con.execute("UPDATE runs SET finished_at = ? WHERE run_id = ?", [_now(), run_id])

    # Reading

    def genes(self, species: str | None = None) -> pd.DataFrame:
        """Genes in a stable order; ``entrez_id`` is Int64 with missing values.

        Columns: gene_id, species, symbol, entrez_id, name, gene_type, source, source_version.
        """
        table = self._frame(
            "SELECT * FROM genes WHERE ? IS NULL OR species = ? ORDER BY species, gene_id", [species] * 2
        )
        return table.astype({"entrez_id": "Int64"})

    def aliases(self, species: str | None = None) -> pd.DataFrame:
        """Every name of every gene: gene_id, species, name, folded, kind.

        Kinds are ``symbol``, ``previous``, ``alias``, ``ensembl`` and ``entrez``. The order is stable.
        """
        return self._frame(
            "SELECT gene_id, species, name, folded, kind FROM aliases WHERE $1 IS NULL OR species = $1"
            " UNION ALL SELECT gene_id, species, entrez_id::VARCHAR, entrez_id::VARCHAR, 'entrez' FROM genes"
            " WHERE entrez_id IS NOT NULL AND ($1 IS NULL OR species = $1)",
            [species],
        )

    def orthologs(self) -> pd.DataFrame:
        """Pairs in a stable order.

        Columns: human_gene_id, mouse_gene_id, kind, confidence, gene_order_conservation,
        alignment_coverage.
        """
        return self._frame("SELECT * FROM orthologs ORDER BY human_gene_id, mouse_gene_id")

    def descriptions(
        self,
        gene_ids: Sequence[str] | None = None,
        prefer: Sequence[str] = ("human", "llm", "composed", "borrowed"),
    ) -> dict[str, Description]:
        """The best description of each gene, by gene id; genes that have none are left out.

        ``prefer`` ranks kinds, and kinds it leaves out are not used. Of one kind the latest counts. With
        ``gene_ids`` the result is in their order, else in the order of ids.
        """
        import pyarrow as pa

        self._con.register("prefer", pa.table({"kind": list(prefer), "rank": list(range(len(prefer)))}))
        wanted = None if gene_ids is None else list(dict.fromkeys(gene_ids))
        if wanted is not None:
            self._con.register("wanted", pa.table({"gene_id": pa.array(wanted, pa.string())}))
        try:
            rows = self._all(
                f"SELECT {_DESCRIPTION} FROM descriptions JOIN prefer USING (kind)"
                + (" SEMI JOIN wanted USING (gene_id)" if wanted is not None else "")
                + " QUALIFY row_number() OVER (PARTITION BY gene_id ORDER BY rank, retrieved_at DESC, source,"
                " model, prompt) = 1 ORDER BY gene_id"
            )
        finally:
            self._con.unregister("prefer")
            if wanted is not None:
                self._con.unregister("wanted")
        found = {row[0]: Description(*row) for row in rows}
        return found if wanted is None else {g: found[g] for g in wanted if g in found}

    def all_descriptions(self, gene_id: str) -> list[Description]:
        """Every description of one gene, of every source."""
        sql = f"SELECT {_DESCRIPTION} FROM descriptions WHERE gene_id = ? ORDER BY source, model, prompt"
        return [Description(*row) for row in self._all(sql, [gene_id])]

    def cl_term(self, label: str) -> tuple[str, str] | None:
        """The Cell Ontology term of a label or synonym, as (id, label), or None.

        Case and a plural s do not count (``"B cells"``); labels come before synonyms, and a synonym of
        several terms names none.
        """
        folded = " ".join(label.lower().replace("_", " ").split())
        for name in dict.fromkeys((folded, folded.removesuffix("s"), folded + "s")):
            for sql in (
                "SELECT cl_id, label FROM cl_terms WHERE lower(label) = ?",
                "SELECT DISTINCT cl_id, label FROM cl_synonyms JOIN cl_terms USING (cl_id)"
                " WHERE lower(synonym) = ?",
            ):
                rows = self._all(sql + " LIMIT 2", [name])
                if len(rows) == 1:
                    return str(rows[0][0]), str(rows[0][1])
        return None

    def cl_label(self, cl_id: str) -> str:
        """Label of a Cell Ontology term; its id where the term is not known."""
        rows = self._all("SELECT label FROM cl_terms WHERE cl_id = ?", [cl_id])
        return str(rows[0][0]) if rows else cl_id

    def cl_ancestors(self, cl_id: str) -> dict[str, int]:
        """Ancestors of a Cell Ontology term and how many steps up they are, nearest first."""
        sql = "SELECT ancestor_id, distance FROM cl_ancestors WHERE cl_id = ? ORDER BY distance, ancestor_id"
        return {str(a): int(d) for a, d in self._all(sql, [cl_id])}

    def counts(self) -> dict[str, int]:
        """Rows per table, and genes and descriptions by species and by kind."""
        tables = [t for t in (*CONTENT_TABLES, "jobs", "runs") if t != "meta"]
        row = self._one("SELECT " + ", ".join(f"(SELECT count(*) FROM {t})" for t in tables))
        counts = dict(zip(tables, (int(n) for n in row), strict=True))
        for sql in (
            "SELECT 'genes ' || species, count(*) FROM genes GROUP BY ALL ORDER BY 1",
            "SELECT 'descriptions ' || kind, count(*) FROM descriptions GROUP BY ALL ORDER BY 1",
        ):
            counts |= {str(name): int(n) for name, n in self._all(sql)}
        return counts

    def digest(self) -> str:
        """SHA-256 of the content, whatever the order of rows; columns of time, jobs and runs do not count.

        Two files that were filled from the same sources have the same digest, though their bytes differ.
        """
        parts = [f"schema {self.schema_version}"]
        for table in CONTENT_TABLES:
            columns = sorted(
                {str(r[0]) for r in self._all(f"SELECT column_name FROM (DESCRIBE {table})")} - TIME_COLUMNS
            )
            # Length before value: no two rows can run together into the same text.
            cells = ", ".join(
                f"coalesce(length({c}::VARCHAR)::VARCHAR || ':' || {c}::VARCHAR, '-')" for c in columns
            )
            row = self._one(
                f"SELECT count(*), sum(md5_number_lower(v)), sum(md5_number_upper(v)) FROM"
                f" (SELECT concat({cells}) AS v FROM {table})"
            )
            parts.append(f"{table} {','.join(columns)} {row[0]} {row[1]} {row[2]}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    # Helpers

    def _meta(self, key: str) -> str | None:
        rows = self._all("SELECT value FROM meta WHERE key = ?", [key])
        return str(rows[0][0]) if rows else None

    def _compact(self) -> None:
        if not self._in_transaction:
            with translate(self.path):
                self._con.execute("CHECKPOINT")

    def _all(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with translate(self.path):
            rows: list[tuple[Any, ...]] = self._con.execute(sql, list(parameters)).fetchall()
        return rows

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        return self._all(sql, parameters)[0]

    def _frame(self, sql: str, parameters: Sequence[Any] = ()) -> pd.DataFrame:
        with translate(self.path):
            frame: pd.DataFrame = self._con.execute(sql, list(parameters)).df()
        return frame


def _prepare(con: Any, path: Path, read_only: bool) -> None:
    version = current_version(con)
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the knowledge base is of schema {version}, this scvec knows {SCHEMA_VERSION}",
            str(path),
            "use a newer scvec",
        )
    if version == SCHEMA_VERSION:
        return
    if read_only:
        raise StoreError(
            f"the knowledge base is of schema {version}, this scvec needs {SCHEMA_VERSION}"
            if version
            else "the file is no knowledge base",
            str(path),
            "run: scvec ingest genes",
        )
    if version == 0 and con.execute("SELECT count(*) FROM duckdb_tables()").fetchall()[0][0]:
        raise StoreError(
            "the file is a DuckDB database, but no knowledge base", str(path), "name another file"
        )
    migrate(con)


def _under(description: Description, gene_id: str) -> Description:
    if gene_id == description.gene_id:
        return description
    d = description
    return Description(gene_id, d.text, d.source, d.source_version, d.retrieved_at, d.kind, d.model, d.prompt)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
