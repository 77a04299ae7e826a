"""The Cell Ontology as the knowledge base has it."""

from __future__ import annotations

from scvec.stores.knowledge.tables import Tables

__all__ = ["CellOntology"]


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
