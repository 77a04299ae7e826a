"""The gene knowledge base: genes, names, orthologs, descriptions and ontologies in one DuckDB file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scvec.base.errors import StoreError
from scvec.base.records import Answer, Failure, Job, Note
from scvec.base.types import SPECIES, Description, Gene
from scvec.stores.knowledge.gene_search import GeneSearch
from scvec.stores.knowledge.snapshot import SNAPSHOT_SOURCE, Snapshot, load_ontologies, load_snapshot_genes
from scvec.stores.knowledge.tables import (
    CONTENT_TABLES,
    SCHEMA_VERSION,
    Digest,
    Tables,
    connect,
    create,
    current_version,
    description_table,
    insert,
    insert_aliases,
    marker_table,
    translate,
    upsert,
    upsert_descriptions,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from scvec.stores.store.journal import Journal

__all__ = ["CellOntology", "Descriptions", "Jobs", "KnowledgeBase", "absorb", "load_genes", "match_genes"]

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
        """The facts of every source about one gene, cell type or group, by source."""
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


JOB_KEYS = ("gene_id", "source", "model", "prompt", "input_sha256")
_KEY = ", ".join(JOB_KEYS)

#: Answers that are held in memory at once.
BATCH = 5000
# Of two answers about one thing the later counts, whichever is absorbed first.
_NEWER = "s.retrieved_at >= t.retrieved_at"
# Of two live sources that know a gene NCBI counts, of two versions of one the newer; a gene that others
# brought stays theirs.
_BETTER = (
    "t.source IN ('ncbi', 'mygene') AND (t.source <> 'ncbi', t.source, s.source_version)"
    " > (s.source <> 'ncbi', s.source, t.source_version)"
)


class Jobs(Tables):
    """The part of the knowledge base that is about questions to live sources."""

    def jobs_done(self, jobs: Iterable[Job]) -> set[Job]:
        """Return those of ``jobs`` that have an answer here."""
        return self._with(jobs, "status = 'done'")

    def jobs_final(self, jobs: Iterable[Job]) -> set[Job]:
        """Return those of ``jobs`` that failed for good: asking again would get the same."""
        return self._with(jobs, "status = 'failed' AND final")

    def answered(self, source: str, *, model: str = "", prompt: str = "") -> set[str]:
        """Return the ids of genes that a source has answered, whatever it was asked for them.

        A gene that was asked for by its symbol, or by a name nobody knew, has an Entrez id once the answer
        is here: the next question about it would be another job, but the gene has been answered.
        """
        rows = self._all(
            "SELECT DISTINCT gene_id FROM jobs"
            " WHERE status = 'done' AND source = ? AND model = ? AND prompt = ?",
            [source, model, prompt],
        )
        return {str(row[0]) for row in rows}

    def failures(self, source: str | None = None, *, gene_id: str | None = None) -> list[Failure]:
        """Return jobs that were asked and have no answer, in a stable order."""
        rows = self._all(
            f"SELECT {_KEY}, error, final, attempts FROM jobs WHERE status = 'failed'"
            f" AND ($1 IS NULL OR source = $1) AND ($2 IS NULL OR gene_id = $2) ORDER BY {_KEY}",
            [source, gene_id],
        )
        return [Failure(Job(*row[:5]), *row[5:]) for row in rows]

    def _with(self, jobs: Iterable[Job], condition: str) -> set[Job]:
        with self._registered(asked=_job_table(jobs)):
            rows = self._all(f"SELECT {_KEY} FROM jobs SEMI JOIN asked USING ({_KEY}) WHERE {condition}")
        return {Job(*row) for row in rows}


class _Placed(NamedTuple):
    gene_id: str
    answer: Answer


def absorb(con: Any, journal: Journal) -> tuple[dict[str, int], list[Job]]:
    """Write all that a journal holds, inside a transaction that the caller holds.

    Returns
    -------
    counts
        As :meth:`~scvec.stores.knowledge.knowledge.KnowledgeBase.absorb` says them.
    left
        Jobs whose answers belong to no gene that is known.
    """
    counts = dict.fromkeys(("answers", "failures", "genes", "descriptions", "notes", "unplaced"), 0)
    left: list[Job] = []
    for batch in journal.answers(BATCH):
        counts["answers"] += len(batch)
        placed, lost = _place(con, batch, counts)
        left += lost
        texts = [replace(d, gene_id=gene_id) for gene_id, a in placed for d in a.descriptions]
        texts.sort(key=lambda d: (d.retrieved_at, d.sha256))  # of one key the last counts
        counts["descriptions"] += upsert_descriptions(con, description_table(texts), where=_NEWER)
        notes = [replace(a.note, gene_id=gene_id) for gene_id, a in placed if a.note is not None]
        counts["notes"] += _put_notes(con, notes)
        _put_markers(con, [answer for _, answer in placed if answer.markers])
        _put_done(con, placed)
    counts["unplaced"] = len(left)
    for failures in journal.failures(BATCH):
        counts["failures"] += len(failures)
        _put_failed(con, failures)
    return counts, left


def _place(con: Any, batch: Sequence[Answer], counts: dict[str, int]) -> tuple[list[_Placed], list[Job]]:
    """Find the gene of each answer, and load what answers tell about genes.

    The gene that was asked about decides. Only for others is it looked up, after the first have got their
    Entrez ids.
    """
    known = _species(con, {a.job.gene_id for a in batch})
    direct = [_Placed(a.job.gene_id, a) for a in batch if a.job.gene_id in known or not a.job.is_about_gene]
    told = [(p.gene_id, p.answer.gene, p.answer) for p in direct if p.answer.gene is not None]
    counts["genes"] += _load(
        con, _free_numbers(con, [(i, replace(g, species=known[i]), a) for i, g, a in told])
    )
    others = [a for a in batch if a.job.gene_id not in known and a.job.is_about_gene]
    genes: dict[str, Gene] = {}
    for answer in others:
        gene = _named(answer.gene)
        if gene is not None:
            genes.setdefault(gene.gene_id, gene)
    # Each gene once: of several records that match one gene by the same rule, one alone is it.
    ids = dict(zip(genes, match_genes(con, list(genes.values())), strict=True)) if genes else {}
    found, left, told = [], [], []
    for answer in others:
        gene = _named(answer.gene)
        if gene is None:
            left.append(answer.job)
            continue
        found.append(_Placed(ids[gene.gene_id], answer))
        told.append((ids[gene.gene_id], gene, answer))
    counts["genes"] += _load(con, told)
    return [*direct, *found], left


def _named(gene: Gene | None) -> Gene | None:
    """Return a gene that can be stored: one that has an id of its own, and not only the question."""
    if gene is None or not gene.gene_id.startswith("ask:"):
        return gene
    return replace(gene, gene_id=f"entrez:{gene.entrez_id}") if gene.entrez_id is not None else None


def _species(con: Any, gene_ids: set[str]) -> dict[str, Any]:
    import pyarrow as pa

    con.register("asked", pa.table({"gene_id": pa.array(sorted(gene_ids), pa.string())}))
    try:
        return dict(
            con.execute("SELECT gene_id, species FROM genes SEMI JOIN asked USING (gene_id)").fetchall()
        )
    finally:
        con.unregister("asked")


_Told = tuple[str, Gene, Answer]


def _free_numbers(con: Any, told: list[_Told]) -> list[_Told]:
    """Return the records without the Entrez ids that other genes have: an id is of one gene."""
    import pyarrow as pa

    numbers = sorted({g.entrez_id for _, g, _ in told if g.entrez_id is not None})
    con.register("numbers", pa.table({"entrez_id": pa.array(numbers, pa.int64())}))
    try:
        rows = con.execute(
            "SELECT entrez_id, species, min(gene_id) FROM genes SEMI JOIN numbers USING (entrez_id)"
            " GROUP BY ALL"
        ).fetchall()
    finally:
        con.unregister("numbers")
    owner = {(number, species): gene_id for number, species, gene_id in rows}
    free = []
    for gene_id, gene, answer in told:
        if (
            gene.entrez_id is not None
            and owner.setdefault((gene.entrez_id, gene.species), gene_id) != gene_id
        ):
            gene = replace(gene, entrez_id=None)
        free.append((gene_id, gene, answer))
    return free


def _load(con: Any, told: Sequence[_Told]) -> int:
    if not told:
        return 0
    # NCBI's word first, then the newest, whichever came first.
    ranked = sorted(told, key=lambda r: _version(r[2]), reverse=True)
    ranked.sort(key=lambda r: (r[2].job.source != "ncbi", r[2].job.source))
    ids, genes, answers = zip(*ranked, strict=True)
    return load_genes(
        con, genes, ids, [a.job.source for a in answers], [_version(a) for a in answers], _BETTER
    )


def _version(answer: Answer) -> str:
    if answer.note is not None:
        return answer.note.source_version
    return answer.descriptions[0].source_version if answer.descriptions else ""


def _put_notes(con: Any, notes: Sequence[Note]) -> int:
    import pyarrow as pa

    aged = sorted(((n.retrieved_at, n.source_version, n.to_json(), n) for n in notes), key=lambda r: r[:3])
    rows = {(n.gene_id, n.source): (n, facts) for _, _, facts, n in aged}  # of one key the last counts
    columns = {
        field: pa.array([getattr(n, field) for n, _ in rows.values()], pa.string())
        for field in ("gene_id", "source", "source_version", "retrieved_at")
    }
    table = pa.table({**columns, "facts": pa.array([facts for _, facts in rows.values()], pa.string())})
    update = {c: f"s.{c}" for c in ("source_version", "retrieved_at", "facts")}
    return upsert(con, "notes", table, "SELECT * FROM incoming", ("gene_id", "source"), update, _NEWER)


def _put_markers(con: Any, answers: Sequence[Answer]) -> None:
    """Put the markers of cell types in place of those that their sources told before."""
    last = {(a.job.gene_id, a.job.source): a for a in sorted(answers, key=lambda a: a.retrieved_at)}
    for cl_id, source in last:
        con.execute("DELETE FROM markers WHERE cl_id = ? AND starts_with(source, ?)", [cl_id, source])
    if last:
        rows = marker_table(m for answer in last.values() for m in answer.markers)
        insert(con, "markers", rows, "SELECT DISTINCT * FROM incoming")


def _put_done(con: Any, placed: Sequence[_Placed]) -> None:
    import pyarrow as pa

    # Under the job, so that it is not asked again, and under the gene that it came to.
    done: dict[Job, Answer] = {}
    for gene_id, answer in placed:
        done[answer.job] = answer
        done.setdefault(replace(answer.job, gene_id=gene_id), answer)
    table = _job_table(done).append_column(
        "updated_at", pa.array([a.retrieved_at for a in done.values()], pa.string())
    )
    upsert(
        con,
        "jobs",
        table,
        "SELECT *, 'done' AS status, 1 AS attempts, '' AS error, false AS final FROM incoming",
        JOB_KEYS,
        {c: f"s.{c}" for c in ("status", "attempts", "error", "final", "updated_at")},
        "t.status <> 'done' OR s.updated_at > t.updated_at",
    )


def _put_failed(con: Any, failures: Sequence[Failure]) -> None:
    import pyarrow as pa

    now = datetime.now(UTC).isoformat(timespec="seconds")
    table = _job_table(f.job for f in failures)
    for name, values, kind in (
        ("attempts", [f.attempts for f in failures], pa.int64()),
        ("error", [f.reason for f in failures], pa.string()),
        ("final", [f.final for f in failures], pa.bool_()),
    ):
        table = table.append_column(name, pa.array(values, kind))
    upsert(
        con,
        "jobs",
        table,
        f"SELECT *, 'failed' AS status, '{now}' AS updated_at FROM incoming",
        JOB_KEYS,
        {c: f"s.{c}" for c in ("attempts", "error", "final")},
        "t.status <> 'done'",
    )


def _job_table(jobs: Iterable[Job]) -> pa.Table:
    """Keys of jobs as an Arrow table, in order."""
    import pyarrow as pa

    listed = list(jobs)
    return pa.table({k: pa.array([getattr(job, k) for job in listed], pa.string()) for k in JOB_KEYS})


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
