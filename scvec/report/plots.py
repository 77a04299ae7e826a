"""``scvec.pl``: figures of annotated cells with matplotlib. Each function draws on axes and returns them.

The parameters ``ax``, ``palette`` and ``groupby`` are those of scanpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, did_you_mean
from scvec.report.layout import lay_out_cells

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.model.annotation import Annotation

__all__ = ["confidence", "confusion", "evidence", "names", "novelty", "umap"]

Strings = npt.NDArray[np.str_]
#: Colours of groups: by name, in order, or the name of a colour map of matplotlib.
Palette = Mapping[str, str] | Sequence[str] | str | None

#: With more points, vector formats get one image of all points.
MAX_VECTOR_POINTS = 5_000
#: Most labels in a legend.
MAX_LEGEND = 40


def umap(
    adata: AnnData,
    *,
    color: str | None = None,
    basis: str | None = None,
    palette: Palette = None,
    key_added: str = "scvec",
    size: float | None = None,
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw a UMAP of the cells, coloured by a column.

    Parameters
    ----------
    adata
        Annotated cells (:func:`scvec.annotate`, or the file of ``scvec query -o OUT.h5ad``).
    color
        Column of obs. Default: ``scvec_label``. Numbers get a colour bar, other values a legend.
    basis
        Key of obsm with the coordinates. Default: ``X_umap`` if present, else ``X_scvec_umap``, which is
        computed if missing (UMAP of ``X_scvec``; McInnes et al. 2018, arXiv:1802.03426) and stored.
    palette
        Colours of groups, as a mapping by name, a sequence, or the name of a colour map; for numbers the name
        of a colour map. Default: scanpy's colours in ``uns``.
    key_added
        Prefix of the annotation's columns and keys.
    size
        Area of a point, in square points. Default: from the number of cells.
    ax
        matplotlib axes. Default: new axes.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is not installed, or the object has no such column or coordinates.
    """
    column = f"{key_added}_label" if color is None else color
    values = _column(adata, column)
    places = _places(adata, basis, key_added)
    axes = _axes(ax, (7.5, 5.0))
    n = len(values)
    point = size if size is not None else float(np.clip(15_000 / max(n, 1), 1.0, 20.0))
    look = {"s": point, "linewidths": 0, "rasterized": n > MAX_VECTOR_POINTS}
    # Draw the cells in random order, so that no label covers the others.
    order = np.random.default_rng(0).permutation(n)
    if _numeric(values):
        numbers = values.to_numpy(dtype=float)[order]
        unit = bool(np.nanmin(numbers) >= 0 and np.nanmax(numbers) <= 1) if n else False
        drawn = axes.scatter(*places[order].T, c=numbers, cmap=palette or "viridis", vmin=0 if unit else None,
                             vmax=1 if unit else None, **look)  # fmt: skip
        axes.figure.colorbar(drawn, ax=axes, shrink=0.7)
    else:
        names, colors = _colors(adata, column, values, palette)
        codes = {name: i for i, name in enumerate(names)}
        texts = _texts(values)
        axes.scatter(*places[order].T, c=[colors[codes[t]] for t in texts[order]], **look)
        _legend(axes, names, colors, texts)
    axes.set(xticks=[], yticks=[], title=column if title is None else title, xlabel="UMAP 1", ylabel="UMAP 2")
    axes.set_aspect("equal", adjustable="datalim")
    return axes


