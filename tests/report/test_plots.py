"""Figures of annotated cells: the drawn data equal the columns, and the axes are returned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

import scvec
from scvec.base.errors import InputError

pytest.importorskip("matplotlib")

LABELS = ["alpha", "beta", "$x$"]


@pytest.fixture(autouse=True)
def _no_window() -> Any:
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.fixture
def adata() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    n = 60
    label = np.array(LABELS)[np.arange(n) % 3]
    truth = label.copy()
    truth[:6] = "!new"
    obs = pd.DataFrame(
        {
            "scvec_label": pd.Categorical(label),
            "scvec_confidence": rng.uniform(0.5, 1, n).astype(np.float32),
            "scvec_status": pd.Categorical(["confident"] * 50 + ["novel"] * 10),
            "truth": truth,
            "gappy": pd.Categorical([None, "x"] * 30),
        },
        index=[f"c{i}" for i in range(n)],
    )
    made = anndata.AnnData(np.ones((n, 3), np.float32), obs=obs)
    made.obsm["X_umap"] = rng.normal(size=(n, 2))
    made.obsm["X_scvec"] = rng.normal(size=(n, 8)).astype(np.float32)
    made.uns["scvec_label_colors"] = np.array(["#111111", "#222222", "#333333"], dtype=object)
    return made


def drawn(axes: Any) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    axes.figure.savefig(buffer, dpi=40)
    return buffer.getvalue()


def test_umap_takes_the_colours_of_uns(adata: anndata.AnnData):
    from matplotlib.colors import to_hex

    axes = scvec.pl.umap(adata)
    [points] = axes.collections
    pairs = zip(np.asarray(points.get_offsets()), points.get_facecolors(), strict=True)
    at = {tuple(place): to_hex(color) for place, color in pairs}
    names = adata.obs["scvec_label"].cat.categories
    for i, place in enumerate(adata.obsm["X_umap"]):
        color = adata.uns["scvec_label_colors"][names.get_loc(adata.obs["scvec_label"].iloc[i])]
        assert at[tuple(place)] == color
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert "alpha (20)" in texts and any("x" in t and r"\$" in t for t in texts)
    drawn(axes)  # a label between dollar signs is no formula


def test_umap_of_numbers_of_gaps_and_on_given_axes(adata: anndata.AnnData):
    import matplotlib.pyplot as plt

    axes = plt.subplots()[1]
    assert scvec.pl.umap(adata, color="scvec_confidence", ax=axes, title="sure") is axes
    assert axes.get_title() == "sure" and axes.collections[0].get_clim() == (0, 1)
    texts = [t.get_text() for t in scvec.pl.umap(adata, color="gappy").get_legend().get_texts()]
    assert texts == ["x (30)", "(none) (30)"]


def test_umap_makes_its_own_places_once(adata: anndata.AnnData):
    del adata.obsm["X_umap"]
    scvec.pl.umap(adata)
    made = adata.obsm["X_scvec_umap"]
    assert made.shape == (60, 2) and np.isfinite(made).all()
    scvec.pl.umap(adata)
    assert adata.obsm["X_scvec_umap"] is made
    assert scvec.pl.umap(adata, basis="X_scvec").get_title() == "scvec_label"


def test_confidence_has_a_row_a_label(adata: anndata.AnnData):
    axes = scvec.pl.confidence(adata)
    assert sorted(t.get_text() for t in axes.get_yticklabels()) == [r"\$x\$ (20)", "alpha (20)", "beta (20)"]
    assert {t.get_text() for t in axes.get_legend().get_texts()} == {"confident (50)", "novel (10)"}
    shown = sum(len(c.get_offsets()) for c in axes.collections)
    assert shown == adata.n_obs
    drawn(axes)


def test_confusion_against_pandas(adata: anndata.AnnData):
    shares = pd.crosstab(adata.obs["truth"], adata.obs["scvec_label"].astype(str), normalize="index")
    axes = scvec.pl.confusion(adata, "truth")
    image = np.asarray(axes.images[0].get_array())
    rows = [t.get_text().rpartition(" (")[0].replace("\\", "") for t in axes.get_yticklabels()]
    columns = [t.get_text().replace("\\", "") for t in axes.get_xticklabels()]
    np.testing.assert_allclose(image, shares.loc[rows, columns].to_numpy())
    assert set(rows) == {"alpha", "beta", "$x$", "!new"}
    own = [r for r in rows if r in columns]
    assert own == columns, "what agrees lies on the diagonal"
    assert rows[:2] == ["$x$", "!new"], "a name of its own stands by the label that most of its cells get"
    counts = scvec.pl.confusion(adata, "truth", normalize=False)
    assert np.asarray(counts.images[0].get_array()).sum() == adata.n_obs
    drawn(axes)


def test_missing_columns_and_coordinates_are_errors(adata: anndata.AnnData, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="no column 'truht'") as caught:
        scvec.pl.confusion(adata, "truht")
    assert "'truth'" in caught.value.fix
    with pytest.raises(InputError, match="no 'X_pca'"):
        scvec.pl.umap(adata, basis="X_pca")
    with pytest.raises(InputError, match="no column 'mine_label'") as caught:
        scvec.pl.umap(adata, key_added="mine")
    assert "scvec.annotate" in caught.value.fix
    del adata.obsm["X_umap"], adata.obsm["X_scvec"]
    with pytest.raises(InputError, match="neither X_umap nor X_scvec"):
        scvec.pl.umap(adata)
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="needs matplotlib"):
        scvec.pl.confidence(adata)


def test_palettes_work_as_in_scanpy(adata: anndata.AnnData):
    from matplotlib.colors import to_hex

    def colors(palette: Any) -> set[str]:
        [points] = scvec.pl.umap(adata, palette=palette).collections
        return {to_hex(c) for c in points.get_facecolors()}

    [grey] = colors({})
    assert colors({"alpha": "#ff0000", "beta": "#00ff00"}) == {"#ff0000", "#00ff00", grey}
    assert colors(["#ff0000", "#00ff00", "#0000ff"]) == {"#ff0000", "#00ff00", "#0000ff"}
    assert len(colors("tab10")) == 3
    assert scvec.pl.umap(adata, color="scvec_confidence", palette="magma").collections[0].cmap.name == "magma"


def test_novelty_shows_every_cell_by_group(adata: anndata.AnnData):
    adata.obs["scvec_novelty"] = np.linspace(0, 1, adata.n_obs)
    axes = scvec.pl.novelty(adata, groupby="truth")
    shown = {t.get_text().rpartition(" (")[0] for t in axes.get_yticklabels()}
    assert shown == {"!new", "alpha", "beta", r"\$x\$"}
    places = np.concatenate([c.get_offsets()[:, 0] for c in axes.collections])
    np.testing.assert_allclose(np.sort(places), adata.obs["scvec_novelty"])


def test_names_are_bars_of_their_probability():
    candidate = [
        SimpleNamespace(label=f"type {i}", probability=p, above=p == 0.9)
        for i, p in enumerate((0.6, 0.9, 0.3, 0.05, 0.05))
    ]
    report = SimpleNamespace(groups=[SimpleNamespace(group=str(k), candidates=candidate) for k in range(2)])
    axes = scvec.pl.names(report)
    assert [round(b.get_width(), 2) for b in axes.patches] == [0.6, 0.3, 0.05] * 2
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "1"]
    drawn(axes)


@pytest.mark.slow
def test_evidence_has_a_dot_for_a_gene_that_supports_a_label(tmp_path: Any, tiny_adata: Any, new_store: Any):
    store = new_store(tmp_path / "store")
    scvec.ingest_cells(store, [tiny_adata(90, classes=3)], name="tiny", label_key="cell_type", encoder="pca")
    found = scvec.query(store, tiny_adata(30, classes=3, seed=1))
    axes = scvec.pl.evidence(found, n_genes=3)
    labels = [t.get_text() for t in axes.get_yticklabels()]
    genes = [t.get_text() for t in axes.get_xticklabels()]
    assert labels == list(found.counts()) and len(genes) == len(set(genes)) >= len(labels)
    dots = axes.collections[0]
    sizes = {tuple(p): s for p, s in zip(dots.get_offsets().tolist(), dots.get_sizes(), strict=True)}
    for y, label in enumerate(labels):
        told = [g for g in found.explain(label=label, n_genes=500).genes if g.symbol in genes]
        for g in told:
            if g.contribution > 1e-3:
                assert (genes.index(g.symbol), y) in sizes
    drawn(axes)
