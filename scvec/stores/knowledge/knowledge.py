"""The gene knowledge base: genes, names, orthologs, descriptions and ontologies in one DuckDB file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import StoreError
from scvec.base.types import SPECIES, Description, Gene
from scvec.stores.knowledge.answers import Jobs, absorb
from scvec.stores.knowledge.gene_records import Descriptions, load_genes, match_genes
from scvec.stores.knowledge.gene_search import GeneSearch
from scvec.stores.knowledge.schema import CONTENT_TABLES, SCHEMA_VERSION, Digest, create, current_version
from scvec.stores.knowledge.snapshot import SNAPSHOT_SOURCE, Snapshot, load_ontologies, load_snapshot_genes
from scvec.stores.knowledge.tables import (
    Tables,
    connect,
    description_table,
    insert,
    translate,
    upsert_descriptions,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from scvec.stores.store.journal import Journal

__all__ = ["CellOntology", "KnowledgeBase"]


class CellOntology(Tables):
    """The part of the knowledge base that is about cell types."""

    def cl_names(self) -> list[tuple[str, str, bool]]:
        """Every name of every Cell Ontology term, as (id, name, whether it is the term's own label)."""
        sql = (
            "SELECT cl_id, label, true FROM cl_terms UNION ALL"
            " SELECT cl_id, synonym, false FROM cl_synonyms ORDER BY ALL"
        )
        # Labels first: synonyms are judged by them.
        rows = sorted(self._all(sql), key=lambda row: not row[2])
        return [(str(i), str(name), bool(own)) for i, name, own in rows]

    def cl_label(self, cl_id: str) -> str:
        """Label of a Cell Ontology term; its id where the term is not known."""
        rows = self._all("SELECT label FROM cl_terms WHERE cl_id = ?", [cl_id])
        return str(rows[0][0]) if rows else cl_id

    def cl_ancestors(self, cl_id: str) -> dict[str, int]:
        """Ancestors of a Cell Ontology term and how many steps up they are, nearest first."""
        sql = "SELECT ancestor_id, distance FROM cl_ancestors WHERE cl_id = ? ORDER BY distance, ancestor_id"
        return {str(a): int(d) for a, d in self._all(sql, [cl_id])}

    def cl_lineage(self) -> dict[str, frozenset[str]]:
        """Term -> all its ancestors, of every term of the Cell Ontology that has any."""
        found: dict[str, set[str]] = {}
        for cl_id, above in self._all("SELECT cl_id, ancestor_id FROM cl_ancestors"):
            found.setdefault(str(cl_id), set()).add(str(above))
        return {cl_id: frozenset(above) for cl_id, above in found.items()}

    def markers(self) -> list[tuple[str, str, str, str, str, float, str]]:
        """Markers of cell types: (cl_id, tissue, species, gene symbol, direction, weight, source)."""
        return [
            (str(c), str(t), str(s), str(g), str(d), float(w), str(source))
            for c, t, s, g, d, w, source in self._all("SELECT * FROM markers ORDER BY ALL")
        ]


class KnowledgeBase(Descriptions, Jobs, CellOntology, GeneSearch, Digest):
    """What is known about genes. Open it with :meth:`open`; close it, or use it as a context manager.

    One process may write, many may read while none writes.
    """

    def __init__(self, connection: Any, path: Path, *, read_only: bool) -> None:
        super().__init__(connection, path)
        self._in_transaction = False
        self.read_only = read_only

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False) -> KnowledgeBase:
        """Open a knowledge base; a writable one is created where there is none.

        Raises
        ------
        StoreError
            The file is damaged, not a knowledge base, of another schema, or (read only) missing.
        LockedError
            Another process writes to the file.
        """
        path = Path(path)
        if read_only and not path.is_file():
            raise StoreError(
                "there is no knowledge base", str(path), "run: scvec ingest genes", code="not-a-store"
            )
        with translate(path):
            con = connect(path, read_only=read_only)
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

    def __exit__(self, *error: object) -> None:
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
                load_ontologies(self._con, found)
            added = load_snapshot_genes(self._con, found, wanted, SNAPSHOT_SOURCE)
            for key in ("snapshot", *(f"snapshot:{s}" for s in wanted)):
                self._con.execute(
                    "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                    [key, found.version],
                )
        self._compact()
        return added

    def put_markers(self, rows: pa.Table, source: str) -> int:
        """Put markers of cell types in place of those of the same table; return how many there are now.

        Parameters
        ----------
        rows
            Table with the columns of :meth:`markers`; ``source`` begins with ``source``.
        source
            Name of the table that they came from: what was loaded under it before goes.
        """
        with self.transaction():
            self._con.execute("DELETE FROM markers WHERE starts_with(source, ?)", [source])
            insert(self._con, "markers", rows, "SELECT DISTINCT * FROM incoming")
        return int(self._one("SELECT count(*) FROM markers")[0])

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
            ids = match_genes(self._con, genes)
            load_genes(self._con, genes, ids, [source] * len(ids), [source_version] * len(ids))
        return {gene.gene_id: gene_id for gene, gene_id in zip(genes, ids, strict=True)}

    def upsert_descriptions(self, descriptions: Iterable[Description]) -> int:
        """Add descriptions, or replace those of one gene, source, model and prompt; returns rows added."""
        rows = description_table(descriptions)
        with self.transaction():
            return upsert_descriptions(self._con, rows)

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

    def absorb(self, journal: Journal) -> dict[str, int]:
        """Take in what a journal holds, all or nothing.

        Descriptions, notes and facts go to the gene that was asked about; what came for a name goes to the
        gene that the answer is about, which may be new. Absorbing the same once more changes nothing, and
        the order in which answers came does not count. What this took in is then marked in the journal:
        ``journal.clear()`` forgets it. Call that when it is safe (`Transaction.commit` does).

        Returns
        -------
        dict
            ``answers`` and ``failures`` read; ``genes``, ``descriptions`` and ``notes`` added; ``unplaced``:
            answers about no gene that is known, which stay in the journal.
        """
        with self.transaction():
            counts, left = absorb(self._con, journal)
        self._compact()
        journal.absorbed(left)
        return counts

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
            " WHERE entrez_id IS NOT NULL AND ($1 IS NULL OR species = $1)"
            " ORDER BY gene_id, kind, name",
            [species],
        )

    def orthologs(self) -> pd.DataFrame:
        """Pairs in a stable order.

        Columns: human_gene_id, mouse_gene_id, kind, confidence, gene_order_conservation,
        alignment_coverage.
        """
        return self._frame("SELECT * FROM orthologs ORDER BY human_gene_id, mouse_gene_id")

    def counts(self) -> dict[str, int]:
        """Rows per table, and genes and descriptions by species and by kind."""
        tables = [t for t in (*CONTENT_TABLES, "jobs") if t != "meta"]
        row = self._one("SELECT " + ", ".join(f"(SELECT count(*) FROM {t})" for t in tables))
        counts = dict(zip(tables, (int(n) for n in row), strict=True))
        for sql in (
            "SELECT 'genes ' || species, count(*) FROM genes GROUP BY ALL ORDER BY 1",
            "SELECT 'descriptions ' || kind, count(*) FROM descriptions GROUP BY ALL ORDER BY 1",
        ):
            counts |= {str(name): int(n) for name, n in self._all(sql)}
        return counts

    # Helpers

    def _meta(self, key: str) -> str | None:
        rows = self._all("SELECT value FROM meta WHERE key = ?", [key])
        return str(rows[0][0]) if rows else None

    def _compact(self) -> None:
        if not self._in_transaction:
            with translate(self.path):
                self._con.execute("CHECKPOINT")


def _prepare(con: Any, path: Path, read_only: bool) -> None:
    """Check that the file has the tables of this schema; make them in an empty one."""
    version = current_version(con)
    if version == SCHEMA_VERSION:
        return
    if version:
        raise StoreError(
            f"the knowledge base is of schema {version}, this scvec knows {SCHEMA_VERSION}",
            str(path),
            "use the scvec that made it",
            code="store-format",
        )
    if read_only:
        raise StoreError(
            "the file is not a knowledge base", str(path), "run: scvec ingest genes", code="not-a-store"
        )
    if con.execute("SELECT count(*) FROM duckdb_tables()").fetchall()[0][0]:
        raise StoreError(
            "the file is a DuckDB database, but not a knowledge base",
            str(path),
            "name another file",
            code="not-a-store",
        )
    create(con)


def _under(description: Description, gene_id: str) -> Description:
    return description if gene_id == description.gene_id else replace(description, gene_id=gene_id)