def confidence(
    adata: AnnData,
    *,
    groupby: str | None = None,
    palette: Palette = None,
    key_added: str = "scvec",
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw the confidence of every cell, grouped by label and coloured by status.

    Parameters
    ----------
    groupby
        Column of obs for the rows. Default: ``scvec_label``.
    palette
        Colours of the statuses.
    adata, key_added, title, ax
        See :func:`umap`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is not installed, or the object is not annotated.
    """
    axes = _strips(adata, "confidence", groupby, palette, key_added, ax)
    axes.set_title("confidence by label (line: median)" if title is None else title)
    return axes


def novelty(
    adata: AnnData,
    *,
    groupby: str | None = None,
    palette: Palette = None,
    key_added: str = "scvec",
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw the novelty of every cell, grouped by label, with the threshold at 0.5.

    Parameters
    ----------
    adata, groupby, palette, key_added, title, ax
        See :func:`confidence`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is not installed, or the object is not annotated.
    """
    axes = _strips(adata, "novelty", groupby, palette, key_added, ax)
    axes.axvline(0.5, color="0.3", linewidth=1, linestyle=":", zorder=0)
    axes.set_title("novelty by label (novel above 0.5)" if title is None else title)
    return axes


def _strips(adata: AnnData, what: str, groupby: str | None, palette: Palette, key_added: str, ax: Any) -> Any:
    """Draw a row of points per group, coloured by status, at the value (0 to 1) of a column."""
    from scvec.base.display import STATUS_COLORS

    labels = _texts(_column(adata, f"{key_added}_label" if groupby is None else groupby))
    numbers = _column(adata, f"{key_added}_{what}").to_numpy(dtype=float)
    status = _texts(_column(adata, f"{key_added}_status"))
    names, n_cells = np.unique(labels, return_counts=True)
    counts = dict(zip(names, n_cells, strict=True))
    names = names[np.lexsort((names, n_cells))]  # the largest on top
    axes = _axes(ax, (8.0, 1.2 + 0.34 * len(names)))
    colors = dict(STATUS_COLORS)
    if palette is not None:
        colors = dict(zip(colors, _chosen(list(colors), palette), strict=True))
    rng = np.random.default_rng(0)
    for y, name in enumerate(names):
        here = np.flatnonzero(labels == name)
        if len(here) > 2_000:
            here = rng.choice(here, 2_000, replace=False)
        jitter = rng.uniform(-0.32, 0.32, len(here))
        for state, color in colors.items():
            of = status[here] == state
            axes.scatter(numbers[here][of], y + jitter[of], s=9, color=color, alpha=0.55, linewidths=0,
                         rasterized=True)  # fmt: skip
        middle = float(np.median(numbers[labels == name]))
        axes.plot([middle, middle], [y - 0.4, y + 0.4], color="black", linewidth=1.6)
    axes.set_yticks(range(len(names)), [f"{_plain(name)} ({counts[name]:,})" for name in names])
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(names) - 0.4), xlabel=what)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    there = [s for s in colors if (status == s).any()]
    shown = [f"{s} ({int((status == s).sum()):,})" for s in there]
    axes.legend([_mark(colors[s]) for s in there], shown, loc="center left", bbox_to_anchor=(1.01, 0.5),
                frameon=False)  # fmt: skip
    return axes


