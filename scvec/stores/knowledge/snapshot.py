"""The gene snapshot that ships with the package."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import StoreError
from scvec.base.species import SPECIES
from scvec.stores.knowledge.tables import (
    insert,
    insert_aliases,
    insert_orthologs,
    registered,
    upsert,
    upsert_descriptions,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SNAPSHOT_SOURCE", "Snapshot", "load_ontologies", "load_snapshot_genes"]

# Tables that are not split by species and come only from the snapshot.
_SHARED = ("go_terms", "go_parents", "cl_terms", "cl_synonyms", "cl_ancestors")


def load_ontologies(con: Any, snapshot: Snapshot) -> None:
    """Replace Gene Ontology, Cell Ontology, orthologs and shipped markers with those of a snapshot."""
    for table in _SHARED:
        con.execute(f"DELETE FROM {table}")
        insert(con, table, snapshot.table(table), "SELECT * FROM incoming")
    con.execute("DELETE FROM orthologs WHERE source = ?", [SNAPSHOT_SOURCE])
    insert_orthologs(con, snapshot.table("orthologs"), SNAPSHOT_SOURCE)
    # Markers that users loaded stay.
    rows = snapshot.table("markers")
    with registered(con, shipped_markers=rows):
        con.execute("DELETE FROM markers WHERE source IN (SELECT source FROM shipped_markers)")
    insert(con, "markers", rows, "SELECT * FROM incoming")


def load_snapshot_genes(con: Any, snapshot: Snapshot, species: Sequence[str], source: str) -> dict[str, int]:
    """Load genes, aliases, annotations and descriptions of some species; return table -> rows added."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = snapshot.parts(species)
    genes = pa.concat_tables([snapshot.table(f"{part}genes") for part in parts])
    genes = genes.filter(pc.is_in(genes["species"], pa.array(species)))
    stamp = f"{_text(source)} AS source, {_text(snapshot.version)} AS source_version"
    with registered(con, snapshot_genes=genes):
        con.execute(
            "CREATE OR REPLACE TEMP TABLE chosen AS"
            " SELECT gene_id, species, symbol, entrez_id FROM snapshot_genes"
        )
    _adopt(con)
    added = {}
    added["genes"] = upsert(
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
    symbols = insert_aliases(
        con, genes, "SELECT gene_id, species, symbol AS name, 'symbol' AS kind FROM incoming"
    )
    added["aliases"] = symbols + insert_aliases(
        con,
        pa.concat_tables(
            [snapshot.table(f"{part}aliases").select(["gene_id", "kind", "name"]) for part in parts]
        ),
        "SELECT gene_id, c.species, name, kind FROM incoming JOIN chosen c USING (gene_id)",
    )
    # A newer snapshot may rename a gene. Each gene has one official symbol, so the old one becomes
    # "previous".
    con.execute(
        "UPDATE aliases SET kind = 'previous' FROM genes g"
        " WHERE g.gene_id = aliases.gene_id AND aliases.kind = 'symbol' AND aliases.name <> g.symbol"
    )
    # If an authority gave a symbol to a gene, the symbol is only an alias of a gene that came from a file.
    con.execute(
        "UPDATE aliases SET kind = 'alias' FROM chosen c WHERE aliases.gene_id LIKE 'entrez:%'"
        " AND aliases.kind = 'symbol' AND c.symbol = aliases.name AND c.species = aliases.species"
    )
    con.execute("DELETE FROM go_annotations WHERE gene_id IN (SELECT gene_id FROM chosen)")
    added["go_annotations"] = insert(
        con,
        "go_annotations",
        snapshot.table("go_annotations"),
        "SELECT incoming.* FROM incoming SEMI JOIN chosen USING (gene_id)",
    )
    added["descriptions"] = upsert_descriptions(
        con,
        snapshot.table("descriptions"),
        f"SELECT gene_id, text, {stamp}, {_text(snapshot.date)} AS retrieved_at, sha256(text) AS sha256,"
        " kind, '' AS model, '' AS prompt, '' AS provenance FROM incoming SEMI JOIN chosen USING (gene_id)",
    )
    for one in set(species) & set(snapshot.more_species):
        con.execute("DELETE FROM orthologs WHERE source = ?", [f"{source} {one}"])
        pairs = snapshot.table("more_orthologs")
        insert_orthologs(con, pairs.filter(pc.equal(pairs["species"], one)), f"{source} {one}")
    con.execute("DROP TABLE chosen")
    return added


def _adopt(con: Any) -> None:
    """Merge genes ``entrez:N`` from files into the genes in ``chosen`` with the same Entrez id.

    Rows are copied and then deleted, because an update of a key could collide with an existing row.
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
            (
                "descriptions",
                "text, source, source_version, retrieved_at, sha256, kind, model, prompt, provenance",
            ),
            ("jobs", "source, model, prompt, input_sha256, status, attempts, error, updated_at, final"),
            ("notes", "source, source_version, retrieved_at, facts"),
        ):
            con.execute(
                f"INSERT INTO {table} BY NAME SELECT new_id AS gene_id, {columns} FROM {table} t"
                " JOIN adopted ON old_id = t.gene_id ON CONFLICT DO NOTHING"
            )
            con.execute(f"DELETE FROM {table} WHERE gene_id IN (SELECT old_id FROM adopted)")
        con.execute("DELETE FROM genes WHERE gene_id IN (SELECT old_id FROM adopted)")
    con.execute("DROP TABLE adopted")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


#: Value of ``source`` in rows from the snapshot.
SNAPSHOT_SOURCE = "scvec-snapshot"

_FORMAT = 1
_FIX = "reinstall scvec, or build the snapshot again with tools/build_snapshot.py"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder of parquet tables with a manifest of their content and sources."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | None = None) -> Snapshot:
        """Read the manifest of a snapshot folder; None means the snapshot in the package.

        Raises
        ------
        StoreError
            The folder has no manifest, or the manifest has another format.
        """
        folder = path or Path(str(resources.files("scvec").joinpath("data", "snapshot")))
        try:
            manifest = json.loads((folder / "snapshot.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise StoreError("the gene snapshot cannot be read", f"{folder}: {err}", _FIX) from err
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise StoreError("the gene snapshot has another format", str(folder), _FIX, code="store-format")
        return cls(folder, manifest)

    @property
    def version(self) -> str:
        """Version of the snapshot, such as ``2026.06``."""
        return str(self.manifest["version"])

    @property
    def date(self) -> str:
        """Newest date among the sources (ISO 8601)."""
        return str(self.manifest["date"])

    @property
    def sources(self) -> list[dict[str, str]]:
        """Name, version, licence and URL of each source."""
        return list(self.manifest["sources"])

    @property
    def more_species(self) -> tuple[str, ...]:
        """The species that are loaded on request."""
        return tuple(self.manifest.get("more_species", ()))

    @property
    def species(self) -> tuple[str, ...]:
        """All species with genes in the snapshot; the species of every store first."""
        return (*SPECIES, *self.more_species)

    def parts(self, species: Sequence[str]) -> list[str]:
        """Return the prefixes of the names of the tables with the genes of some species."""
        own, more = (set(species) & set(s) for s in (SPECIES, self.more_species))
        return [part for part, there in (("", own), ("more_", more)) if there]

    def more_names(self) -> dict[str, set[str]]:
        """Return symbols and other names of the genes of the species that are loaded on request."""
        import pyarrow.compute as pc

        found: dict[str, set[str]] = {species: set() for species in self.more_species}
        if not found:
            return found
        aliases = self.table("more_aliases")
        aliases = aliases.filter(pc.not_equal(aliases["kind"], "ensembl"))
        for table, column in ((self.table("more_genes"), "symbol"), (aliases, "name")):
            for one, names in found.items():
                names.update(table.filter(pc.equal(table["species"], one))[column].to_pylist())
        return found

    def table(self, name: str) -> pa.Table:
        """Read one table after a check of its SHA-256.

        Raises
        ------
        StoreError
            The file is missing or damaged, or the manifest does not list the table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        entry = self.manifest["tables"].get(name)
        file = self.path / f"{name}.parquet"
        if entry is None:
            raise StoreError(f"the gene snapshot has no table {name!r}", str(self.path), _FIX)
        try:
            raw = file.read_bytes()
        except OSError as err:
            raise StoreError("a table of the gene snapshot cannot be read", f"{file}: {err}", _FIX) from err
        if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
            raise StoreError("a table of the gene snapshot is damaged (SHA-256 differs)", str(file), _FIX)
        try:
            return pq.read_table(io.BytesIO(raw))
        except pa.ArrowException as err:
            raise StoreError("a table of the gene snapshot cannot be read", f"{file}: {err}", _FIX) from err
