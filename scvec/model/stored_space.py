"""Gene vectors of a space that the store holds, for a reference: ``--backbone stored:NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scvec.base.errors import InputError

if TYPE_CHECKING:
    from scvec.backbones import BackboneSpec
    from scvec.model.gene_vectors import EncodedGenes
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.reference_reader import StoredSpace
    from scvec.stores.store.transaction import Transaction

__all__ = ["stored_genes"]


def stored_genes(
    txn: Transaction, kb: KnowledgeBase, gene_ids: Sequence[str], spec: BackboneSpec
) -> EncodedGenes:
    """Return the vectors that a stored space has of some genes, in their order.

    Genes without a vector there get the mean of the others, which says nothing about them once vectors are
    centred; a note of the transaction tells how many.

    Parameters
    ----------
    spec
        Its argument is the fingerprint of a space, its backbone (``legacy:genept``), or the name given to
        ``import-legacy`` (``genept``).

    Raises
    ------
    InputError
        There is no such space, several, or it has none of the genes.
    """
    import pandas as pd

    from scvec.backbones.controls import permutation
    from scvec.model.gene_vectors import EncodedGenes

    stored = _find(txn, spec.argument)
    rows = {gene_id: i for i, gene_id in enumerate(stored.genes["gene_id"])}
    at = np.array([rows.get(g, -1) for g in gene_ids], dtype=np.int64)
    found = at >= 0
    n, missing = len(at), int((~found).sum())
    where = f"--backbone stored:{spec.argument}"
    if missing == n:
        fix = "give vectors of genes of this species"
        raise InputError(f"the space has a vector of none of the {n:,} genes", where, fix)
    vectors = np.empty((n, stored.space.dim), dtype=np.float32)
    vectors[found] = stored.vectors[at[found]]
    vectors[~found] = vectors[found].mean(axis=0, dtype=np.float64)
    if missing:
        warning = "warning: " if 2 * missing > n else ""
        txn.notes.append(
            f"{warning}{missing:,} of {n:,} genes have no vector in the space {spec.argument}, and stand at "
            f"its mean"
        )
    if spec.permuted:
        vectors = vectors[permutation(list(gene_ids))]
    genes = kb.genes().set_index("gene_id").loc[list(gene_ids), ["species", "symbol"]].reset_index()
    shas = stored.genes["text_sha256"].to_numpy(dtype=object)
    genes["text_sha256"] = pd.Series([shas[i] if i >= 0 else "" for i in at], dtype=object)
    return EncodedGenes(stored.space, genes, vectors, 0, n - missing)


def _find(txn: Transaction, name: str) -> StoredSpace:
    spaces = {f: entry.space for f, entry in txn.base.manifest.spaces.items()}
    matching = [
        f
        for f, space in spaces.items()
        if name in (f, space.backbone, space.backbone.removeprefix("legacy:"))
    ]
    where = f"--backbone stored:{name}"
    if len(matching) > 1:
        what = f"{len(matching)} spaces of the store are called {name!r}"
        raise InputError(what, where, f"give the fingerprint of one: {', '.join(matching[:4])}")
    stored = txn.space(matching[0]) if matching else None
    if stored is None:
        there = ", ".join(dict.fromkeys(s.backbone.removeprefix("legacy:") for s in spaces.values()))
        fix = f"spaces: {there}" if there else "scvec import-legacy FILE makes one"
        raise InputError(f"the store has no space {name!r}", where, fix)
    return stored
