"""Simple classifiers on the genes that scvec matches, the most variable of them, standardised.

Little of scvec is used, the matching of genes alone, so that these rows stay as they are when scvec changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Matched", "logistic_regression", "matched", "nearest_centroid", "pca_neighbors"]

N_GENES = 2000
#: Smallest standard deviation, and largest z-score.
MIN_SD, CLIP = 0.05, 5.0
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
    from scvec.ingest.cells.source import CellSource
    from scvec.model.matching import match_genes
    from scvec.model.resolvers import snapshot_resolver

    resolver = snapshot_resolver()
    ref, que = (match_genes(CellSource.open(a), resolver) for a in (reference, query))
    genes = sorted({g for g in ref.match.gene_ids if g is not None})
    measured = resolver.map_to(que.match, genes, ref.match.species).measured
    genes = [g for g, there in zip(genes, measured, strict=True) if there]
    chosen: Any = None
    found = []
    for cells in (ref, que):
        onto = resolver.map_to(cells.match, genes, ref.match.species)
        X = next(cells.chunks(onto, cells.source.n_obs)).X
        if chosen is None:
            score = variability(X)
            chosen = np.argsort(-score, kind="stable")[: min(n_genes, int(np.isfinite(score).sum()))]
            chosen = np.sort(chosen)
        found.append(X[:, chosen])
    mean, squares = (np.asarray(x.mean(axis=0)).ravel() for x in (found[0], found[0].multiply(found[0])))
    sd = np.maximum(np.sqrt(np.maximum(squares - mean**2, 0.0)), MIN_SD)
    scaled = [np.clip((X.toarray() - mean) / sd, -CLIP, CLIP).astype(np.float32) for X in found]
    return Matched(*found, *scaled)


def variability(X: Any, n_bins: int = 20) -> np.ndarray:
    """Return (n_genes,) dispersions standardised among genes of similar mean; -inf where a gene is silent.

    The "seurat" flavour of ``scanpy.pp.highly_variable_genes``, with bins of equal numbers of genes.
    """
    linear = X.astype(np.float64).expm1()
    mean = np.asarray(linear.mean(axis=0)).ravel()
    variance = np.asarray(linear.multiply(linear).mean(axis=0)).ravel() - mean**2
    on = mean > 0
    dispersion = np.log(np.maximum(variance, 1e-12) / np.maximum(mean, 1e-12))
    log = np.log1p(mean)
    bins = np.digitize(log, np.quantile(log[on], np.linspace(0, 1, n_bins + 1)[1:-1]))
    score = np.full(len(mean), -np.inf)
    for b in range(n_bins):
        there = on & (bins == b)
        if there.any():
            score[there] = (dispersion[there] - dispersion[there].mean()) / (dispersion[there].std() + 1e-9)
    return score


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

    pca = PCA(min(50, *np.subtract(cells.scaled_reference.shape, 1).tolist()), random_state=seed)
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
