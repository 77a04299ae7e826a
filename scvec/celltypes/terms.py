"""Find the Cell Ontology term of a label by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["CONTEXTS", "Match", "TermMatcher", "context_of", "words"]

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


#: :func:`words` of a name, joined -> the Cell Ontology label it stands for.
SPELLINGS: dict[str, str] = {" ".join(words(name)): label for name, label in _NAMES.items()}


#: Confidence of each way of matching. Spellings may leave out a word that matters; a broader term says less.
SURE = {"label": 1.0, "synonym": 1.0, "plural": 1.0, "tissue": 0.95, "spelling": 0.95, "broader": 0.8}
#: Terms of one species or animal group: no plain word stands for them.
_SPECIAL = re.compile(r"\((Mmus|sensu .*|metazoa|Primate|Homo sapiens)\)")
_MARKER = re.compile(r"(cd\d+[a-z]*|[a-z0-9]*\d[a-z0-9]*|fcgr3a)-?|\w+-")


@dataclass(frozen=True, slots=True)
class Match:
    """The term of a label.

    Attributes
    ----------
    cl_id, name
        Term and its label; empty where there is none.
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
