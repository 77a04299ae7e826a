"""Find the Cell Ontology terms of labels by name, and the ancestors of the terms of a reference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.arrays import Texts, blocks, code_type, coded, release
from scvec.base.errors import ScvecError
from scvec.base.types import Float32
from scvec.ingest.cells.label_columns import why_no_type

if TYPE_CHECKING:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = [
    "CONTEXTS",
    "ClassOntology",
    "Match",
    "TermMatcher",
    "class_ontology",
    "context_of",
    "match_labels",
    "term_notes",
    "words",
]

#: Cells at once.
_BLOCK = 2**13


@dataclass(frozen=True, slots=True)
class ClassOntology:
    """The Cell Ontology terms of classes, and the terms above them.

    Attributes
    ----------
    terms, how, confidence
        For each class its term ("" without one), how it was found
        (:class:`scvec.celltypes.terms.Match`) and with which confidence (0 to 1).
    names
        Term -> its label.
    lineage
        Term of a class -> the terms above it, itself included.
    depth
        Term -> number of terms above it: the deeper, the more specific.
    """

    terms: tuple[str, ...]
    names: dict[str, str]
    lineage: dict[str, tuple[str, ...]]
    depth: dict[str, int]
    how: tuple[str, ...] = ()
    confidence: tuple[float, ...] = ()

    def coded_broad(self, proba: Float32, *, bar: float = 0.8) -> tuple[Texts, Texts]:
        """Return, per cell, (label, id) of the deepest term whose summed probability reaches ``bar``.

        For example ``"T cell"`` if CD4 and CD8 are both likely; empty strings if no term reaches it.
        ``proba`` is (n, n_classes) float32; the result is categories, one or two bytes a cell.
        """
        names = sorted({t for path in self.lineage.values() for t in path})
        # The last number is for cells without a term.
        codes = np.full(len(proba), len(names), dtype=code_type(len(names) + 1))
        labels = [*(self.names.get(t, "") for t in names), ""]
        if not names:
            return coded(codes, labels), coded(codes, [""])
        number = {term: i for i, term in enumerate(names)}
        under = np.zeros((len(self.terms), len(names)))
        for c, term in enumerate(self.terms):
            for above in self.lineage.get(term, ()):
                under[c, number[above]] = 1.0
        depth = np.array([self.depth[t] for t in names], dtype=np.float64)
        # In blocks: there are more terms than classes.
        for rows in blocks(len(proba), _BLOCK):
            mass = proba[rows] @ under
            # Among the terms that pass, the deepest; of two equally deep, the likelier one.
            rank = np.where(mass >= bar - 1e-6, depth + 0.5 * np.minimum(mass, 1.0), -1.0)
            best = rank.argmax(axis=1)
            passed = rank[np.arange(len(best)), best] >= 0
            codes[rows] = np.where(passed, best, len(names))
            release(proba)
        return coded(codes, labels), coded(codes, [*names, ""])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "terms": list(self.terms),
            "names": self.names,
            "lineage": {k: list(v) for k, v in self.lineage.items()},
            "depth": self.depth,
            "how": list(self.how),
            "confidence": list(self.confidence),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClassOntology:
        """Rebuild from :meth:`to_dict`."""
        return cls(
            tuple(data["terms"]),
            dict(data["names"]),
            {k: tuple(v) for k, v in data["lineage"].items()},
            {k: int(v) for k, v in data["depth"].items()},
            tuple(data["how"]),
            tuple(data["confidence"]),
        )


#: Whole names -> Cell Ontology label. A test checks that each exists.
_NAMES: dict[str, str] = {
    "at1": "pulmonary alveolar type 1 cell",
    "at2": "pulmonary alveolar type 2 cell",
    "cd14 monocyte": "CD14-positive monocyte",
    "cd16 monocyte": "CD14-low, CD16-positive monocyte",
    "fcgr3a monocyte": "CD14-low, CD16-positive monocyte",
    "cd34": "hematopoietic precursor cell",
    "cdc1": "CD141-positive myeloid dendritic cell",
    "cdc2": "CD1c-positive myeloid dendritic cell",
    "hspc": "hematopoietic stem cell",
    "hsc": "hematopoietic stem cell",
    "innate lymphoid": "innate lymphoid cell",
    "nk cd56bright": "CD16-negative, CD56-bright natural killer cell, human",
    "nk cd56dim": "CD16-positive, CD56-dim natural killer cell, human",
    "opc": "oligodendrocyte precursor cell",
    "erythroid": "erythroid lineage cell",
    "kc": "keratinocyte",
    "microglia": "microglial cell",
    "red blood": "erythrocyte",
    "cd8 naive cytotoxic": "naive thymus-derived CD8-positive, alpha-beta T cell",
    "dendritic": "dendritic cell",
    "excitatory": "glutamatergic neuron",
    "excitatory neuron": "glutamatergic neuron",
    "inhibitory": "GABAergic neuron",
    "inhibitory neuron": "GABAergic neuron",
    "mait": "mucosal-associated invariant T cell",
    "nkt": "mature NK T cell",
    "reg t": "regulatory T cell",
    "reg": "regulatory T cell",
    "cd4 cd25 t reg": "CD4-positive, CD25-positive, alpha-beta regulatory T cell",
}

#: Abbreviations of labs -> words.
_WORDS: dict[str, str] = {
    "astro": "astrocyte",
    "baso": "basophil",
    "cholangio": "cholangiocyte",
    "ctl": "cytotoxic t",
    "dc": "dendritic",
    "dcs": "dendritic",
    "endoth": "endothelial",
    "eos": "eosinophil",
    "epi": "epithelial",
    "epith": "epithelial",
    "ery": "erythroid",
    "eryth": "erythroid",
    "ex": "excitatory",
    "exc": "excitatory",
    "fb": "fibroblast",
    "fib": "fibroblast",
    "fibro": "fibroblast",
    "gd": "gamma delta",
    "gdt": "gamma delta t",
    "hep": "hepatocyte",
    "ilc": "innate lymphoid",
    "in": "inhibitory",
    "inh": "inhibitory",
    "keratino": "keratinocyte",
    "lympho": "lymphocyte",
    "mac": "macrophage",
    "macro": "macrophage",
    "macs": "macrophage",
    "mait": "mucosal associated invariant t",
    "mem": "memory",
    "mk": "megakaryocyte",
    "mono": "monocyte",
    "mphage": "macrophage",
    "neu": "neutrophil",
    "neutro": "neutrophil",
    "natural killer": "nk",
    "oligo": "oligodendrocyte",
    "pdc": "plasmacytoid dendritic",
    "plt": "platelet",
    "rbc": "red blood",
    "smc": "smooth muscle",
    "tcm": "central memory t",
    "tem": "effector memory t",
    "temra": "effector memory cd45ra t terminally differentiated",
    "tfh": "t follicular helper",
    "treg": "t reg",
    "vsmc": "vascular smooth muscle",
}

#: Words of the ontology that labs leave out, and synonyms.
_SILENT = frozenset(
    "cell cells alpha-beta thymus-derived positive pos of the and a an type human mouse".split()
)
_SAME = {"killer": "", "natural": "nk", "lymphocyte": "", "leukocyte": "", "leucocyte": ""}
#: States of a cell, for which the ontology has few terms: without them the type is left.
STATES = frozenset(
    "activated quiescent resting cycling proliferating proliferative dividing intermediate early late "
    "inflammatory reactive stressed mature immature normal healthy other transitional".split()
)
#: Markers that are part of a type's name, and are left out last; the first two are of T cells.
LINEAGES = ("cd4", "cd8", "cd14", "cd16")

#: Words that mean another type in each tissue: (words that show the tissue, word -> Cell Ontology label).
CONTEXTS: dict[str, tuple[frozenset[str], dict[str, str]]] = {
    "pancreas": (
        frozenset(
            "alpha beta delta gamma epsilon pp acinar ductal duct islet pancreas pancreatic stellate".split()
        ),
        {
            "alpha": "pancreatic A cell",
            "beta": "type B pancreatic cell",
            "delta": "pancreatic D cell",
            "gamma": "pancreatic PP cell",
            "pp": "pancreatic PP cell",
            "epsilon": "pancreatic epsilon cell",
            "acinar": "pancreatic acinar cell",
            "ductal": "pancreatic ductal cell",
            "duct": "pancreatic ductal cell",
            "stellate": "pancreatic stellate cell",
        },
    ),
    "liver": (
        frozenset("hepatocyte kupffer cholangiocyte lsec liver hepatic stellate".split()),
        {
            "stellate": "hepatic stellate cell",
            "lsec": "endothelial cell of hepatic sinusoid",
            "sinusoidal endothelial": "endothelial cell of hepatic sinusoid",
        },
    ),
}
#: A tissue counts when it is named, or when this many of its words are among the labels.
_ENOUGH = 3

_SIGN = re.compile(r"(?<=[a-z0-9])(?:\s?\+|[ -]positive\b|[ -]pos\b)")
_MINUS = re.compile(r"(?<=[a-z0-9])(?:-(?=$|[\s,;/_)])|[ -]negative\b|[ -]neg\b|[ -]low\b)")


def folded(label: str) -> str:
    """Return a name in lower case, without underscores and repeated spaces."""
    return " ".join(label.lower().replace("_", " ").split())


def words(label: str) -> tuple[str, ...]:
    """Return the sorted words that all spellings of a type share.

    An absent or low marker ends in ``-``, a present one is its bare name: ``"CD16- Mono"`` gives
    ``("cd16-", "monocyte")``, ``"CD4-positive, alpha-beta T cell"`` gives ``("cd4", "t")``.
    """
    text = folded(label).replace("cd56bright", "cd56 bright").replace("alpha-beta", " ")
    text = _SIGN.sub(" ", _MINUS.sub("\x00 ", text))
    found: set[str] = set()
    for word in re.findall(
        r"[^\W_]+\x00?", text.replace("thymus-derived", " ").replace("natural killer", "nk")
    ):
        name, absent = word.rstrip("\x00"), word.endswith("\x00")
        for part in _WORDS.get(name, name).split():
            part = _singular(part)
            if part in _SILENT or _SAME.get(part) == "":
                continue
            found.add(part + "-" if absent else part)
    return tuple(sorted(found))


def context_of(labels: Iterable[str], tissues: Iterable[str] = ()) -> dict[str, str]:
    """Return word -> Cell Ontology label in the tissue that labels or ``tissues`` name; empty for none."""
    said = {w for tissue in tissues for w in words(tissue)}
    there = {w for label in labels for w in words(label)}
    meant: dict[str, str] = {}
    best = 0
    for name, (signs, terms) in CONTEXTS.items():
        n = 100 * (name in said) + len(signs & there)
        if n >= _ENOUGH and n > best:
            meant, best = terms, n
    return meant


def _singular(word: str) -> str:
    if word in _SILENT or len(word) <= 3 or word.endswith(("ss", "us", "is", "as")):
        return word
    return word[:-1] if word.endswith("s") else word


#: :func:`words` of a name, joined -> the Cell Ontology label.
SPELLINGS: dict[str, str] = {" ".join(words(name)): label for name, label in _NAMES.items()}


#: Confidence of each way of matching. Spellings may leave out a word that matters; a broader term says less.
SURE = {"label": 1.0, "synonym": 1.0, "plural": 1.0, "tissue": 0.95, "spelling": 0.95, "broader": 0.8}
#: Terms of one species or animal group, which no general word means.
_SPECIAL = re.compile(r"\((Mmus|sensu .*|metazoa|Primate|Homo sapiens)\)")
_MARKER = re.compile(r"(cd\d+[a-z]*|[a-z0-9]*\d[a-z0-9]*|fcgr3a)-?|\w+-")


@dataclass(frozen=True, slots=True)
class Match:
    """The term of a label.

    Attributes
    ----------
    cl_id, name
        Term and its label; empty without a match.
    how
        ``label``, ``synonym``, ``plural`` (case, plural and the word "cell" aside), ``tissue`` (what the word
        means among these labels), ``spelling`` (as labs write it), ``broader`` (markers or states left out),
        ``text`` (a guess by similarity of text), ``column`` (an id in obs), ``hand`` (set by the user),
        ``no cell type``, or empty.
    confidence
        0 to 1.
    """

    cl_id: str = ""
    name: str = ""
    how: str = ""
    confidence: float = 0.0


class TermMatcher:
    """Finds terms by name.

    Parameters
    ----------
    names
        (id, name, whether it is the term's own label) of every label and synonym.
    """

    def __init__(self, names: Sequence[tuple[str, str, bool]]) -> None:
        self.label_of = {cl_id: name for cl_id, name, own in names if own}
        self._own: dict[str, set[str]] = {}
        self._synonyms: dict[str, set[str]] = {}
        self._plain: dict[str, set[str]] = {}
        self._words: dict[tuple[str, ...], set[str]] = {}
        for cl_id, name, own in names:
            key = folded(name)
            (self._own if own else self._synonyms).setdefault(key, set()).add(cl_id)
            if not self.is_plain(cl_id):
                continue
            self._plain.setdefault(_bare(key), set()).add(cl_id)
            bag = words(name)
            if own or bag not in self._words:
                # A label's words count before those of other terms' synonyms.
                mine = self._words.setdefault(bag, set())
                if own and any(words(self.label_of.get(t, "")) != bag for t in mine):
                    mine.clear()
                mine.add(cl_id)

    @staticmethod
    @lru_cache(2)
    def of(names: tuple[tuple[str, str, bool], ...]) -> TermMatcher:
        """Return the matcher of these names, made once where many references of one store are made."""
        return TermMatcher(names)

    def match(self, label: str, context: Mapping[str, str] | None = None) -> Match:
        """Return the term of a label by name, without a guess; ``context`` is from :func:`context_of`."""
        key, bag = folded(label), words(label)
        if not bag:
            return self._found(self._own.get(key, set()), "label")
        # The meaning in this tissue comes before a term of that very name in another.
        meant = (context or {}).get(" ".join(bag))
        if key in self._own and not (meant and len(bag) == 1):
            return self._found(self._own[key], "label")
        if meant:
            return self._found(self._own.get(folded(meant), set()), "tissue")
        for ways, how in ((self._synonyms.get(key), "synonym"), (self._plain.get(_bare(key)), "plural")):
            if ways and len(ways) == 1:
                return self._found(ways, how)
        spelled = SPELLINGS.get(" ".join(bag))
        if spelled:
            return self._found(self._own.get(folded(spelled), set()), "spelling")
        for spelling in (bag, _with_t(bag)):
            if len(self._words.get(spelling, ())) == 1:
                return self._found(self._words[spelling], "spelling")
        return self._broader(bag, context or {})

    def _broader(self, bag: tuple[str, ...], context: Mapping[str, str]) -> Match:
        left = tuple(w for w in bag if w not in STATES)
        main = tuple(w for w in left if w in LINEAGES or not _MARKER.fullmatch(w))
        rest = tuple(w for w in left if not _MARKER.fullmatch(w))
        for less in dict.fromkeys((left, _with_t(left), main, _with_t(main), rest)):
            if not less or less == bag:
                continue
            name = context.get(" ".join(less)) or SPELLINGS.get(" ".join(less))
            terms = self._own.get(folded(name), set()) if name else self._words.get(less, set())
            if len(terms) == 1:
                return self._found(terms, "broader")
        return Match()

    def _found(self, terms: set[str], how: str) -> Match:
        if len(terms) != 1:
            return Match()
        [cl_id] = terms
        return Match(cl_id, self.label_of.get(cl_id, cl_id), how, SURE[how])

    def is_plain(self, cl_id: str) -> bool:
        """Return whether a term is not of one species or animal group."""
        return not _SPECIAL.search(self.label_of.get(cl_id, ""))

    def match_all(self, labels: Sequence[str], tissues: Sequence[str] = ()) -> dict[str, Match]:
        """Return the term of each label of one data set."""
        context = context_of(labels, tissues)
        return {label: self.match(label, context) for label in labels}


def _with_t(bag: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of labels such as ``CD4 naive`` with the T cell that is meant; others unchanged."""
    of_t = {"cd4", "cd8"} & set(bag) and set(bag) & {"naive", "memory", "cytotoxic", "effector", "regulatory"}
    return tuple(sorted({*bag, "t"})) if of_t else bag


def _bare(key: str) -> str:
    """Return a folded name without the word "cell" at its end and without a plural."""
    text = key.replace("-", " ").removesuffix("cells").removesuffix("cell").strip()
    return (
        text[:-1] if text.endswith("s") and len(text) > 3 and not text.endswith(("ss", "us", "is")) else text
    )


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
