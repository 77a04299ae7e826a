"""What looks wrong with the labels of a reference: told, never mended unasked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scvec.base.borders import count_text

__all__ = ["LabelFinding", "fold_label", "look_over", "why_no_type"]

#: Words that say that nobody knew, or that the droplet holds no one cell.
_NO_CELL = re.compile(
    r"\b(unknown|unassigned|unclassified|unclassifiable|undefined|undetermined|unidentified|unlabell?ed|"
    r"unannotated|unresolved|not (assigned|annotated|determined|available)|ambiguous|doublets?|multiplets?|"
    r"heterotypic|debris|dying|dead|low ?q(uality|c)?|low quality cells?|empty( droplets?)?|ambient|"
    r"contaminat(ed|ion|ing)|artefacts?|artifacts?|outliers?|others?|misc(ellaneous)?|mixed|tbd|todo)\b|\?"
)
_CLUSTER = re.compile(r"(cluster|clust|leiden|louvain|seurat clusters?|group|cl|c)? ?\d+(\.\d+)?")
#: States of a donor or of an experiment, which are no types where nothing else is said.
_CONDITION = re.compile(
    r"(healthy|control|ctrl|normal|disease|diseased|sick|patient|donor|case|treated|untreated|stimulated|"
    r"unstimulated|stim|infected|uninfected|covid|covid ?19|sars cov 2|type [12] diabetes|t[12]d|"
    r"diabet(es|ic)|lupus|sle|cancer|tumou?r|carcinoma|adenocarcinoma|glioblastoma|melanoma|lymphoma|leuka?emia|aml|cll|"
    r"fibrosis|(alzheimer|parkinson|crohn) ?s?( disease)?|asthma|copd|sepsis|hiv)( ?\d+)?"
)
_SIGN = re.compile(r"(?<=[a-z0-9])( ?\+|-(?=$|[\s,;)/]|cd\d)|[ -]?(positive|negative|pos|neg)\b)")


@dataclass(frozen=True, slots=True)
class LabelFinding:
    """One thing about the labels that a user may want to mend.

    Attributes
    ----------
    kind
        ``near-duplicate``, ``no cell type``, ``too few cells`` or ``does not hang together``.
    labels
        The labels concerned, and how many cells each has.
    message
        For people.
    """

    kind: str
    labels: dict[str, int]
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"kind": self.kind, "labels": self.labels, "message": self.message}


def fold_label(label: str) -> str:
    """Return a name that spellings of one label share.

    Case, spaces, hyphens, the order of words, plurals and the word "cell" do not count; the signs of markers
    do: ``CD16+ Mono`` and ``CD16- Mono`` are two types.
    """
    text = _SIGN.sub(lambda m: "plus " if m[0][-1] == "+" or "pos" in m[0] else "minus ", label.lower())
    words = []
    for word in re.findall(r"[^\W_]+", text):
        if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
        if word.endswith("cell"):
            word = word.removesuffix("cell")
        if word:
            words.append(word)
    return " ".join(sorted(words)) or label.lower().strip()


def look_over(counts: Mapping[str, int]) -> list[LabelFinding]:
    """Return what is odd about the names of labels.

    Parameters
    ----------
    counts
        Cells per label.
    """
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault(fold_label(label), []).append(label)
    findings = []
    for names in alike.values():
        if len(names) > 1:
            told = _told(names, counts)
            message = (
                f"labels that may be one type: {told}; they were kept apart (--label-map makes them one)"
            )
            findings.append(LabelFinding("near-duplicate", {n: counts[n] for n in names}, message))
    for label in sorted(counts):
        what = why_no_type(label)
        if not what:
            continue
        message = (
            f"label {_told([label], counts)} {what}; it was kept (an empty name in --label-map drops it)"
        )
        findings.append(LabelFinding("no cell type", {label: counts[label]}, message))
    return findings


def why_no_type(label: str) -> str:
    """Return why a label names no type of cell, such as ``is a condition, no cell type``; empty if it may."""
    plain = " ".join(re.sub(r"[_\W]+", " ", label.lower().replace("?", " unknown ")).split())
    if _NO_CELL.search(plain):
        return "is no cell type"
    if _CLUSTER.fullmatch(plain):
        return "looks like the number of a cluster"
    return "is a condition, no cell type" if _CONDITION.fullmatch(plain) else ""


def _told(names: list[str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"'{name}' ({count_text(counts[name], 'cell')})" for name in names)
