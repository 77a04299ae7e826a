"""Simple classifiers on the genes and the scaling that scvec uses: only the classifier differs."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Matched", "logistic_regression", "matched", "nearest_centroid", "pca_neighbors"]

N_GENES = 2000
Answer = tuple[np.ndarray, np.ndarray]


class Matched:
    """Reference and query over the reference's most variable genes.

    Attributes
    ----------
    reference, query
        (n, n_genes) CSR float32, log1p CP10k.
    scaled_reference, scaled_query
        (n, n_genes) float32, standardised by the reference and clipped.
    """

    def __init__(self, reference: Any, query: Any, scaled_reference: Any, scaled_query: Any) -> None:
        self.reference, self.query = reference, query
        self.scaled_reference, self.scaled_query = scaled_reference, scaled_query


def matched(reference: Any, query: Any, n_genes: int = N_GENES) -> Matched:
    """Return both data sets, AnnData or paths, over the reference's most variable genes that both have."""
    from scvec.api.matching import match_genes
    from scvec.api.resolvers import snapshot_resolver
    from scvec.encoders.scaling import Scaling
    from scvec.encoders.statistics import StatisticsAccumulator, highly_variable
    from scvec.ingest.cells import CellSource

    resolver = snapshot_resolver()
    ref, que = (match_genes(CellSource.open(a), resolver) for a in (reference, query))
    genes = sorted({g for g in ref.match.gene_ids if g is not None})
    measured = resolver.map_to(que.match, genes, ref.match.species).measured
    genes = [g for g, there in zip(genes, measured, strict=True) if there]
    counted = StatisticsAccumulator(len(genes))
    chunk = next(ref.chunks(resolver.map_to(ref.match, genes, ref.match.species), ref.source.n_obs))
    counted.add(chunk.X)
    chosen = highly_variable(counted.result(), n_genes)
    genes = [genes[i] for i in chosen]
    scaling = Scaling.from_statistics(counted.result().select(chosen))
    chunks = [
        next(m.chunks(resolver.map_to(m.match, genes, ref.match.species), m.source.n_obs)) for m in (ref, que)
    ]
    return Matched(*(c.X for c in chunks), *(scaling.dense(c) for c in chunks))


def logistic_regression(cells: Matched, labels: np.ndarray, seed: int) -> Answer:
    """Return labels and probabilities of a logistic regression on standardised genes."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.01, max_iter=500, random_state=seed)
    model.fit(cells.scaled_reference, labels)
    proba = model.predict_proba(cells.scaled_query)
    return model.classes_[proba.argmax(axis=1)], proba.max(axis=1)


def pca_neighbors(cells: Matched, labels: np.ndarray, seed: int) -> Answer:
    """Return labels and shares of the votes of 15 neighbours in 50 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    pca = PCA(min(50, *np.subtract(cells.scaled_reference.shape, 1)), random_state=seed)
    model = KNeighborsClassifier(min(15, len(labels)))
    model.fit(pca.fit_transform(cells.scaled_reference), labels)
    proba = model.predict_proba(pca.transform(cells.scaled_query))
    return model.classes_[proba.argmax(axis=1)], proba.max(axis=1)


def nearest_centroid(cells: Matched, labels: np.ndarray, seed: int) -> Answer:
    """Return the label whose mean cell has the largest cosine on log expression, and that cosine."""
    from sklearn.preprocessing import normalize

    del seed  # nothing is drawn
    classes = np.unique(labels)
    means = np.vstack([np.asarray(cells.reference[labels == c].mean(axis=0)) for c in classes])
    cosines = np.asarray(normalize(cells.query) @ normalize(means).T)
    return classes[cosines.argmax(axis=1)], cosines.max(axis=1)
