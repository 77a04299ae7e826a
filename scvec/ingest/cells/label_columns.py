"""Read the labels of reference cells, and find labels that are spellings of one cell type."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from scvec.base.errors import InputError, reading
from scvec.base.results import count_text

__all__ = [
    "LabelFinding",
    "as_label_map",
    "fold_label",
    "labels",
    "leave_out_rare",
    "look_over",
    "no_column",
    "read_label_map",
    "read_names",
    "why_no_type",
]

#: Words for cells of unknown type, and for droplets that do not hold one intact cell.
_NO_CELL = re.compile(
    r"\b(unknown|unassigned|unclassified|unclassifiable|undefined|undetermined|unidentified|unlabell?ed|"
    r"unannotated|unresolved|not (assigned|annotated|determined|available)|ambiguous|doublets?|multiplets?|"
    r"heterotypic|debris|dying|dead|low ?q(uality|c)?|low quality cells?|empty( droplets?)?|ambient|"
    r"contaminat(ed|ion|ing)|artefacts?|artifacts?|outliers?|others?|misc(ellaneous)?|mixed|tbd|todo)\b|\?"
)
_CLUSTER = re.compile(r"(cluster|clust|leiden|louvain|seurat clusters?|group|cl|c)? ?\d+(\.\d+)?")
#: Conditions of a donor or of an experiment. A label that is only a condition is not a cell type.
_CONDITION = re.compile(
    r"(healthy|control|ctrl|normal|disease|diseased|sick|patient|donor|case|treated|untreated|stimulated|"
    r"unstimulated|stim|infected|uninfected|covid|covid ?19|sars cov 2|type [12] diabetes|t[12]d|"
    r"diabet(es|ic)|lupus|sle|cancer|tumou?r|carcinoma|adenocarcinoma|glioblastoma|melanoma|lymphoma|leuka?emia|aml|cll|"
    r"fibrosis|(alzheimer|parkinson|crohn) ?s?( disease)?|asthma|copd|sepsis|hiv)( ?\d+)?"
)
_SIGN = re.compile(r"(?<=[a-z0-9])( ?\+|-(?=$|[\s,;)/]|cd\d)|[ -]?(positive|negative|pos|neg)\b)")


@dataclass(frozen=True, slots=True)
class LabelFinding:
    """One problem of the labels that a user may want to fix.

    Attributes
    ----------
    kind
        ``near-duplicate``, ``no cell type``, ``too few cells`` or ``does not hang together``.
    labels
        The labels concerned, with their numbers of cells.
    message
        Text for the user.
    """

    kind: str
    labels: dict[str, int]
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"kind": self.kind, "labels": self.labels, "message": self.message}


def fold_label(label: str) -> str:
    """Return a key that is equal for all spellings of one label.

    Case, spaces, hyphens, the order of words, plurals and the word "cell" are ignored. Signs of markers are
    kept: ``CD16+ Mono`` and ``CD16- Mono`` are two types.
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
    """Return the problems of the names of labels.

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
            similar = _with_counts(names, counts)
            message = (
                f"labels that may be one cell type: {similar}; kept separate (merge them with --label-map)"
            )
            findings.append(LabelFinding("near-duplicate", {n: counts[n] for n in names}, message))
    for label in sorted(counts):
        what = why_no_type(label)
        if not what:
            continue
        shown = _with_counts([label], counts)
        message = f"label {shown} {what}; it was kept (remove it by an empty name in --label-map)"
        findings.append(LabelFinding("no cell type", {label: counts[label]}, message))
    return findings


def why_no_type(label: str) -> str:
    """Return why a label is not a cell type, such as ``is a condition, not a cell type``; else ``""``."""
    plain = " ".join(re.sub(r"[_\W]+", " ", label.lower().replace("?", " unknown ")).split())
    if _NO_CELL.search(plain):
        return "is not a cell type"
    if _CLUSTER.fullmatch(plain):
        return "looks like the number of a cluster"
    return "is a condition, not a cell type" if _CONDITION.fullmatch(plain) else ""


def _with_counts(names: list[str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"'{name}' ({count_text(counts[name], 'cell')})" for name in names)


_MISSING = {"", "nan", "na", "n/a", "none", "<na>", "null"}


class _Labelled(Protocol):
    notes: list[str]
    name: str

    @property
    def obs(self) -> pd.DataFrame: ...


def labels(source: _Labelled, label_key: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Convert a column of obs into class numbers.

    Parameters
    ----------
    source
        A :class:`scvec.ingest.cells.source.CellSource`; a note for each change is added to its ``notes``.
    label_key
        The column.

    Returns
    -------
    codes
        (n_obs,) int64 numbers into ``classes``; -1 where the label is missing.
    classes
        The labels, sorted.

    Raises
    ------
    InputError
        If the column does not exist, has no labels, or nearly as many labels as cells.
    """
    where = f"{source.name} (obs['{label_key}'])"
    stripped = read_names(source, label_key)
    missing = stripped == ""
    n = int((~missing).sum())
    if n == 0:
        raise InputError(
            "no cell has a label",
            where,
            "give another --label-key, or label the cells first",
            code="no-labels",
        )
    classes = sorted({str(text) for text in stripped[~missing]})
    if len(classes) > max(50, n // 2):
        what = f"the column has {len(classes):,} different values for {n:,} cells: these are not cell types"
        raise InputError(what, where, f"give another --label-key; {_columns(source)}", code="too-many-labels")
    if missing.any():
        source.notes.append(
            f"{count_text(int(missing.sum()), 'cell')} without a label in obs['{label_key}']: not trained on"
        )
    number = {label: k for k, label in enumerate(classes)}
    codes = np.array(
        [-1 if gone else number[str(t)] for t, gone in zip(stripped, missing, strict=True)], np.int64
    )
    return codes, classes


def leave_out_rare(
    codes: npt.NDArray[np.int64], classes: list[str], min_cells: int
) -> tuple[npt.NDArray[np.int64], list[str], list[LabelFinding]]:
    """Remove the labels that have fewer than ``min_cells`` cells; their cells become unlabelled.

    Parameters
    ----------
    codes
        (n,) int64 numbers into ``classes``, -1 for none.

    Returns
    -------
    The codes and classes that are left, and one finding for each label removed.

    Raises
    ------
    InputError
        If fewer than two labels are left.
    """
    counts = np.bincount(codes[codes >= 0], minlength=len(classes))
    kept = np.flatnonzero(counts >= min_cells)
    if len(kept) < 2:
        raise InputError(
            f"fewer than two labels have at least {min_cells:,} cells",
            "the labels left: " + (", ".join(f"'{classes[k]}'" for k in kept) or "none"),
            "give a smaller --min-cells",
            code="one-label",
        )
    number = np.full(len(classes) + 1, -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    findings = [
        LabelFinding(
            "too few cells",
            {classes[k]: int(counts[k])},
            f"label '{classes[k]}' was left out: {count_text(int(counts[k]), 'cell')}, "
            f"fewer than {min_cells:,}",
        )
        for k in np.flatnonzero(counts < min_cells)
    ]
    return number[codes], [classes[k] for k in kept], findings


def read_names(source: _Labelled, key: str) -> npt.NDArray[np.str_]:
    """Return (n_obs,) labels as text without spaces around them; empty if a cell has none.

    Raises
    ------
    InputError
        If the column does not exist.
    """
    if key not in source.obs.columns:
        raise no_column(source, key)
    values = source.obs[key]
    missing = values.isna().to_numpy()
    plain = values.astype(object)
    if pd.api.types.is_numeric_dtype(values.dtype) or (
        isinstance(values.dtype, pd.CategoricalDtype)
        and pd.api.types.is_numeric_dtype(values.cat.categories.dtype)
    ):
        source.notes.append(f"obs['{key}'] holds numbers: used as names of groups")
        plain = plain.map(_number_text, na_action="ignore")
    texts = np.array(["" if gone else str(v) for v, gone in zip(plain, missing, strict=True)], dtype=object)
    stripped = np.array([text.strip() for text in texts], dtype=object)
    if np.any(texts != stripped):
        source.notes.append(f"obs['{key}']: removed spaces around labels")
    found = [("" if text.lower() in _MISSING else text) for text in stripped]
    return np.array(found, dtype=np.str_)


def _number_text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def no_column(source: _Labelled, key: str) -> InputError:
    """Return the error for a missing column of obs; it lists the columns and the most similar name."""
    names = [str(column) for column in source.obs.columns]
    folded = {name.lower(): name for name in names}
    near = [folded[n] for n in difflib.get_close_matches(key.lower(), list(folded), n=1, cutoff=0.6)]
    hint = f"did you mean '{near[0]}'? " if near else ""
    what = f"obs has no column '{key}'"
    return InputError(what, source.name, hint + _columns(source), code="unknown-column")


def _columns(source: _Labelled) -> str:
    names = [str(column) for column in source.obs.columns]
    if not names:
        return "obs has no columns"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"columns: {shown}"


_FORMATS = 'a JSON object {"their label": "my label"}, or a csv or tsv file with two columns and no header'


def as_label_map(given: Mapping[str, str] | Path | str | None) -> Mapping[str, str]:
    """Return a map of labels: the given one, the content of a file, or an empty one for None."""
    if given is None:
        return {}
    return given if isinstance(given, Mapping) else read_label_map(given)


def read_label_map(path: Path | str) -> dict[str, str]:
    """Return a map from labels to the labels that are used instead.

    Parameters
    ----------
    path
        A JSON object, or a csv or tsv file with two columns and no header. An empty second name removes
        the cells of that label.

    Raises
    ------
    InputError
        If the file cannot be read, has another format, or maps one label to two.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("the label map does not exist", str(path), f"give {_FORMATS}", code="file-not-found")
    with reading(str(path)):
        text = path.read_text(encoding="utf-8-sig")
    rows: list[list[Any]]
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(
                f"the label map is not JSON: {error}", str(path), f"give {_FORMATS}", code="wrong-format"
            ) from error
        rows = [[str(k), v] for k, v in data.items()]
    else:
        import csv

        separator = "\t" if "\t" in text else ","
        rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    found: dict[str, str] = {}
    for row in rows:
        if len(row) != 2 or not isinstance(row[1], str):
            raise InputError(
                f"a line of the label map does not have two names: {row}", str(path), f"give {_FORMATS}"
            )
        name, other = row[0].strip(), row[1].strip()
        if found.setdefault(name, other) != other:
            raise InputError(f"the label map has two lines for '{name}'", str(path), "keep one of them")
    return found
