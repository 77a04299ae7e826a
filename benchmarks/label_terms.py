"""How often a guessed Cell Ontology term is right: each synonym taken for a label that nobody knows.

Prints the constants of ``scvec/celltypes/terms.py`` and the share of right guesses.

    python benchmarks/label_terms.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from scvec.backbones import load_backbone, parse_spec
from scvec.celltypes.terms import CLEARLY, N_CANDIDATES, SURE_ENOUGH, TermMatcher
from scvec.stores.knowledge.knowledge import KnowledgeBase


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.open(Path(folder) / "kb.duckdb") as kb:
        kb.load_snapshot()
        names = kb.cl_names()
        above = {cl_id: set(kb.cl_ancestors(cl_id)) for cl_id in {name[0] for name in names}}
    matcher = TermMatcher(names)
    names = [name for name in names if matcher.is_plain(name[0])]
    texts, ids = [name[1] for name in names], np.array([name[0] for name in names])
    folded = np.array([text.lower() for text in texts])
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(texts)
    vectors = load_backbone(parse_spec("minilm")).encode(texts)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    signs, right, broader = [], [], []
    for i, (cl_id, _, own) in enumerate(names):
        if own:
            continue
        alike = (letters @ letters[i].T).toarray().ravel()
        alike[folded == folded[i]] = -1.0
        candidates = np.argsort(-alike, kind="stable")[:N_CANDIDATES]
        candidates = candidates[alike[candidates] > 0]
        if len(candidates) == 0:
            continue
        cosine = vectors[candidates] @ vectors[i]
        order = np.argsort(-cosine, kind="stable")
        best = ids[candidates[order[0]]]
        others = [k for k in order if ids[candidates[k]] != best]
        lead = float(cosine[order[0]] - cosine[others[0]]) if others else 1.0
        signs.append((float(cosine[order[0]]), min(lead, 0.1), lead))
        right.append(best == cl_id)
        broader.append(best == cl_id or best in above[cl_id])
    found, truth, near = np.array(signs), np.array(right), np.array(broader)
    model = LogisticRegression(C=100).fit(found[:, :2], truth)
    sure = model.predict_proba(found[:, :2])[:, 1]
    print(f"cosine {model.coef_[0, 0]:.1f}, lead {model.coef_[0, 1]:.1f}, constant {model.intercept_[0]:.1f}")
    over = (sure >= SURE_ENOUGH) & (found[:, 2] >= CLEARLY)
    print(
        f"{len(truth):,} synonyms; guessed {over.mean():.0%}, of these right {truth[over].mean():.0%}, "
        f"right or broader {near[over].mean():.0%}"
    )


if __name__ == "__main__":
    main()
