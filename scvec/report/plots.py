"""``scvec.pl``: figures of annotated cells, by matplotlib. Each function draws on axes and returns them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, did_you_mean
from scvec.report.layout import lay_out_cells

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["confidence", "confusion", "umap"]

Strings = npt.NDArray[np.str_]

#: Points of a map beyond which they are drawn as one image in vector formats.
MAX_VECTOR_POINTS = 5_000
#: Labels beside a map; more make no legend that anyone reads.
MAX_LEGEND = 40


def umap(
    adata: AnnData,
    *,
    color: str | None = None,
    basis: str | None = None,
    key_added: str = "scvec",
    size: float | None = None,
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw cells on a plane, by colour of a column.

    Parameters
    ----------
    adata
        Annotated cells (:func:`scvec.annotate`, or what ``scvec query -o OUT.h5ad`` wrote).
    color
        Column of obs; ``scvec_label`` when None. Numbers get a colour bar, all else a legend.
    basis
        Key of obsm with the places. When None ``X_umap``, else ``X_scvec_umap``, which is made (UMAP of
        ``X_scvec``; McInnes et al. 2018, arXiv:1802.03426) and kept where it is missing.
    key_added
        Prefix of the annotation's columns and keys.
    size
        Area of a point, in square points; by the number of cells when None.
    ax
        matplotlib axes to draw on; new ones when None.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is missing, or the object lacks what is to be drawn.
    """
    column = f"{key_added}_label" if color is None else color
    values = _column(adata, column)
    places = _places(adata, basis, key_added)
    axes = _axes(ax, (7.5, 5.0))
    n = len(values)
    point = size if size is not None else float(np.clip(15_000 / max(n, 1), 1.0, 20.0))
    look = {"s": point, "linewidths": 0, "rasterized": n > MAX_VECTOR_POINTS}
    # No label lies on top because it comes last in the alphabet.
    order = np.random.default_rng(0).permutation(n)
    if _numeric(values):
        numbers = values.to_numpy(dtype=float)[order]
        unit = bool(np.nanmin(numbers) >= 0 and np.nanmax(numbers) <= 1) if n else False
        drawn = axes.scatter(*places[order].T, c=numbers, cmap="viridis", vmin=0 if unit else None,
                             vmax=1 if unit else None, **look)  # fmt: skip
        axes.figure.colorbar(drawn, ax=axes, shrink=0.7)
    else:
        names, colors = _colors(adata, column, values, key_added)
        codes = {name: i for i, name in enumerate(names)}
        texts = _texts(values)
        axes.scatter(*places[order].T, c=[colors[codes[t]] for t in texts[order]], **look)
        _legend(axes, names, colors, texts)
    axes.set(xticks=[], yticks=[], title=column if title is None else title, xlabel="UMAP 1", ylabel="UMAP 2")
    axes.set_aspect("equal", adjustable="datalim")
    return axes


