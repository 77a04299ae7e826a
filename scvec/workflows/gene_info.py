"""``scvec info genes``: every text about a gene, where it comes from, and what was made of it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scvec.base.errors import InputError
from scvec.base.types import SPECIES, Description
from scvec.workflows.gene_reports import FailedJob, GeneFacts, GeneInfo, GeneInfoReport, GeneText, GeneVector

if TYPE_CHECKING:
    import pandas as pd

    from scvec.ingest.genes.names import GeneResolver
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.reference_reader import StoredSpace
    from scvec.stores.store.store import Store

__all__ = ["gene_info"]

#: Near names that are told of an unknown one.
NEAR = 3


def gene_info(store: Path | str, names: Sequence[str], species: str | None = None) -> GeneInfoReport:
    """Say all that a store knows of some genes.

    Parameters
    ----------
    names
        Symbols, previous symbols, aliases, Ensembl, Entrez or authority ids. A name that could be several
        genes stands for all of them.
    species
        ``human`` or ``mouse``; both when None.

    Raises
    ------
    InputError
        If no name is of a gene that is known; tells near ones.
    """
    from scvec.model.resolvers import stored_resolver
    from scvec.stores.store.store import Store

    if species is not None and species not in SPECIES:
        raise InputError(f"unknown species {species!r}", "--species", f"use {' or '.join(SPECIES)}")
    if not names:
        raise InputError("no gene is named", "", "give symbols, Ensembl or Entrez ids")
    opened = Store(store)
    with opened.knowledge() as kb:
        genes = kb.genes(species).set_index("gene_id", drop=False)
        found = _find(stored_resolver(opened), genes, names, (species,) if species else SPECIES)
        unknown = [name for name, gene_ids in found.items() if not gene_ids]
        near = _near(unknown, genes["symbol"].tolist()) if unknown else {}
        wanted = {gene_id: name for name, gene_ids in reversed(found.items()) for gene_id in gene_ids}
        order = list(dict.fromkeys(gene_id for gene_ids in found.values() for gene_id in gene_ids))
        if not order:
            raise InputError("no gene of this name is known", _listed(unknown), _hint(near))
        vectors = _vectors(opened, kb, genes.loc[order])
        names_of = _names(kb, order)
        known = [_gene(kb, genes.loc[g], wanted[g], names_of[g], *vectors[g]) for g in order]
    notes = []
    if unknown:
        notes.append(f"not known: {_listed(unknown)}; {_hint(near)}")
    for name, gene_ids in found.items():
        if len(gene_ids) > 1:
            notes.append(f"{name} could be {len(gene_ids)} genes: {', '.join(gene_ids[:8])}")
    return GeneInfoReport(generation=opened.generation.number, genes=known, unknown=near, notes=notes)


def _find(
    resolver: GeneResolver, genes: pd.DataFrame, names: Sequence[str], species: Sequence[str]
) -> dict[str, list[str]]:
    """Return the genes of each name; exact names before those that match but for case."""
    asked = list(dict.fromkeys(name.strip() for name in names))
    matches = [resolver.resolve(asked, one) for one in species]
    found: dict[str, list[str]] = {}
    for i, name in enumerate(asked):
        if name in genes.index:
            found[name] = [name]
            continue
        hits = []
        for match in matches:
            gene_id = match.gene_ids[i]
            for one in match.ambiguous.get(name, ()) if gene_id is None else (gene_id,):
                hits.append((match.how[i] == "case", one))
        exact = [gene_id for loose, gene_id in hits if not loose]
        found[name] = [g for g in exact or [gene_id for _, gene_id in hits] if g in genes.index]
    return found


def _near(names: Sequence[str], symbols: Sequence[str]) -> dict[str, list[str]]:
    spelled = {symbol.lower(): symbol for symbol in reversed(symbols)}
    # Only those that begin alike: all of them would take seconds a name.
    near = {}
    for name in names:
        folded = name.lower()
        alike = [s for s in spelled if s[:1] == folded[:1] and abs(len(s) - len(folded)) <= 3]
        near[name] = [spelled[s] for s in difflib.get_close_matches(folded, alike, n=NEAR)]
    return near


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _hint(near: Mapping[str, Sequence[str]]) -> str:
    some = list(dict.fromkeys(symbol for symbols in near.values() for symbol in symbols))
    if some:
        return f"near: {_listed(some)}"
    return "give a symbol, Ensembl or Entrez id, and check --species"


def _names(kb: KnowledgeBase, gene_ids: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    names: dict[str, dict[str, list[str]]] = {g: {} for g in gene_ids}
    table = kb.aliases()
    table = table[table["gene_id"].isin(gene_ids)]
    for gene_id, name, kind in zip(table["gene_id"], table["name"], table["kind"], strict=True):
        names[gene_id].setdefault(kind, []).append(name)
    return {g: {kind: sorted(found) for kind, found in kinds.items()} for g, kinds in names.items()}


class _Texts:
    """Some genes with given descriptions, for those who make texts of a knowledge base."""

    def __init__(self, genes: pd.DataFrame, descriptions: Mapping[str, Description]) -> None:
        self._genes = genes.reset_index(drop=True)
        self._descriptions = descriptions

    def genes(self) -> pd.DataFrame:
        return self._genes

    def descriptions(self, gene_ids: Sequence[str] | None = None) -> Mapping[str, Description]:
        return self._descriptions


_Key = tuple[str, str, str]


def _key(description: Description) -> _Key:
    return description.source, description.model, description.prompt


def _vectors(
    store: Store, kb: KnowledgeBase, genes: pd.DataFrame
) -> dict[str, tuple[list[GeneVector], dict[_Key, list[str]]]]:
    """Per gene its vectors, and the spaces that hold a vector of each of its texts."""
    best = kb.descriptions(genes["gene_id"].tolist())
    texts = {g: kb.all_descriptions(g) for g in genes["gene_id"]}
    result: dict[str, tuple[list[GeneVector], dict[_Key, list[str]]]] = {g: ([], {}) for g in texts}
    for fingerprint, stored in store.spaces().items():
        template = stored.space.template
        for gene_id, held in _held(stored, list(texts)).items():
            row = genes[genes["gene_id"] == gene_id]
            now = _sha256(row, best.get(gene_id), template)
            state = "unknown" if now is None else "current" if now == held else "older"
            vectors, of_texts = result[gene_id]
            vectors.append(
                GeneVector(
                    fingerprint=fingerprint,
                    backbone=stored.space.backbone,
                    template=template,
                    text_sha256=held,
                    state=state,
                )
            )
            without = _sha256(row, None, template)  # a template of names alone holds none of the texts
            for text in texts[gene_id]:
                if _sha256(row, text, template) == held != without:
                    of_texts.setdefault(_key(text), []).append(fingerprint)
    return result


def _held(stored: StoredSpace, gene_ids: Sequence[str]) -> dict[str, str]:
    table = stored.genes
    table = table[table["gene_id"].isin(gene_ids)]
    return dict(zip(table["gene_id"].astype(str), table["text_sha256"].astype(str), strict=True))


def _sha256(row: pd.DataFrame, description: Description | None, template: str) -> str | None:
    """SHA-256 of what a template makes of a gene and a description; None if it cannot be read."""
    from scvec.model.gene_vectors import gene_table

    gene_id = str(row["gene_id"].iloc[0])
    one = _Texts(row, {} if description is None else {gene_id: description})
    try:
        return str(gene_table(cast("KnowledgeBase", one), [gene_id], template)["text_sha256"].iloc[0])
    except InputError:
        return None


def _gene(
    kb: KnowledgeBase,
    row: Any,
    asked: str,
    names: Mapping[str, list[str]],
    vectors: list[GeneVector],
    spaces: Mapping[_Key, list[str]],
) -> GeneInfo:
    gene_id = str(row["gene_id"])
    best = kb.descriptions([gene_id]).get(gene_id)
    texts = sorted(kb.all_descriptions(gene_id), key=lambda d: best is None or _key(d) != _key(best))
    entrez = row["entrez_id"]
    return GeneInfo(
        asked=asked,
        gene_id=gene_id,
        species=row["species"],
        symbol=row["symbol"],
        entrez_id=None if str(entrez) == "<NA>" else int(entrez),
        name=row["name"],
        gene_type=row["gene_type"],
        ensembl_ids=names.get("ensembl", []),
        aliases=names.get("alias", []),
        previous=names.get("previous", []),
        source=row["source"],
        source_version=row["source_version"],
        texts=[
            GeneText(
                text=d.text,
                source=d.source,
                source_version=d.source_version,
                retrieved_at=d.retrieved_at,
                sha256=d.sha256,
                kind=d.kind,
                model=d.model,
                prompt=d.prompt,
                provenance=_json(d.provenance),
                best=best is not None and _key(d) == _key(best),
                spaces=spaces.get(_key(d), []),
            )
            for d in texts
        ],
        facts=[
            GeneFacts(
                source=n.source,
                source_version=n.source_version,
                retrieved_at=n.retrieved_at,
                facts=dict(n.facts),
            )
            for n in kb.notes(gene_id)
        ],
        vectors=vectors,
        failures=[
            FailedJob(
                source=f.job.source,
                model=f.job.model,
                reason=f.reason,
                final=f.final,
                attempts=f.attempts,
            )
            for f in kb.failures(gene_id=gene_id)
        ],
    )


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {"text": text}
    return found if isinstance(found, dict) else {"text": found}
