"""Which Cell Ontology term a label stands for, and how that was found out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scvec.celltypes.lab_spellings import LINEAGES, SPELLINGS, STATES, context_of, folded, words

__all__ = ["Match", "TermMatcher"]

#: How sure each way of matching is. Spellings may leave out a word that matters; a broader term says less.
SURE = {"label": 1.0, "synonym": 1.0, "plural": 1.0, "tissue": 0.95, "spelling": 0.95, "broader": 0.8}
#: Terms of one species or of odd animals: no plain word stands for them.
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

    def match(self, label: str, context: Mapping[str, str] | None = None) -> Match:
        """Return the term of a label by name: nothing is guessed.

        Parameters
        ----------
        context
            From :func:`scvec.celltypes.lab_spellings.context_of`.
        """
        key, bag = folded(label), words(label)
        if not bag:
            return self._found(self._own.get(key, set()), "label")
        # What a word means in this tissue comes before a term of another tissue of that very name.
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
        """Return whether a term is of no single species and of no odd animal."""
        return not _SPECIAL.search(self.label_of.get(cl_id, ""))

    def match_all(self, labels: Sequence[str], tissues: Sequence[str] = ()) -> dict[str, Match]:
        """Return the term of each label of one data set."""
        context = context_of(labels, tissues)
        return {label: self.match(label, context) for label in labels}


def _with_t(bag: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of ``CD4 naive`` with the T cell that is meant; others as they are."""
    of_t = {"cd4", "cd8"} & set(bag) and set(bag) & {"naive", "memory", "cytotoxic", "effector", "regulatory"}
    return tuple(sorted({*bag, "t"})) if of_t else bag


def _bare(key: str) -> str:
    """Return a folded name without the word "cell" at its end and without a plural."""
    text = key.replace("-", " ").removesuffix("cells").removesuffix("cell").strip()
    return (
        text[:-1] if text.endswith("s") and len(text) > 3 and not text.endswith(("ss", "us", "is")) else text
    )
