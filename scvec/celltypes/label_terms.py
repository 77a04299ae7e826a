"""The Cell Ontology terms of a reference's labels: by name, else guessed from similar text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import ScvecError
from scvec.celltypes.ontology import ClassOntology
from scvec.celltypes.terms import Match, TermMatcher
from scvec.ingest.cells.label_columns import why_no_type

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["class_ontology", "match_labels", "term_notes"]

#: Candidates of a guess: the names of the ontology with the most similar spelling.
N_CANDIDATES = 50
#: Labels of fewer letters are not guessed.
MIN_LETTERS = 4
#: Least confidence of a guess, and least lead of its cosine over that of the next term.
SURE_ENOUGH, CLEARLY = 0.75, 0.02
#: Probability that the nearest term is right: a logistic regression on its cosine and its lead over the next
#: term (up to 0.1), fitted on the 2,489 synonyms of the ontology, each held out as an unknown label. 38% of
#: the guesses reach the bar; 88% of these are right.
_COSINE, _LEAD, _CONSTANT = 12.9, 14.2, -12.1


def match_labels(
    kb: KnowledgeBase,
    labels: Sequence[str],
    *,
    known: Mapping[str, str] | None = None,
    tissues: Sequence[str] = (),
    device: str = "auto",
) -> tuple[dict[str, Match], list[str]]:
    """Return the term of each label, and notes.

    Parameters
    ----------
    known
        Label -> term id, where the data set has a column of ids.
    tissues
        Tissues that the data set names: some words mean another type in each.
    """
    matcher = TermMatcher.of(tuple(kb.cl_names()))
    found = matcher.match_all(labels, tissues)
    for label, match in found.items():
        cl_id = (known or {}).get(label, "")
        if cl_id:
            found[label] = Match(cl_id, matcher.label_of.get(cl_id, cl_id), "column", 1.0)
        elif match.how not in ("label", "synonym", "plural") and why_no_type(label):
            found[label] = Match(how="no cell type", confidence=1.0)
    left = [n for n, match in found.items() if not match.how and sum(map(str.isalpha, n)) >= MIN_LETTERS]
    notes = []
    if left and matcher.label_of:
        try:
            found |= _guess(matcher, kb.cl_names(), left, device)
        except ScvecError as error:  # the model is not installed
            notes.append(f"no Cell Ontology term was guessed for {len(left)} labels: {error.what}")
    return found, notes


def class_ontology(kb: KnowledgeBase, classes: Sequence[str], found: Mapping[str, Match]) -> ClassOntology:
    """Return the terms of classes and the terms above them."""
    terms, names, lineage, depth = [], {}, {}, {}
    for label in classes:
        term = found[label].cl_id
        terms.append(term)
        if not term:
            continue
        lineage[term] = (term, *kb.cl_ancestors(term))
        for above in lineage[term]:
            if above not in depth:
                depth[above] = len(kb.cl_ancestors(above))
                names[above] = kb.cl_label(above)
    return ClassOntology(
        tuple(terms),
        names,
        lineage,
        depth,
        tuple(found[label].how for label in classes),
        tuple(found[label].confidence for label in classes),
    )


def term_notes(meta: Mapping[str, Any], name: str) -> list[str]:
    """Return a note on the labels of a new reference that have no term or a guessed one."""
    ontology = meta["ontology"]
    found = dict(zip(meta["classes"], zip(ontology["terms"], ontology["how"], strict=True), strict=True))
    without = [label for label, (term, how) in found.items() if not term and how != "no cell type"]
    guessed = [label for label, (_, how) in found.items() if how == "text"]
    see = f"scvec labels {name} shows and changes the terms"
    if not without and not guessed:
        return []
    known = sum(bool(term) for term, _ in found.values())
    note = f"{known} of {len(found)} labels are known to the Cell Ontology"
    if without:
        note += f", not {', '.join(map(repr, without[:3]))}" + (", ..." if len(without) > 3 else "")
    if guessed:
        name_of = ontology["names"]
        examples = [f"{label!r} as {name_of[found[label][0]]!r}" for label in guessed[:3]]
        note += f"; guessed: {', '.join(examples)}" + (", ..." if len(guessed) > 3 else "")
    return [f"{note} ({see})"]


def _guess(
    matcher: TermMatcher, names: Sequence[tuple[str, str, bool]], labels: Sequence[str], device: str
) -> dict[str, Match]:
    """Return the term with the most similar name of each label that clearly has one."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from scvec.backbones import load_backbone, parse_spec

    names = [row for row in names if matcher.is_plain(row[0])]
    texts = [name for _, name, _ in names]
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))
    known = letters.fit_transform(texts)
    plain = [" ".join(label.replace("_", " ").split()) for label in labels]
    alike = (letters.transform(plain) @ known.T).toarray()
    chosen = [[int(k) for k in np.argsort(-row, kind="stable")[:N_CANDIDATES] if row[k] > 0] for row in alike]
    wanted = sorted({k for row in chosen for k in row})
    if not wanted:
        return {}
    vectors = load_backbone(parse_spec("minilm"), device=device).encode([*plain, *(texts[k] for k in wanted)])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    row_of = {k: len(plain) + i for i, k in enumerate(wanted)}
    found = {}
    for i, label in enumerate(labels):
        best: dict[str, float] = {}
        for k in chosen[i]:
            cosine = float(vectors[i] @ vectors[row_of[k]])
            best[names[k][0]] = max(best.get(names[k][0], -1.0), cosine)
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
        if not ranked:
            continue
        cosine = ranked[0][1]
        lead = cosine - ranked[1][1] if len(ranked) > 1 else 1.0
        sure = 1.0 / (1.0 + np.exp(-(_COSINE * cosine + _LEAD * min(lead, 0.1) + _CONSTANT)))
        if sure >= SURE_ENOUGH and lead >= CLEARLY:
            cl_id = ranked[0][0]
            found[label] = Match(cl_id, matcher.label_of[cl_id], "text", round(float(sure), 3))
    return found
