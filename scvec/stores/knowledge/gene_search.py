"""Word search for genes: in their names, descriptions and Gene Ontology terms."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scvec.stores.knowledge.tables import Tables, arrow, registered

__all__ = ["GeneSearch", "words"]

#: Constants of BM25 with their usual values (Robertson and Zaragoza 2009, doi:10.1561/1500000019).
K1, B = 1.2, 0.75
#: Weight of a word in a gene's symbol or name, relative to a word in a description.
NAME_WEIGHT = 2.0
#: Largest number of query words that are searched.
MAX_WORDS = 24
#: Words that occur in most texts, or carry no information about the query.
STOP_WORDS = frozenset(
    "a an and are as at be by for from gene genes has have in into is it its of on or that the their these "
    "this to was were which who with".split()
)


#: Endings of words with one stem, longest first.
_ENDINGS = (
    "ations ational ation ically ical ional ments ment ings ing ions ion ives ive ors or als al ous ory ies "
    "ed es s e y"
).split()
_SHORTEST = 4


def words(text: str) -> list[str]:
    """Return the words of a query to search for: lower case, without stop words and without endings.

    ``secretion`` becomes ``secret``, which also matches secretory and secreted.
    """
    found = re.findall(r"[a-z0-9]+", text.lower())
    kept = [w for w in found if w not in STOP_WORDS]
    return list(dict.fromkeys(_stem(w) for w in kept or found))[:MAX_WORDS]


def _stem(word: str) -> str:
    if word.endswith("ss") or any(c.isdigit() for c in word):
        return word
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST:
            return word.removesuffix(ending)
    return word


class GeneSearch(Tables):
    """Part of the knowledge base: finds genes by words."""

    def find_words(
        self, text: str, species: Sequence[str], *, limit: int = 200, terms: bool = True
    ) -> list[tuple[str, float]]:
        """Return genes whose texts contain words of ``text``, as (gene_id, score), best first.

        The score is BM25. The document of a gene has its symbol, name and other names (with double weight),
        its best description, and the names of its Gene Ontology terms. Lengths are in characters. A word also
        matches its plural.

        Parameters
        ----------
        text
            The query.
        species
            Species of the genes.
        limit
            Largest number of genes.
        terms
            Also search the names of Gene Ontology terms.
        """
        import pyarrow as pa

        wanted = words(text)
        if not wanted:
            return []
        documents = self._documents(species, terms)
        # Words have only letters and digits, so they need no escaping in a regular expression.
        query = pa.table({"word": wanted, "pattern": [_pattern(w) for w in wanted]})
        with registered(self._con, query=query):
            rows = self._all(
                f"""
                WITH size AS (
                    SELECT count(*) AS n, avg(length(names) + length(body)) AS mean_length FROM {documents}
                ), hits AS (
                    SELECT gene_id, word, length(names) + length(body) AS length,
                        {NAME_WEIGHT} * len(regexp_extract_all(names, pattern))
                        + len(regexp_extract_all(body, pattern)) AS tf
                    FROM {documents} JOIN query ON contains(names, word) OR contains(body, word)
                ), weights AS (
                    SELECT word, ln(1 + (n - count(*) + 0.5) / (count(*) + 0.5)) AS idf
                    FROM hits, size WHERE tf > 0 GROUP BY word, n
                )
                SELECT gene_id, sum(idf * tf * {K1 + 1}
                    / (tf + {K1} * ({1 - B} + {B} * length / mean_length))) AS score
                FROM hits JOIN weights USING (word), size WHERE tf > 0
                GROUP BY gene_id ORDER BY score DESC, gene_id LIMIT {int(limit)}
                """
            )
        return [(str(gene_id), float(score)) for gene_id, score in rows]

    def _documents(self, species: Sequence[str], terms: bool) -> str:
        """Return the name of a temporary table with the document of each gene; create it on first use."""
        chosen = sorted(set(species))
        name = f"temp.documents_{re.sub('[^a-z]', '_', '_'.join(chosen))}_{int(terms)}"
        listed = ", ".join("'" + s.replace("'", "''") + "'" for s in chosen) or "NULL"
        ontology = (
            "SELECT gene_id, string_agg(name, '; ' ORDER BY go_id) AS text FROM go_annotations"
            " JOIN go_terms USING (go_id) GROUP BY gene_id"
            if terms
            else "SELECT ''::VARCHAR AS gene_id, ''::VARCHAR AS text WHERE false"
        )
        self._all(
            f"""
            CREATE TEMP TABLE IF NOT EXISTS {name.removeprefix("temp.")} AS
            WITH ranked AS (
                SELECT gene_id, text FROM descriptions
                QUALIFY row_number() OVER (PARTITION BY gene_id ORDER BY CASE kind WHEN 'human' THEN 0
                    WHEN 'llm' THEN 1 WHEN 'composed' THEN 2 ELSE 3 END, left(retrieved_at, 10) DESC,
                    source <> 'ncbi', retrieved_at DESC, source, model, prompt) = 1
            ), ontology AS ({ontology}), others AS (
                SELECT gene_id, string_agg(name, ' ' ORDER BY name) AS names FROM aliases
                WHERE kind IN ('previous', 'alias') GROUP BY gene_id
            )
            SELECT gene_id, lower(concat_ws(' ', symbol, name, names)) AS names,
                lower(concat_ws(' ', r.text, o.text)) AS body
            FROM genes LEFT JOIN ranked r USING (gene_id) LEFT JOIN ontology o USING (gene_id)
                LEFT JOIN others USING (gene_id)
            WHERE species IN ({listed})
            """
        )
        return name

    def find_names(self, text: str, species: Sequence[str]) -> list[str]:
        """Return the ids of genes that ``text`` names by symbol, alias or full name, official symbols first.

        The complete text may be a name in any case, and it may contain the full name of a gene (``insulin``).
        A single word of a longer text must look like a symbol (capitals or digits), because "was" and
        "impact" are aliases too.
        """
        import pyarrow as pa

        whole = text.strip()
        parts = [p for p in re.findall(r"[A-Za-z0-9][\w.\-]*", whole) if _like_a_symbol(p)]
        names = list(dict.fromkeys([whole, *parts]))[:MAX_WORDS]
        plain = re.findall(r"[a-z0-9]+(?:[-/'][a-z0-9]+)*", whole.lower())[: 2 * MAX_WORDS]
        phrases = {
            " ".join(plain[i : i + n]) for n in range(1, 7) for i in range(len(plain) - n + 1)
        } - STOP_WORDS
        wanted = pa.table({"folded": [n.lower() for n in names], "rank": list(range(len(names)))})
        said = pa.table({"said": pa.array(sorted(phrases), pa.string())})
        with registered(self._con, wanted=wanted, said=said, chosen=pa.table({"species": list(species)})):
            rows = self._all(
                "SELECT gene_id FROM (SELECT gene_id, species, CASE kind WHEN 'symbol' THEN 0 WHEN 'ensembl'"
                " THEN 1 WHEN 'previous' THEN 3 ELSE 4 END AS place, rank FROM aliases JOIN wanted"
                " USING (folded) UNION ALL SELECT gene_id, species, 2, -length(name) FROM genes"
                " JOIN said ON lower(name) = said.said) SEMI JOIN chosen USING (species)"
                " GROUP BY gene_id ORDER BY min(place), min(rank), gene_id LIMIT 50"
            )
        return [str(row[0]) for row in rows]

    def go_terms_of(self, gene_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Return gene id -> its Gene Ontology terms as (id, name), sorted by id; omit genes without terms."""
        with registered(self._con, wanted=arrow(((g,) for g in gene_ids), gene_id="string")):
            rows = self._all(
                "SELECT gene_id, go_id, name FROM go_annotations JOIN go_terms USING (go_id)"
                " SEMI JOIN wanted USING (gene_id) ORDER BY gene_id, go_id"
            )
        found: dict[str, list[tuple[str, str]]] = {}
        for gene_id, go_id, name in rows:
            found.setdefault(str(gene_id), []).append((str(go_id), str(name)))
        return found


def _pattern(word: str) -> str:
    """Return a regular expression for a word with any ending; short words and symbols match only plurals."""
    longer = len(word) >= _SHORTEST and word.isalpha()
    return rf"\b{word}{'[a-z]{0,6}' if longer else '(?:s|es)?'}\b"


def _like_a_symbol(word: str) -> bool:
    return len(word) > 1 and (any(c.isdigit() for c in word) or sum(c.isupper() for c in word) > 1)
