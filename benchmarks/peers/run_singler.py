"""SingleR (Aran et al. 2019) by its Python bindings: each reference cell a profile, defaults."""

from __future__ import annotations

from typing import Any

import singler
from protocol import Answer, Clock, cells_of, n_threads, serve


def answer(task: dict[str, Any], options: dict[str, Any], clock: Clock) -> Answer:
    """Train on the genes that both have, and classify; delta, the margin, is its measure of certainty."""
    cells = cells_of(task)
    ours, theirs = cells.reference.var_names.tolist(), cells.query.var_names.tolist()
    shared = sorted(set(ours) & set(theirs))
    reference, query = (a[:, shared].X.T.tocsc() for a in (cells.reference, cells.query))
    for matrix in (reference, query):
        matrix.sort_indices()  # SingleR refuses columns in disorder
    labels = cells.reference.obs["label"].astype(str).tolist()
    with clock("fit"):
        built = singler.train_single(
            reference, labels, shared, test_features=shared, num_threads=n_threads(), **options
        )
    with clock("predict"):
        found = singler.classify_single(query, built, num_threads=n_threads())
    return Answer(found.column("best"), found.column("delta"))


if __name__ == "__main__":
    serve(answer, "singler")
