"""A small store with one gene and one reference, for the tests of stores."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from scvec.base.types import Gene, Space

SPACE = Space("minilm", "r1", "ab" * 32, "{text}", "mean", 6, True)


def genes(n, first=0):
    numbers = range(first, first + n)
    return pd.DataFrame(
        {
            "gene_id": [f"HGNC:{i}" for i in numbers],
            "species": "human",
            "symbol": [f"G{i}" for i in numbers],
            "text_sha256": [f"{i:064x}" for i in numbers],
        }
    )


def vectors(n, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def cells(n=30, seed=0):
    return {
        "meta": {"seed": seed, "classes": ["a", "b"], "n": np.int64(n)},
        "tensors": {"W": vectors(4, 3, seed).T, "mask": np.array([True, False]), "scale": np.float64(seed)},
        "obs": pd.DataFrame(
            {"label": pd.Categorical(["a", "b"] * (n // 2)), "count": np.arange(n)},
            index=pd.Index([f"cell{i}" for i in range(n)], name="cell"),
        ),
        "vectors": vectors(n, 5, seed),
    }


def put_gene(transaction, symbol="INS"):
    kb = transaction.open_knowledge()
    kb.upsert_genes([Gene(f"HGNC:{len(symbol)}", "human", symbol, name=symbol.lower())])


def fill(store, seed=0, name="pancreas"):
    with store.begin("ingest cells", {"seed": seed, "ref": "/home/ann/ref.h5ad"}) as txn:
        put_gene(txn)
        txn.put_space(SPACE, genes(20), vectors(20, seed=seed))
        txn.put_reference(name, **cells(seed=seed), run={"seconds": time.monotonic()})
        txn.commit()
    return store


def tree(folder):
    """All files with their content, working files aside."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.relative_to(folder).parts[0] != "work" and p.name != "lock"
    }