def evidence(
    annotation: Annotation,
    *,
    labels: Sequence[str] | None = None,
    n_genes: int = 4,
    palette: str | None = None,
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw a dot plot of the genes with the strongest evidence for each label.

    Parameters
    ----------
    annotation
        The result of :func:`scvec.query`. Its cells are read again.
    labels
        Labels to show, as rows. Default: the twelve with the most cells.
    n_genes
        Number of genes per label, those with the strongest evidence.
    palette
        Name of the colour map of expression.
    title, ax
        See :func:`umap`.

    Returns
    -------
    The axes. The area of a dot is the gene's contribution to the log odds of the label (0 if negative), its
    colour the mean expression in the label's cells (log1p of counts per ten thousand).

    Raises
    ------
    InputError, StoreError
        If matplotlib is not installed, or the cells or the reference have changed.
    """
    from scvec.model.explanation import Explainer

    rows = list(annotation.counts())[:12] if labels is None else list(labels)
    with Explainer.of_annotation(annotation) as explainer:
        found = {
            label: {g.symbol: g for g in explainer.label(label, n_genes=10_000, max_cells=100).genes}
            for label in rows
        }
    columns: list[str] = []
    for label in rows:
        best = sorted(found[label].values(), key=lambda g: -g.contribution)[:n_genes]
        columns += [g.symbol for g in best if g.contribution > 0 and g.symbol not in columns]
    points = [
        (x, y, g.contribution, g.expression)
        for y, label in enumerate(rows)
        for x, symbol in enumerate(columns)
        if (g := found[label].get(symbol)) is not None and g.contribution > 0
    ]
    axes = _axes(ax, (2.6 + 0.3 * len(columns), 1.8 + 0.32 * len(rows)))
    if points:
        x, y, adds, level = (np.array(v, dtype=float) for v in zip(*points, strict=True))
        largest = float(adds.max())
        dots = axes.scatter(x, y, s=160 * adds / largest, c=level, cmap=palette or "Reds", vmin=0,
                            edgecolors="0.5", linewidths=0.4)  # fmt: skip
        axes.figure.colorbar(dots, ax=axes, shrink=0.6, label="mean expression")
        sizes = [largest / 4, largest]
        marks = [axes.scatter([], [], s=160 * s / largest, color="0.6") for s in sizes]
        axes.legend(marks, [f"{s:.1f}" for s in sizes], title="log odds", frameon=False, loc="upper left",
                    bbox_to_anchor=(1.0, -0.02), ncols=2)  # fmt: skip
    axes.set_xticks(range(len(columns)), [_plain(c) for c in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [_plain(r) for r in rows])
    axes.set(xlim=(-0.7, len(columns) - 0.3), ylim=(len(rows) - 0.4, -0.6))
    axes.set_title("evidence of genes for each label" if title is None else title)
    return axes


def names(
    report: Any, *, n_names: int = 3, palette: Palette = None, title: str | None = None, ax: Any = None
) -> Any:
    """Draw the most likely cell types of each cluster by its markers, with their probabilities.

    Parameters
    ----------
    report
        The result of :func:`scvec.name`.
    n_names
        Number of names per cluster, the likeliest first.
    palette
        Colours of the first name, the second name and so on.
    title, ax
        See :func:`umap`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    groups = list(report.groups)
    axes = _axes(ax, (7.0, 1.2 + 0.2 * n_names * len(groups)))
    colors = _chosen([str(i) for i in range(n_names)], palette or ["#7fbf7b", "#b8e0b5", "#e3f3e1"])
    height = 0.84 / n_names
    for y, group in enumerate(groups):
        # One bar per name: terms may include one another, so their probabilities do not sum to 1. Those above
        # the first are no other names.
        others = [c for c in group.candidates if not c.above]
        for i, candidate in enumerate(others[:n_names]):
            at = y - 0.42 + height * (i + 0.5)
            axes.barh(at, candidate.probability, height=height, color=colors[i])
            axes.text(0.01, at, _plain(candidate.label), va="center", fontsize=7)
    axes.set_yticks(range(len(groups)), [_plain(str(g.group)) for g in groups])
    axes.set(xlim=(0, 1), ylim=(len(groups) - 0.4, -0.6), xlabel="probability")
    axes.set_title("names by markers" if title is None else title)
    return axes


def confusion(
    adata: AnnData,
    truth_key: str,
    *,
    label_key: str | None = None,
    normalize: bool = True,
    palette: str | None = None,
    key_added: str = "scvec",
    title: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw the confusion matrix: true labels in rows, predicted labels in columns.

    Parameters
    ----------
    truth_key
        Column of obs with the true labels.
    label_key
        Column of obs with the predicted labels. Default: ``scvec_label``.
    normalize
        Show fractions of each row; else numbers of cells.
    palette
        Name of a colour map.
    adata, key_added, title, ax
        See :func:`umap`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        If matplotlib is not installed, or a column is missing.
    """
    truth = _texts(_column(adata, truth_key))
    given = _texts(_column(adata, f"{key_added}_label" if label_key is None else label_key))
    rows, row = np.unique(truth, return_inverse=True)
    names, column = np.unique(given, return_inverse=True)
    counts = np.zeros((len(rows), len(names)))
    np.add.at(counts, (row, column), 1)
    # Rows follow the order of the columns, so that equal labels are on the diagonal.
    rank = {name: i for i, name in enumerate(names)}
    most = counts.argmax(axis=1) + 0.5
    order = sorted(range(len(rows)), key=lambda i: (rank.get(rows[i], most[i]), rows[i]))
    counts, rows = counts[order], rows[order]
    shown = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if normalize else counts
    axes = _axes(ax, (2.6 + 0.45 * len(names), 2.0 + 0.38 * len(rows)))
    image = axes.imshow(shown, cmap=palette or "Blues", vmin=0, vmax=1 if normalize else None, aspect="auto")
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
    axes.set_title(("fraction of each row" if normalize else "cells") if title is None else title)
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
                f"obsm[{found!r}] does not have two columns",
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
            f"obsm has: {', '.join(map(str, adata.obsm)) or 'nothing'}",
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


def _chosen(names: Sequence[str], palette: Mapping[str, str] | Sequence[str] | str) -> list[str]:
    """Return a colour for each name; names missing in a mapping are grey."""
    from scvec.base.display import GREY

    if isinstance(palette, Mapping):
        return [palette.get(name, GREY) for name in names]
    if isinstance(palette, str):
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        shades = colormaps[palette]
        if hasattr(shades, "colors") and shades.N < 256:
            return [to_hex(shades(i % shades.N)) for i in range(len(names))]
        return [to_hex(shades(i / max(len(names) - 1, 1))) for i in range(len(names))]
    return [palette[i % len(palette)] for i in range(len(names))]


def _colors(adata: AnnData, column: str, values: Any, palette: Palette) -> tuple[list[str], list[str]]:
    """Return the categories of a column and their colours: scanpy's in uns, else scvec's."""
    from scvec.base.display import GREY, PALETTE

    texts = _texts(values)
    empty = [""] if (texts == "").any() else []
    if hasattr(values, "cat"):
        names = [str(c) for c in values.cat.categories if str(c)]
    else:
        names = sorted({t for t in texts.tolist() if t})
    kept = adata.uns.get(f"{column}_colors") if hasattr(values, "cat") else None
    if palette is not None:
        colors = _chosen(names, palette)
    elif kept is not None and len(kept) >= len(values.cat.categories):
        by_name = dict(zip(map(str, values.cat.categories), map(str, kept), strict=False))
        colors = [by_name[name] for name in names]
    else:
        colors = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    return [*names, *empty], [*colors, *[GREY] * len(empty)]


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
    """Shorten a name for a figure and escape dollar signs, which matplotlib reads as formulas."""
    short = text if len(text) <= width else text[: width - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in short).replace("$", r"\$")
