"""The gene knowledge base: genes, names, orthologs, descriptions and ontologies in one DuckDB file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scvec.base.errors import StoreError
from scvec.base.resources import Closes
from scvec.base.species import SPECIES
from scvec.base.types import Answer, Description, Failure, Gene, Job, Note
from scvec.stores.knowledge.gene_search import GeneSearch
from scvec.stores.knowledge.snapshot import SNAPSHOT_SOURCE, Snapshot, load_ontologies, load_snapshot_genes
from scvec.stores.knowledge.tables import (
    CONTENT_TABLES,
    SCHEMA_VERSION,
    Digest,
    Tables,
    arrow,
    connect,
    create,
    current_version,
    description_table,
    insert,
    insert_aliases,
    insert_orthologs,
    marker_table,
    registered,
    translate,
    upsert,
    upsert_descriptions,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from scvec.stores.store.journal import Journal

__all__ = ["CellOntology", "Descriptions", "Jobs", "KnowledgeBase", "absorb", "load_genes", "match_genes"]

_FIELDS = "gene_id text source source_version retrieved_at kind model prompt provenance".split()


class Descriptions(Tables):
    """Part of the knowledge base: texts about genes."""

    def descriptions(
        self,
        gene_ids: Sequence[str] | None = None,
        prefer: Sequence[str] = ("human", "llm", "composed", "borrowed"),
    ) -> dict[str, Description]:
        """Return gene id -> best description; genes without a description are left out.

        Parameters
        ----------
        gene_ids
            Genes to look up; the result has their order. None means all genes, sorted by id.
        prefer
            Kinds of description, best first; other kinds are not used. Among texts of the same kind the
            latest one wins. Among texts of the same kind and day NCBI's wins, because other sources copy it.
        """
        wanted = None if gene_ids is None else list(dict.fromkeys(gene_ids))
        tables = {"prefer": arrow(zip(prefer, range(len(prefer)), strict=True), kind="string", rank="int64")}
        if wanted is not None:
            tables["wanted"] = arrow(((g,) for g in wanted), gene_id="string")
        with registered(self._con, **tables):
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
        """Return all descriptions of one gene, sorted by source, model and prompt."""
        rows = self._all(
            f"SELECT {', '.join(_FIELDS)} FROM descriptions WHERE gene_id = ? ORDER BY source, model, prompt",
            [gene_id],
        )
        return [Description(*row) for row in rows]

    def notes(self, gene_id: str) -> list[Note]:
        """Return the facts of all sources about one gene, cell type or group, sorted by source."""
        rows = self._all(
            "SELECT gene_id, source, source_version, retrieved_at, facts FROM notes WHERE gene_id = ?"
            " ORDER BY source",
            [gene_id],
        )
        return [Note(g, source, version, at, json.loads(facts)) for g, source, version, at, facts in rows]


def match_genes(con: Any, genes: Sequence[Gene]) -> list[str]:
    """Return the gene id in this knowledge base for each record, in order.

    A record matches an existing gene by Entrez id, else by its own id, else by an Ensembl id, else by
    official symbol. The last two rules need a unique gene without a different Entrez id. If several records
    match one gene by the same rule, the first record gets it, and the others keep their own ids.
    """
    ensembl = [(i, e, g.entrez_id is not None) for i, g in enumerate(genes) for e in g.ensembl_ids]
    ensembl_table = arrow(ensembl, row="int64", name="string", numbered="bool")
    with registered(con, incoming=_gene_table(genes), incoming_ensembl=ensembl_table):
        hits = con.execute(
            """
            WITH hits AS (
                SELECT i.row, g.gene_id, 1 AS step FROM incoming i
                    JOIN genes g ON g.entrez_id = i.entrez_id AND g.species = i.species
                UNION ALL SELECT i.row, g.gene_id, 2 FROM incoming i JOIN genes g USING (gene_id, species)
                -- No condition on species here: an Ensembl id belongs to one species. With stale statistics
                -- DuckDB may join on species first, which pairs every gene with every gene.
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
    """Insert new genes, and fill empty fields of existing ones; return the number of genes added.

    Parameters
    ----------
    con
        DuckDB connection.
    genes
        Records. If several records have the same gene id, the first one counts.
    gene_ids
        Gene id of each record, from :func:`match_genes`.
    sources, versions
        Source of each record, and version of the source.
    better
        SQL condition over ``s`` (the record) and ``t`` (the stored gene); if true, the record replaces stored
        values.
    """
    origins = zip(gene_ids, sources, versions, strict=True)
    table = _gene_table(genes, origins, gene_id="string", source="string", source_version="string")
    con.register("records", table)
    con.execute(
        # The authority's symbol stays official, so a different symbol in a file becomes an alias. The symbol
        # of a gene that only a file knows becomes an alias too, if an authority gave it to another gene.
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
    insert_aliases(
        con,
        arrow(names, row="int64", name="string", kind="string"),
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


def _gene_table(genes: Sequence[Gene], more: Iterable[Sequence[Any]] | None = None, **kinds: str) -> pa.Table:
    """Return genes, and ``more`` values of ``kinds`` for each gene (else its id), as an Arrow table."""
    own = dict.fromkeys(("species", "symbol", "entrez_id", "name", "gene_type"), "string")
    values = ((gene.gene_id,) for gene in genes) if more is None else more
    rows = (
        (i, *(getattr(gene, name) for name in own), *others)
        for i, (gene, others) in enumerate(zip(genes, values, strict=True))
    )
    return arrow(rows, row="int64", **own | {"entrez_id": "int64"}, **kinds or {"gene_id": "string"})


JOB_KEYS = ("gene_id", "source", "model", "prompt", "input_sha256")
_KEY = ", ".join(JOB_KEYS)
_values = attrgetter(*JOB_KEYS)

#: Number of answers in memory at once.
BATCH = 5000
# The answer retrieved later replaces the earlier one, independent of the order of absorbing.
_NEWER = "s.retrieved_at >= t.retrieved_at"
# NCBI's facts replace those of MyGene, and a newer version of a source replaces an older one. Facts of other
# sources, such as files, stay.
_BETTER = (
    "t.source IN ('ncbi', 'mygene') AND (t.source <> 'ncbi', t.source, s.source_version)"
    " > (s.source <> 'ncbi', s.source, t.source_version)"
)


class Jobs(Tables):
    """Part of the knowledge base: jobs for live sources."""

    def jobs_done(self, jobs: Iterable[Job]) -> set[Job]:
        """Return the jobs that have an answer in the knowledge base."""
        with registered(self._con, asked=_job_table(jobs)):
            rows = self._all(f"SELECT {_KEY} FROM jobs SEMI JOIN asked USING ({_KEY}) WHERE status = 'done'")
        return {Job(*row) for row in rows}

    def answered(self, source: str, *, model: str = "", prompt: str = "") -> set[str]:
        """Return the ids of genes with an answer of a source, independent of the input of the job.

        A gene that was looked up by a symbol or an unknown name gets an Entrez id with the answer. The next
        lookup of the gene would use that id and be a different job, although the gene has an answer.
        """
        rows = self._all(
            "SELECT DISTINCT gene_id FROM jobs"
            " WHERE status = 'done' AND source = ? AND model = ? AND prompt = ?",
            [source, model, prompt],
        )
        return {str(row[0]) for row in rows}

    def failures(self, source: str | None = None, *, gene_id: str | None = None) -> list[Failure]:
        """Return the failed jobs, in a stable order."""
        rows = self._all(
            f"SELECT {_KEY}, error, final, attempts FROM jobs WHERE status = 'failed'"
            f" AND ($1 IS NULL OR source = $1) AND ($2 IS NULL OR gene_id = $2) ORDER BY {_KEY}",
            [source, gene_id],
        )
        return [Failure(Job(*row[:5]), *row[5:]) for row in rows]


class _Placed(NamedTuple):
    gene_id: str
    answer: Answer


def absorb(con: Any, journal: Journal) -> tuple[dict[str, int], list[Job]]:
    """Write the content of a journal to the knowledge base, inside the caller's transaction.

    Returns
    -------
    counts
        Counts as in :meth:`~scvec.stores.knowledge.knowledge.KnowledgeBase.absorb`.
    left
        Jobs whose answers belong to no known gene.
    """
    counts = dict.fromkeys(("answers", "failures", "genes", "descriptions", "notes", "unplaced"), 0)
    left: list[Job] = []
    for batch in journal.answers(BATCH):
        counts["answers"] += len(batch)
        placed, unplaced = _place(con, batch, counts)
        left += unplaced
        texts = [replace(d, gene_id=gene_id) for gene_id, a in placed for d in a.descriptions]
        texts.sort(key=lambda d: (d.retrieved_at, d.sha256))  # the last text with a key replaces earlier ones
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
    """Find the gene of each answer, and load the facts in the answers.

    If the job's gene is known, the answer belongs to it. Other answers are matched by their facts, after the
    known genes have received their Entrez ids.
    """
    known = _species(con, {a.job.gene_id for a in batch})
    direct = [_Placed(a.job.gene_id, a) for a in batch if a.job.gene_id in known or not a.job.is_about_gene]
    records = [(p.gene_id, p.answer.gene, p.answer) for p in direct if p.answer.gene is not None]
    counts["genes"] += _load(
        con, _without_taken_ids(con, [(i, replace(g, species=known[i]), a) for i, g, a in records])
    )
    others = [a for a in batch if a.job.gene_id not in known and a.job.is_about_gene]
    genes: dict[str, Gene] = {}
    for answer in others:
        gene = _with_own_id(answer.gene)
        if gene is not None:
            genes.setdefault(gene.gene_id, gene)
    # Each gene once, because match_genes gives an existing gene to one record only.
    ids = dict(zip(genes, match_genes(con, list(genes.values())), strict=True)) if genes else {}
    found, left, records = [], [], []
    for answer in others:
        gene = _with_own_id(answer.gene)
        if gene is None:
            left.append(answer.job)
            continue
        found.append(_Placed(ids[gene.gene_id], answer))
        records.append((ids[gene.gene_id], gene, answer))
    counts["genes"] += _load(con, records)
    return [*direct, *found], left


def _with_own_id(gene: Gene | None) -> Gene | None:
    """Return the gene with a real gene id; None if it has only the id of the question (``ask:...``)."""
    if gene is None or not gene.gene_id.startswith("ask:"):
        return gene
    return replace(gene, gene_id=f"entrez:{gene.entrez_id}") if gene.entrez_id is not None else None


def _species(con: Any, gene_ids: set[str]) -> dict[str, Any]:
    with registered(con, asked=arrow(((g,) for g in sorted(gene_ids)), gene_id="string")):
        return dict(
            con.execute("SELECT gene_id, species FROM genes SEMI JOIN asked USING (gene_id)").fetchall()
        )


_Record = tuple[str, Gene, Answer]


def _without_taken_ids(con: Any, records: list[_Record]) -> list[_Record]:
    """Remove Entrez ids that belong to another gene: each Entrez id belongs to one gene."""
    numbers = sorted({g.entrez_id for _, g, _ in records if g.entrez_id is not None})
    with registered(con, numbers=arrow(((n,) for n in numbers), entrez_id="int64")):
        rows = con.execute(
            "SELECT entrez_id, species, min(gene_id) FROM genes SEMI JOIN numbers USING (entrez_id)"
            " GROUP BY ALL"
        ).fetchall()
    owner = {(number, species): gene_id for number, species, gene_id in rows}
    free = []
    for gene_id, gene, answer in records:
        if (
            gene.entrez_id is not None
            and owner.setdefault((gene.entrez_id, gene.species), gene_id) != gene_id
        ):
            gene = replace(gene, entrez_id=None)
        free.append((gene_id, gene, answer))
    return free


def _load(con: Any, records: Sequence[_Record]) -> int:
    if not records:
        return 0
    # load_genes uses the first record of a gene: NCBI's, then the newest, independent of the order of
    # arrival.
    ranked = sorted(records, key=lambda r: _version(r[2]), reverse=True)
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
    rows = [(n.gene_id, n.source, n.source_version, n.retrieved_at, n.to_json()) for n in notes]
    rows.sort(key=lambda row: (row[3], row[2], row[4]))
    last = {row[:2]: row for row in rows}  # the last note with a key counts
    fields = ("gene_id", "source", "source_version", "retrieved_at", "facts")
    table = arrow(last.values(), **dict.fromkeys(fields, "string"))
    update = {c: f"s.{c}" for c in ("source_version", "retrieved_at", "facts")}
    return upsert(con, "notes", table, "SELECT * FROM incoming", ("gene_id", "source"), update, _NEWER)


def _put_markers(con: Any, answers: Sequence[Answer]) -> None:
    """Replace the markers that the same sources gave before for the same cell types."""
    last = {(a.job.gene_id, a.job.source): a for a in sorted(answers, key=lambda a: a.retrieved_at)}
    for cl_id, source in last:
        con.execute("DELETE FROM markers WHERE cl_id = ? AND starts_with(source, ?)", [cl_id, source])
    if last:
        rows = marker_table(m for answer in last.values() for m in answer.markers)
        insert(con, "markers", rows, "SELECT DISTINCT * FROM incoming")


def _put_done(con: Any, placed: Sequence[_Placed]) -> None:
    # Store the job itself, so that it is not asked again, and the same job under the gene of the answer.
    done: dict[Job, Answer] = {}
    for gene_id, answer in placed:
        done[answer.job] = answer
        done.setdefault(replace(answer.job, gene_id=gene_id), answer)
    upsert(
        con,
        "jobs",
        _job_table(done, ((a.retrieved_at,) for a in done.values()), updated_at="string"),
        "SELECT *, 'done' AS status, 1 AS attempts, '' AS error, false AS final FROM incoming",
        JOB_KEYS,
        {c: f"s.{c}" for c in ("status", "attempts", "error", "final", "updated_at")},
        "t.status <> 'done' OR s.updated_at > t.updated_at",
    )


def _put_failed(con: Any, failures: Sequence[Failure]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    more = ((f.attempts, f.reason, f.final) for f in failures)
    upsert(
        con,
        "jobs",
        _job_table([f.job for f in failures], more, attempts="int64", error="string", final="bool"),
        f"SELECT *, 'failed' AS status, '{now}' AS updated_at FROM incoming",
        JOB_KEYS,
        {c: f"s.{c}" for c in ("attempts", "error", "final")},
        "t.status <> 'done'",
    )


def _job_table(jobs: Iterable[Job], more: Iterable[Sequence[Any]] | None = None, **kinds: str) -> pa.Table:
    """Return the keys of jobs, and ``more`` values of ``kinds`` for each job, as an Arrow table, in order."""
    listed = list(jobs)
    values = [()] * len(listed) if more is None else more
    rows = ((*_values(job), *others) for job, others in zip(listed, values, strict=True))
    return arrow(rows, **dict.fromkeys(JOB_KEYS, "string"), **kinds)


class CellOntology(Tables):
    """Part of the knowledge base: cell types and their markers."""

    def cl_names(self) -> list[tuple[str, str, bool]]:
        """Return all names of all Cell Ontology terms, as (id, name, True for the label of the term)."""
        sql = (
            "SELECT cl_id, label, true FROM cl_terms UNION ALL"
            " SELECT cl_id, synonym, false FROM cl_synonyms ORDER BY ALL"
        )
        # Labels come first, because a label wins over an equal synonym of another term.
        rows = sorted(self._all(sql), key=lambda row: not row[2])
        return [(str(i), str(name), bool(own)) for i, name, own in rows]

    def cl_label(self, cl_id: str) -> str:
        """Return the label of a Cell Ontology term, or its id if the term is unknown."""
        rows = self._all("SELECT label FROM cl_terms WHERE cl_id = ?", [cl_id])
        return str(rows[0][0]) if rows else cl_id

    def cl_ancestors(self, cl_id: str) -> dict[str, int]:
        """Return ancestor id -> number of steps up from a Cell Ontology term, nearest first."""
        sql = "SELECT ancestor_id, distance FROM cl_ancestors WHERE cl_id = ? ORDER BY distance, ancestor_id"
        return {str(a): int(d) for a, d in self._all(sql, [cl_id])}

    def cl_lineage(self) -> dict[str, frozenset[str]]:
        """Return term id -> ids of all its ancestors, for every Cell Ontology term with ancestors."""
        found: dict[str, set[str]] = {}
        for cl_id, above in self._all("SELECT cl_id, ancestor_id FROM cl_ancestors"):
            found.setdefault(str(cl_id), set()).add(str(above))
        return {cl_id: frozenset(above) for cl_id, above in found.items()}

    def markers(self) -> list[tuple[str, str, str, str, str, float, str]]:
        """Return markers of cell types: (cl_id, tissue, species, gene symbol, direction, weight, source)."""
        return [
            (str(c), str(t), str(s), str(g), str(d), float(w), str(source))
            for c, t, s, g, d, w, source in self._all("SELECT * FROM markers ORDER BY ALL")
        ]


class KnowledgeBase(Descriptions, Jobs, CellOntology, GeneSearch, Digest, Closes):
    """Database of genes: names, texts, orthologs, ontologies and markers. A context manager.

    Either one process writes, or several processes read.
    """

    def __init__(self, connection: Any, path: Path, *, read_only: bool) -> None:
        super().__init__(connection, path)
        self._in_transaction = False
        self.read_only = read_only

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False) -> KnowledgeBase:
        """Open a knowledge base. Create the file if it does not exist, unless ``read_only``.

        Raises
        ------
        StoreError
            The file is damaged, is not a knowledge base, has another schema, or is missing (``read_only``).
        LockedError
            Another process writes to the file.
        """
        path = Path(path)
        if read_only and not path.is_file():
            raise StoreError(
                "the knowledge base does not exist", str(path), "run: scvec ingest genes", code="not-a-store"
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
        """Write everything to the file and close it; a second call does nothing."""
        self._con.close()

    @property
    def schema_version(self) -> int:
        """Version of the tables in the file."""
        with translate(self.path):
            return current_version(self._con)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes of the block together, or none; a nested block joins the outer one."""
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
                # A failed commit or a fatal error has already ended the transaction.
                with suppress(duckdb.Error):
                    self._con.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = False

    # Writing

    def load_snapshot(
        self, species: Sequence[str] = SPECIES, *, snapshot: Snapshot | None = None
    ) -> dict[str, int]:
        """Load genes, orthologs and ontologies of a snapshot; a second call changes nothing.

        Descriptions, names and Entrez ids from other sources stay, unless the snapshot has its own Entrez id.

        Parameters
        ----------
        species
            Species to load.
        snapshot
            The snapshot; None for the one in the package.

        Returns
        -------
        dict
            Table -> number of rows added.

        Raises
        ------
        StoreError
            A species is unknown, or a file of the snapshot is damaged.
        """
        found = snapshot or Snapshot.open()
        unknown = [s for s in species if s not in found.species]
        if unknown:
            listed = ", ".join(found.species)
            raise StoreError(f"the snapshot has no species {unknown[0]!r}", "", f"it has {listed}")
        wanted = [s for s in found.species if s in species and self._meta(f"snapshot:{s}") != found.version]
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

    def put_orthologs(self, rows: pa.Table, source: str) -> int:
        """Put pairs of orthologs in place of those of the same table; return how many there are of it now.

        A pair that another table has too is kept once, under the better kind and the higher confidence.

        Parameters
        ----------
        rows
            Table with the columns of :meth:`orthologs` but for ``source``; genes are stored ids.
        source
            Name of the table of origin; pairs that were loaded under this name before are deleted.
        """
        with self.transaction():
            self._con.execute("DELETE FROM orthologs WHERE source = ?", [source])
            return insert_orthologs(self._con, rows, source)

    def put_markers(self, rows: pa.Table, source: str) -> int:
        """Store markers of cell types and replace earlier ones of the same table; return the new total.

        Parameters
        ----------
        rows
            Table with the columns of :meth:`markers`. Values of its column ``source`` begin with ``source``.
        source
            Name of the table that the markers came from. Earlier markers of that table are deleted.
        """
        with self.transaction():
            self._con.execute("DELETE FROM markers WHERE starts_with(source, ?)", [source])
            insert(self._con, "markers", rows, "SELECT DISTINCT * FROM incoming")
        return int(self._one("SELECT count(*) FROM markers")[0])

    def upsert_genes(
        self, genes: Sequence[Gene], *, source: str = "file", source_version: str = ""
    ) -> dict[str, str]:
        """Add genes, or fill empty fields of existing ones; return ``gene_id`` -> stored gene id.

        A record matches an existing gene by Entrez id, else by ``gene_id``, else by Ensembl id, else by a
        unique official symbol. Store descriptions of the record under the returned id.
        """
        if not genes:
            return {}
        with self.transaction():
            ids = match_genes(self._con, genes)
            load_genes(self._con, genes, ids, [source] * len(ids), [source_version] * len(ids))
        return {gene.gene_id: gene_id for gene, gene_id in zip(genes, ids, strict=True)}

    def upsert_descriptions(self, descriptions: Iterable[Description]) -> int:
        """Add or replace descriptions, by gene, source, model and prompt; return the number of rows added."""
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
        """Load batches of genes with descriptions, all or none; return numbers of records and rows added."""
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
        """Copy the content of a journal into the knowledge base, all or nothing.

        Descriptions, notes and facts go to the gene of the job. The answer to a job about a name goes to the
        gene in the answer, which may be new. The result does not depend on the order of answers, and
        absorbing twice changes nothing. This marks the copied records in the journal, and ``journal.clear()``
        deletes them. Call that after the commit (`Transaction.commit` does).

        Returns
        -------
        dict
            ``answers`` and ``failures``: records read. ``genes``, ``descriptions`` and ``notes``: rows added.
            ``unplaced``: answers about no known gene, which stay in the journal.
        """
        with self.transaction():
            counts, left = absorb(self._con, journal)
        self._compact()
        journal.absorbed(left)
        return counts

    # Reading

    def genes(self, species: str | None = None) -> pd.DataFrame:
        """Return the genes in a stable order; ``entrez_id`` is Int64 with missing values.

        Columns: gene_id, species, symbol, entrez_id, name, gene_type, source, source_version.
        """
        table = self._frame(
            "SELECT * FROM genes WHERE ? IS NULL OR species = ? ORDER BY species, gene_id", [species] * 2
        )
        return table.astype({"entrez_id": "Int64"})

    def aliases(self, species: str | None = None) -> pd.DataFrame:
        """Return all names of all genes in a stable order: gene_id, species, name, folded, kind.

        ``folded`` is the name in lower case. Kinds are ``symbol``, ``previous``, ``alias``, ``ensembl`` and
        ``entrez``.
        """
        return self._frame(
            "SELECT gene_id, species, name, folded, kind FROM aliases WHERE $1 IS NULL OR species = $1"
            " UNION ALL SELECT gene_id, species, entrez_id::VARCHAR, entrez_id::VARCHAR, 'entrez' FROM genes"
            " WHERE entrez_id IS NOT NULL AND ($1 IS NULL OR species = $1)"
            " ORDER BY gene_id, kind, name",
            [species],
        )

    def orthologs(self) -> pd.DataFrame:
        """Return pairs of orthologs in a stable order.

        Columns: gene_id, species, other_id, other_species, kind, confidence (0-1), source.
        """
        return self._frame("SELECT * FROM orthologs ORDER BY species, other_species, gene_id, other_id")

    def counts(self) -> dict[str, int]:
        """Return the number of rows per table, of genes per species, and of descriptions per kind."""
        tables = [t for t in (*CONTENT_TABLES, "jobs") if t != "meta"]
        row = self._one("SELECT " + ", ".join(f"(SELECT count(*) FROM {t})" for t in tables))
        counts = dict(zip(tables, (int(n) for n in row), strict=True))
        for sql in (
            "SELECT 'genes ' || species, count(*) FROM genes GROUP BY ALL ORDER BY 1",
            "SELECT 'orthologs ' || species || '-' || other_species, count(*) FROM orthologs"
            " GROUP BY ALL ORDER BY 1",
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
    """Check that the file has the tables of this schema; create them in an empty file."""
    version = current_version(con)
    if version == SCHEMA_VERSION:
        return
    if version:
        raise StoreError(
            f"the knowledge base has schema {version}; this scvec reads schema {SCHEMA_VERSION}",
            str(path),
            "use the version of scvec that wrote it",
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
            "give another file",
            code="not-a-store",
        )
    create(con)


def _under(description: Description, gene_id: str) -> Description:
    return description if gene_id == description.gene_id else replace(description, gene_id=gene_id)
