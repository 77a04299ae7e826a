"""Matching the genes of a data set to the knowledge base, and to a reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.backbones import parse_spec
from scvec.base.errors import InputError, StoreError
from scvec.base.parallel import read_ahead
from scvec.base.types import Bool, CellChunk, Float32, GeneMatch, Progress, Space, no_progress
from scvec.model.gene_names import WARN_SHARE, find_genes, unknown, unknown_names
from scvec.model.storage import genes_of
from scvec.model.unmeasured import without_unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from scvec.ingest.cells.source import CellSource
    from scvec.ingest.genes.names import GeneMap, GeneResolver
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = [
    "SIMILAR",
    "MatchedSource",
    "match_genes",
    "query_genes",
    "reference_share",
    "settle_values",
    "text_partners",
    "with_partners",
]


#: Cells that tell what the values of a file are.
N_TOLD = 512

#: Fewer genes of the reference than this say nothing about a cell.
MIN_GENES = 10
#: Fraction of counts below which a match is useless.
REFUSE_SHARE = 0.1


@dataclass(frozen=True)
class MatchedSource:
    """Cells of a file, and which genes its columns are.

    Attributes
    ----------
    names_from
        ``"index"`` or the column of ``var`` whose names matched best.
    share
        Fraction (0-1) of the counts that matched genes hold.
    notes
        What a user should know about the match.
    """

    source: CellSource
    match: GeneMatch
    names_from: str
    share: float
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for people."""
        extra = "" if self.names_from == "index" else f" (names from var['{self.names_from.strip()}'])"
        return self.match.summary(self.source.gene_totals) + extra

    def chunks(
        self,
        genes: GeneMap,
        size: int | None = None,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> Iterator[CellChunk]:
        """Yield cells over the target genes of ``genes``, while the next ones are read."""

        def cells() -> Iterator[CellChunk]:
            for X in self.source.chunks(size, rows):
                yield CellChunk(over_targets(X, genes.weights), genes.measured)

        return read_ahead(cells)


def over_targets(X: Any, weights: Any) -> Any:
    """Return log1p CP10k over target genes: sums are taken on the linear scale.

    Parameters
    ----------
    X
        (n, n_names) CSR float32 of log1p CP10k.
    weights
        (n_names, n_targets) CSR float32.
    """
    # expm1 and log1p would change the last bits of every value, so plain selections go without.
    plain = bool((weights.data == 1).all()) and np.bincount(weights.indices, minlength=1).max(initial=0) <= 1
    linear = X if plain else type(X)((np.expm1(X.data), X.indices, X.indptr), shape=X.shape)
    # Transposed twice, the columns of a row are in order: half the time of sorting them.
    mapped = (linear @ weights).tocsc().tocsr()
    if not plain:
        mapped.data = np.log1p(mapped.data)
    mapped.eliminate_zeros()
    return mapped.astype(np.float32)


def settle_values(matched: MatchedSource, genes: GeneMap, reference: npt.NDArray[Any]) -> None:
    """Take values that may be several things for that which makes genes as high as in the reference.

    Nothing is done where the values themselves said what they are.

    Parameters
    ----------
    reference
        (n_target,) mean log1p CP10k of the target genes of ``genes`` in the reference.
    """
    from scvec.ingest.cells.expression import normalize
    from scvec.ingest.cells.values import best_transform, candidate_states

    source = matched.source
    shared = np.flatnonzero(genes.measured)
    if not source.state.candidates or not len(shared):
        return
    rows = np.unique(np.linspace(0, source.n_obs - 1, min(N_TOLD, source.n_obs)).astype(np.int64))
    cells = source.stored_rows(rows)
    states = candidate_states(source.state, cells)
    means = [
        np.asarray(over_targets(normalize(cells, s), genes.weights).mean(axis=0)).ravel() for s in states
    ]
    best = states[best_transform(np.array(means)[:, shared], np.asarray(reference)[shared])]
    told = f"{best.message} (nothing else told; of what is possible this fits the reference best)"
    source.take_for(replace(best, message=told, candidates=source.state.candidates))


def match_genes(
    source: CellSource,
    resolver: GeneResolver,
    *,
    species: str = "auto",
    force: bool = False,
    drop_unmeasured: bool = False,
) -> MatchedSource:
    """Find out which genes the columns of a data set are (:func:`scvec.model.gene_names.find_genes`).

    Parameters
    ----------
    drop_unmeasured
        Leave out genes that a batch of a joined file did not measure.

    Raises
    ------
    InputError
        If under a tenth of the counts lies on known genes, unless ``force``; if all names are row numbers.
    """
    found = find_genes(source, resolver, species)
    best = MatchedSource(source, found.match, found.names_from, found.share)
    if best.share < REFUSE_SHARE and not force:
        raise unknown_names(source, found, best.summary, resolver)
    few = []
    if best.share < WARN_SHARE:
        names = unknown(found.match, source.gene_totals)
        few = [f"warning: few genes are known: {best.summary}; unknown are names like {names}"]
    match, gaps = found.match, list[str]()
    if drop_unmeasured:
        match, gaps = without_unmeasured(match, source)
    return replace(best, match=match, notes=(*best.match.notes, *few, *gaps))


def reference_share(
    matched: MatchedSource, measured: npt.NDArray[np.bool_], *, force: bool = False
) -> tuple[float, list[str]]:
    """Return the fraction (0-1) of the reference's genes that were measured, and notes.

    Parameters
    ----------
    measured
        (n_genes,) over the genes of the reference's cell vectors.

    Raises
    ------
    InputError
        If fewer than ``MIN_GENES`` were measured, unless ``force``.
    """
    n, total = int(measured.sum()), len(measured)
    if n < min(MIN_GENES, total) and not force:
        raise InputError(
            f"only {n} of the {total:,} genes of the reference were measured",
            matched.source.name,
            "check --species and the names of genes, choose another reference, or go on with --force",
            code="genes-not-recognised",
        )
    told = f"warning: {n:,} of the {total:,} genes of the reference were measured; labels are less certain"
    return n / total, [told] if n < 0.5 * total else []


def query_genes(
    store: Store,
    stored: StoredReference,
    matched: MatchedSource,
    *,
    unmatched_genes: str = "drop",
    device: str = "auto",
    progress: Progress = no_progress,
) -> GeneMap:
    """Return the map from the names of a query to all genes of a reference.

    Through orthologs, with the factors of the query's species where the reference holds cells of it, and by
    text on request. Notes about it are those of the map.
    """
    from scvec.model.resolvers import stored_resolver
    from scvec.model.storage import FACTOR, genes_of

    genes = stored_resolver(store).map_to(matched.match, genes_of(stored), stored.meta["species"])
    factors = stored.tensors.get(FACTOR + matched.match.species)
    if factors is not None:
        genes = genes.scaled(factors)
    if matched.source.state.candidates:
        settle_values(matched, genes, stored.tensors["classes.means"].mean(axis=0))
    genes = replace(genes, notes=(matched.summary, *genes.notes))
    if unmatched_genes == "text":
        genes = text_partners(store, stored, matched, genes, device=device, progress=progress)
    return genes


#: Genes that are looked at at most: their texts have to be encoded, once.
MAX_GENES = 3000
#: Least cosine of two texts whose genes may stand for each other. Texts of genes that have nothing to do with
#: each other reach 0.6 to 0.7; with those as well, cells were named worse than without text.
SIMILAR = 0.8


def text_partners(
    opened: Store,
    stored: StoredReference,
    matched: MatchedSource,
    genes: GeneMap,
    *,
    device: str,
    progress: Progress,
) -> GeneMap:
    """Return the map with query genes added that stand for a reference gene by what is written about both.

    Looked at are protein-coding genes that stand for no gene of the reference and have a description, the
    longest first (of those most is known), at most ``MAX_GENES``: the choice is by the genes and not by the
    cells. Vectors come from the store; those that are missing there a backbone on this machine gives, and
    they are added to it.

    Raises
    ------
    InputError
        If the reference was made without text, or the store has no vector of any of the genes.
    """
    where = f"reference {stored.name!r}"
    backbone = stored.meta["options"]["backbone"]
    spec = parse_spec(backbone)
    # Vectors that were imported or drawn are compared where the reference has them; none can be made.
    if spec.permuted or (stored.meta["space"] is None and not spec.needs_text):
        what = "the reference was made without texts of its genes: unmatched genes cannot be compared by text"
        raise InputError(what, where, "leave out --unmatched-genes", code="unknown-space")
    # The default encoder uses no text: then the vectors are those that ship, or are made now.
    space = None if stored.meta["space"] is None else Space.from_dict(stored.meta["space"])
    number = {g: i for i, g in enumerate(genes_of(stored))}
    with opened.knowledge() as kb:
        wanted = (
            _with_texts(kb, stored.meta["vector_genes"]) if space is None else stored.meta["vector_genes"]
        )
        targets = np.array([number[g] for g in wanted], dtype=np.int64)
        missing = int((~genes.measured[targets]).sum())
        chosen = _chosen(kb, matched, genes) if missing else []
    if not chosen:
        return replace(genes, notes=(*genes.notes, "no gene of the query has to be matched by its text"))
    there, known = _vectors(opened, wanted, space, backbone, device, progress)
    if not there.all():
        raise StoreError("the store lacks text vectors of the reference's genes", where, "ingest it again")
    found, vectors = _vectors(opened, chosen, space, backbone, device, progress)
    if not found.any():
        what = "the store has a text vector of none of the unmatched genes"
        raise InputError(
            what,
            where,
            f"run: scvec ingest embeddings --backbone {backbone} --genes FILE",
            code="unknown-space",
        )
    kept = [g for g, has in zip(chosen, found, strict=True) if has]
    wider = with_partners(genes, matched.match.gene_ids, kept, vectors[found], targets, known)
    n = int((wider.measured & ~genes.measured).sum())
    told = (
        f"{n:,} of the {missing:,} genes of the reference that the query lacks were found among its other "
        f"genes by text ({len(kept):,} texts compared)"
    )
    return replace(wider, notes=(*genes.notes, told))


def with_partners(
    genes: GeneMap,
    gene_ids: tuple[str | None, ...],
    new: list[str],
    vectors: Float32,
    targets: npt.NDArray[np.int64],
    known: Float32,
) -> GeneMap:
    """Return the map with each new gene added to the unmeasured target gene of most similar text.

    Parameters
    ----------
    gene_ids
        Gene of each column of the query, None for none.
    new, vectors
        Genes that may be added, and (n_new, dim) float32 their text vectors.
    targets, known
        Numbers (n,) int64 of the target genes that have texts, and (n, dim) float32 their vectors. Their
        mean is taken from all: language models put all texts into a narrow cone, and what is common to them
        says nothing.
    """
    from scipy import sparse

    free = np.flatnonzero(~genes.measured[targets])
    if len(free) == 0:
        return genes
    mean = known.mean(axis=0)
    cosines = _unit(vectors - mean) @ _unit(known[free] - mean).T
    best = cosines.argmax(axis=1)
    similar = cosines[np.arange(len(new)), best] >= SIMILAR
    target = {g: int(targets[free[j]]) for g, j, ok in zip(new, best, similar, strict=True) if ok}
    pairs = [(i, target[g]) for i, g in enumerate(gene_ids) if g is not None and g in target]
    if not pairs:
        return genes
    rows, columns = (np.array(x, dtype=np.int64) for x in zip(*pairs, strict=True))
    more = sparse.csr_matrix(
        (np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=genes.weights.shape
    )
    weights = (genes.weights + more).tocsr()
    weights.sort_indices()
    measured = genes.measured.copy()
    measured[columns] = True
    return replace(genes, weights=weights, measured=measured)


def _unit(v: Float32) -> Float32:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def _chosen(kb: KnowledgeBase, matched: MatchedSource, genes: GeneMap) -> list[str]:
    """Return ids of the genes to add, ascending."""
    unused = {
        g for g, used in zip(matched.match.gene_ids, genes.used, strict=True) if g is not None and not used
    }
    coding = _with_texts(kb, sorted(unused))
    described = kb.descriptions(coding)
    longest = sorted(coding, key=lambda g: (-len(described[g].text), g))
    return sorted(longest[:MAX_GENES])


def _with_texts(kb: KnowledgeBase, gene_ids: list[str]) -> list[str]:
    """Return the protein-coding ones of the genes that have a description, in order."""
    table = kb.genes()
    coding = set(table.loc[table["gene_type"] == "protein-coding", "gene_id"])
    described = kb.descriptions([g for g in gene_ids if g in coding])
    return [g for g in gene_ids if g in described]


def _vectors(
    opened: Store, gene_ids: list[str], space: Space | None, backbone: str, device: str, progress: Progress
) -> tuple[Bool, Float32]:
    """Return (n,) bool which genes have a vector, and (n, dim) float32, zeros where there is none."""
    from scvec.model.gene_vectors import encode_genes

    found = np.zeros(len(gene_ids), dtype=bool)
    vectors = np.zeros((len(gene_ids), 0), dtype=np.float32)
    if space is not None:
        stored = opened.space(space.fingerprint)
        rows = {gene_id: i for i, gene_id in enumerate(stored.genes["gene_id"])}
        at = np.array([rows.get(g, -1) for g in gene_ids], dtype=np.int64)
        found = at >= 0
        vectors = np.zeros((len(gene_ids), space.dim), dtype=np.float32)
        vectors[found] = stored.vectors[at[found]]
    missing = [g for g, there in zip(gene_ids, found, strict=True) if not there]
    spec = parse_spec(backbone)
    # A server costs money, and imported vectors were made elsewhere: there only what is stored counts.
    if not missing or spec.is_remote or spec.is_stored:
        return found, vectors
    with opened.begin("query --unmatched-genes text", {"backbone": backbone, "n_genes": len(missing)}) as txn:
        kb = txn.open_knowledge()
        encoded = encode_genes(kb, txn.vectors(), missing, spec, device=device, progress=progress)
        if space is not None and encoded.space != space:
            raise InputError(
                f"the backbone {backbone} gives other vectors than it gave the reference",
                space.fingerprint,
                "ingest the reference again",
                code="model-changed",
            )
        txn.put_space(encoded.space, encoded.table, encoded.vectors, merge=True)
        txn.commit()
    if space is None:
        return np.ones(len(gene_ids), dtype=bool), encoded.vectors
    vectors[~found] = encoded.vectors
    return np.ones(len(gene_ids), dtype=bool), vectors
