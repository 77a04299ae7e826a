"""Read the labels of reference cells."""

from __future__ import annotations

import difflib
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from scvec.errors import InputError
from scvec.ingest.borders import count_text

__all__ = ["labels", "no_column"]

_MISSING = {"", "nan", "na", "n/a", "none", "<na>", "null"}


class _Labelled(Protocol):
    obs: pd.DataFrame
    notes: list[str]
    name: str


def labels(source: _Labelled, label_key: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Turn a column of obs into class numbers.

    Parameters
    ----------
    source
        A :class:`scvec.ingest.cells.CellSource`; its ``notes`` get a line for all that was changed.
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
        If there is no such column, it holds fewer than two labels, or nearly one per cell.
    """
    where = f"{source.name} (obs['{label_key}'])"
    if label_key not in source.obs.columns:
        raise no_column(source, label_key)
    values = source.obs[label_key]
    missing = values.isna().to_numpy()
    plain = values.astype(object)
    if pd.api.types.is_numeric_dtype(values.dtype) or (
        isinstance(values.dtype, pd.CategoricalDtype)
        and pd.api.types.is_numeric_dtype(values.cat.categories.dtype)
    ):
        source.notes.append(f"obs['{label_key}'] holds numbers: taken as names of groups")
        plain = plain.map(_number_text, na_action="ignore")
    texts = np.array(["" if gone else str(v) for v, gone in zip(plain, missing, strict=True)], dtype=object)
    stripped = np.array([text.strip() for text in texts], dtype=object)
    if np.any(texts != stripped):
        source.notes.append(f"obs['{label_key}']: removed spaces around labels")
    missing |= np.fromiter((text.lower() in _MISSING for text in stripped), bool, len(stripped))
    n = int((~missing).sum())
    if n == 0:
        raise InputError("no cell has a label", where, "give another --label-key, or label the cells first")
    classes = sorted(set(stripped[~missing]))
    if len(classes) == 1:
        what = f"all cells have one label, '{classes[0]}': there is nothing to tell apart"
        raise InputError(what, where, "give a reference of two or more cell types, or another --label-key")
    if len(classes) > max(50, n // 2):
        what = (
            f"the column has {len(classes):,} different labels for {n:,} cells: it does not name cell types"
        )
        raise InputError(what, where, f"give another --label-key; {_columns(source)}")
    if missing.any():
        source.notes.append(
            f"{count_text(int(missing.sum()), 'cell')} with no label in obs['{label_key}']: left unlabelled"
        )
    number = {label: k for k, label in enumerate(classes)}
    codes = np.array([-1 if gone else number[t] for t, gone in zip(stripped, missing, strict=True)], np.int64)
    return codes, classes


def _number_text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def no_column(source: _Labelled, key: str) -> InputError:
    """Return the error for a column that obs does not have: which there are, and which was meant."""
    names = [str(column) for column in source.obs.columns]
    folded = {name.lower(): name for name in names}
    near = [folded[n] for n in difflib.get_close_matches(key.lower(), list(folded), n=1, cutoff=0.6)]
    hint = f"did you mean '{near[0]}'? " if near else ""
    what = f"there is no column '{key}' in obs"
    return InputError(what, source.name, hint + _columns(source))


def _columns(source: _Labelled) -> str:
    names = [str(column) for column in source.obs.columns]
    if not names:
        return "obs has no columns at all"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"columns: {shown}"
