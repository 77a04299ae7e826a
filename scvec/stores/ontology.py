"""The Cell Ontology as the knowledge base has it."""

from __future__ import annotations

from scvec.stores.tables import Tables

__all__ = ["CellOntology"]


class CellOntology(Tables):
    """The part of the knowledge base that is about cell types."""

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