def confidence(adata: AnnData, *, key_added: str = "scvec", title: str | None = None, ax: Any = None) -> Any:
    """Draw how sure the labels are: per label the spread of the confidence, and the share of each status.

    Parameters
    ----------
    adata, key_added, title, ax
        As for :func:`umap`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is missing, or the object is not annotated.
    """
    from scvec.model.status import STATUS_COLORS

    labels = _texts(_column(adata, f"{key_added}_label"))
    sure = _column(adata, f"{key_added}_confidence").to_numpy(dtype=float)
    status = _texts(_column(adata, f"{key_added}_status"))
    names, numbers = np.unique(labels, return_counts=True)
    names = names[np.lexsort((names, numbers))]  # the largest on top
    axes = _axes(ax, (8.0, 1.2 + 0.34 * len(names)))
    rng = np.random.default_rng(0)
    for y, name in enumerate(names):
        here = np.flatnonzero(labels == name)
        if len(here) > 2_000:
            here = rng.choice(here, 2_000, replace=False)
        jitter = rng.uniform(-0.32, 0.32, len(here))
        for state, color in STATUS_COLORS.items():
            of = status[here] == state
            axes.scatter(sure[here][of], y + jitter[of], s=9, color=color, alpha=0.55, linewidths=0,
                         rasterized=True)  # fmt: skip
        middle = float(np.median(sure[labels == name]))
        axes.plot([middle, middle], [y - 0.4, y + 0.4], color="black", linewidth=1.6)
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    axes.set_yticks(range(len(names)), [f"{_plain(name)} ({counts[name]:,})" for name in names])
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(names) - 0.4), xlabel="confidence")
    axes.set_title("confidence by label (line: median)" if title is None else title)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    there = [s for s in STATUS_COLORS if (status == s).any()]
    marks = [_mark(STATUS_COLORS[s]) for s in there]
    share = [f"{s} ({int((status == s).sum()):,})" for s in there]
    axes.legend(marks, share, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return axes


def confusion(
    adata: AnnData,
    truth_key: str,
    *,
    label_key: str | None = None,
    normalize: bool = True,
    key_added: str = "scvec",
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw labels against those of a column: rows are the column's, columns the annotation's.

    Parameters
    ----------
    truth_key
        Column of obs to compare with.
    label_key
        Column of obs with the labels given; ``scvec_label`` when None.
    normalize
        Show shares of each row; else numbers of cells.
    adata, key_added, title, ax
        As for :func:`umap`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is missing, or a column is.
    """
    truth = _texts(_column(adata, truth_key))
    given = _texts(_column(adata, f"{key_added}_label" if label_key is None else label_key))
    rows, row = np.unique(truth, return_inverse=True)
    names, column = np.unique(given, return_inverse=True)
    counts = np.zeros((len(rows), len(names)))
    np.add.at(counts, (row, column), 1)
    # Rows of one name stand in the order of the columns, so that what agrees lies on the diagonal.
    rank = {name: i for i, name in enumerate(names)}
    most = counts.argmax(axis=1) + 0.5
    order = sorted(range(len(rows)), key=lambda i: (rank.get(rows[i], most[i]), rows[i]))
    counts, rows = counts[order], rows[order]
    shown = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if normalize else counts
    axes = _axes(ax, (2.6 + 0.45 * len(names), 2.0 + 0.38 * len(rows)))
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else None, aspect="auto")
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    sums = counts.sum(axis=1).astype(int)
    axes.set_xticks(range(len(names)), [_plain(n) for n in names], **slanted)
    axes.set_yticks(range(len(rows)), [f"{_plain(r)} ({c:,})" for r, c in zip(rows, sums, strict=True)])
    if shown.size <= 600:
        middle = shown.max() / 2 if shown.size else 0.0
        for i, j in zip(*np.nonzero(counts), strict=True):
            text = _share(float(shown[i, j])) if normalize else f"{shown[i, j]:,.0f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8,
                      color="white" if shown[i, j] > middle else "black")  # fmt: skip
    axes.set(xlabel="label given", ylabel=truth_key)
    axes.set_title(("share of each row" if normalize else "cells") if title is None else title)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    return axes


def _share(value: float) -> str:
    if 0 < value < 0.005 or 0.995 <= value < 1:
        return "<.01" if value < 0.5 else ">.99"
    return "1" if value == 1 else f"{value:.2f}".lstrip("0")


def _axes(ax: Any, size: tuple[float, float]) -> Any:
    from scvec.report.evaluation import need_matplotlib

    need_matplotlib("scvec.pl", "pip install 'scvec[plot]'")
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _column(adata: AnnData, name: str) -> Any:
    if name in adata.obs.columns:
        return adata.obs[name]

    names = [str(c) for c in adata.obs.columns]
    hint = did_you_mean(name, names)
    hint += "annotate the cells first: scvec.annotate(adata, store)" if name.endswith("_label") else ""
    raise InputError(
        f"obs has no column {name!r}",
        "the AnnData object",
        hint or f"columns: {', '.join(names[:12])}",
        code="unknown-column",
    )


def _numeric(values: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return bool(is_numeric_dtype(values.dtype) and not is_bool_dtype(values.dtype))


def _texts(values: Any) -> Strings:
    plain = values.astype(object)
    return np.array(
        ["" if gone else str(v) for v, gone in zip(plain, values.isna(), strict=True)], dtype=np.str_
    )


def _places(adata: AnnData, basis: str | None, key_added: str) -> npt.NDArray[Any]:
    own = f"X_{key_added}_umap"
    found = next((k for k in ([basis] if basis else ["X_umap", own]) if k in adata.obsm), None)
    if found is not None:
        places = np.asarray(adata.obsm[found])
        if places.ndim != 2 or places.shape[1] < 2:
            raise InputError(
                f"obsm[{found!r}] has no two columns",
                "the AnnData object",
                "give another basis",
                code="unknown-column",
            )
        return places[:, :2]
    if basis is not None:
        what = f"obsm has no {basis!r}"
        raise InputError(
            what,
            "the AnnData object",
            f"there are: {', '.join(map(str, adata.obsm)) or 'none'}",
            code="unknown-column",
        )
    if f"X_{key_added}" not in adata.obsm:
        fix = "annotate the cells first: scvec.annotate(adata, store), or run scanpy.tl.umap"
        raise InputError(
            f"obsm has neither X_umap nor X_{key_added}", "the AnnData object", fix, code="unknown-column"
        )
    made = lay_out_cells(np.asarray(adata.obsm[f"X_{key_added}"], dtype=np.float32))
    adata.obsm[own] = made
    return made


def _colors(adata: AnnData, column: str, values: Any, key_added: str) -> tuple[list[str], list[str]]:
    """Return the names of a column and their colours: those in uns, as scanpy keeps them, else our own."""
    from scvec.model.status import GREY, PALETTE

    texts = _texts(values)
    if hasattr(values, "cat"):
        names = [str(c) for c in values.cat.categories]
        kept = adata.uns.get(f"{column}_colors")
        if kept is not None and len(kept) >= len(names):
            colors = [str(c) for c in list(kept)[: len(names)]]
            return (
                ([*names, ""], [*colors, GREY])
                if (texts == "").any() and "" not in names
                else (names, colors)
            )
    else:
        names = sorted(set(texts.tolist()))
    names = [n for n in names if n] + ([""] if (texts == "").any() else [])
    return names, [PALETTE[i % len(PALETTE)] if n else GREY for i, n in enumerate(names)]


def _legend(axes: Any, names: list[str], colors: list[str], texts: Strings) -> None:
    there = [i for i, name in enumerate(names) if (texts == name).any()]
    if len(there) > MAX_LEGEND:
        return
    labels = [f"{_plain(names[i]) or '(none)'} ({int((texts == names[i]).sum()):,})" for i in there]
    axes.legend(
        [_mark(colors[i]) for i in there],
        labels,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        ncols=1 if len(there) <= 20 else 2,
    )


def _mark(color: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker="o", markersize=7, color=color)


def _plain(text: str, width: int = 40) -> str:
    """Return a name for a figure: matplotlib reads what stands between dollar signs as formulas."""
    short = text if len(text) <= width else text[: width - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in short).replace("$", r"\$")
