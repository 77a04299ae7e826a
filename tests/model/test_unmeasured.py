"""Files joined from samples with different genes; oracle: the removed genes, and each sample alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

import scvec
from scvec.ingest.cells.source import CellSource
from scvec.model.unmeasured import gene_sets
from scvec.stores.store.store import Store

DATA = Path(scvec.__file__).parent / "data" / "baron_human.h5ad"


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    adata = anndata.read_h5ad(DATA)
    adata.obs = adata.obs[["cell_type", "donor"]]
    return adata


def joined(
    adata: anndata.AnnData, share: float = 0.3
) -> tuple[list[anndata.AnnData], anndata.AnnData, set[str]]:
    """Return two donors, one of which lacks some genes, the file of both, and those genes."""
    donors = sorted(adata.obs["donor"].unique())[-2:]
    parts = [adata[(adata.obs["donor"] == d).to_numpy()].copy() for d in donors]
    kept = np.random.default_rng(0).random(adata.n_vars) >= share
    parts[1] = parts[1][:, kept].copy()
    return parts, anndata.concat(parts, join="outer"), set(adata.var_names[~kept])


def found_in(adata: anndata.AnnData) -> list[tuple[str, set[str], set[str]]]:
    """Return what the parts are called, their cells, and the genes that they lack."""
    source = CellSource.open(adata, columns=False)
    names, genes = np.array(source.obs_names), np.array(source.var_names)
    return [(s.name, set(names[s.rows]), set(genes[s.missing])) for s in gene_sets(source)]


def cut(
    adata: anndata.AnnData, lacks: list[float], *, same: bool = False, seed: int = 0
) -> tuple[anndata.AnnData, list[tuple[set[str], set[str]]]]:
    """Return cells cut at random in parts that lack this part of the genes each, joined and shuffled.

    Also the names of the cells of each part, and the genes that it lacks.
    """
    rng = np.random.default_rng(seed)
    parts, truth = [], []
    for k, rows in enumerate(np.array_split(rng.permutation(adata.n_obs), len(lacks))):
        part = adata[np.sort(rows)]
        kept = np.random.default_rng(seed if same else k).random(adata.n_vars) >= lacks[k]
        parts.append(part[:, kept].copy())
        parts[-1].obs["part"] = f"part {k}"
        truth.append((set(part.obs_names), set(adata.var_names[~kept])))
    both = anndata.concat(parts, join="outer")
    return both[rng.permutation(both.n_obs)].copy(), truth


@pytest.mark.parametrize("column", ["donor", "Sample_ID", "orig.ident", "Wer war's? (µ)", None])
@pytest.mark.slow
def test_genes_that_a_sample_did_not_measure_are_found(column, cells) -> None:
    parts, both, gone = joined(cells)
    both.obs = both.obs[["donor"]].rename(columns={"donor": column or "other"})
    [whole, lacking] = sorted(found_in(both), key=lambda part: len(part[2]))
    common = {g for g in gone if g in both.var_names and (both[:, g].X > 0).mean() > 0.1}
    assert len(common) > 500 and common <= lacking[2] and not whole[2]
    assert len(lacking[2] - gone) < 0.03 * len(lacking[2])
    assert lacking[1] == set(parts[1].obs_names) and whole[1] == set(parts[0].obs_names)
    named = column in ("donor", "Sample_ID", "orig.ident")
    assert lacking[0] == (f"{column} {both.obs[column].iloc[-1]}" if named else f"{parts[1].n_obs:,} cells")


@pytest.mark.parametrize(
    ("lacks", "same", "column"),
    [
        *itertools.product([[0.0, 0.2], [0.2, 0.2, 0.2], [0.0, 0.4, 0.4]], [False], ["batch", None]),
        *itertools.product([[0.5, *[0.0] * 9]], [True], ["batch", None]),
        *itertools.product([[0.0, 0.95]], [False], ["batch", None]),
        # Without a column, the tenth that measured all is too small to be a group of its own.
        ([0.0, *[0.3] * 9], True, "batch"),
    ],
    ids=str,
)
@pytest.mark.slow
def test_parts_of_any_gene_sets_in_any_order(lacks, same, column, cells) -> None:
    both, truth = cut(cells, lacks, same=same)
    both.obs = both.obs[["part"]].rename(columns={"part": column or "other"})
    expected: dict[frozenset[str], set[str]] = {}
    for names, gone in truth:
        expected.setdefault(frozenset(gone), set()).update(names)
    found = found_in(both)
    assert sorted(map(sorted, (names for _, names, _ in found))) == sorted(map(sorted, expected.values()))
    for gone, names in expected.items():
        [lacking] = [genes for _, there, genes in found if there == names]
        lost = {g for g in gone if g in both.var_names}
        assert len(lacking - lost) <= 0.03 * len(lacking) and len(lacking & lost) >= 0.4 * len(lost)


@pytest.mark.parametrize("species", ["human", "mouse"])
@pytest.mark.parametrize("keep", [True, False])
def test_files_of_one_study_lack_nothing(species, keep) -> None:
    adata = anndata.read_h5ad(DATA.with_name(f"baron_{species}.h5ad"))
    if not keep:
        adata.obs = adata.obs[[]]
    assert found_in(adata) == []


def test_the_first_cells_of_a_sample_lack_genes_that_later_ones_have(cells) -> None:
    adata = cells[np.argsort(cells.obs["donor"].astype(str), kind="stable")].copy()
    first = np.flatnonzero((adata.obs["donor"] == adata.obs["donor"].iloc[-1]).to_numpy())[:100]
    counts = adata.X.toarray()
    counts[first, ::2] = 0
    adata.X = sp.csr_matrix(counts)
    [_, (_, lacking, genes)] = found_in(adata)
    assert lacking == set(adata.obs_names[first])
    assert len(genes) > 500 and len(genes - set(adata.var_names[::2])) <= 0.03 * len(genes)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"donor": "d1"}, {"sample": "s1"}),  # studies with columns of their own
        ({"donor": "d1"}, {}),
        ({"donor": "d1", "batch": "b1"}, {"donor": "d2", "batch": "b1"}),
    ],
    ids=str,
)
def test_cells_without_a_value_in_a_batch_column_are_a_batch(first, second, cells) -> None:
    parts, _, gone = joined(cells)
    for part, values in zip(parts, (first, second), strict=True):
        part.obs = part.obs[[]].assign(**values)
    whole, lacking = sorted(found_in(anndata.concat(parts, join="outer")), key=lambda part: len(part[2]))
    assert whole[1] == set(parts[0].obs_names) and lacking[1] == set(parts[1].obs_names)
    assert len(lacking[2] - gone) < 0.03 * len(lacking[2])


def test_batches_of_two_columns_that_are_too_small_together(cells) -> None:
    adata = cells[:220].copy()
    counts = adata.X.toarray()
    one, two = (np.isin(np.arange(220) // 55, k) for k in ([0, 1], [0, 2]))
    counts[np.ix_(one, np.arange(adata.n_vars) % 2 == 0)] = 0
    counts[np.ix_(two, np.arange(adata.n_vars) % 3 == 0)] = 0
    adata.X = sp.csr_matrix(counts)
    adata.obs = adata.obs[[]].assign(batch=one.astype(str), sample=two.astype(str))
    # Three of the four batches that both columns make are thinned below the size that tells anything.
    some = np.concatenate([np.arange(55), 55 + np.arange(15), 110 + np.arange(15), 165 + np.arange(15)])
    gene_sets(CellSource.open(adata[np.sort(some)].copy(), columns=False))


def test_imputed_cells_lack_nothing(cells) -> None:
    adata = cells[:250].copy()
    adata.X = adata.X.toarray() + 0.01
    adata.obs = adata.obs[[]]
    assert found_in(adata) == []


@pytest.mark.parametrize("column", ["cell_type", None])
def test_types_of_cells_are_no_samples(column, cells) -> None:
    adata = cells.copy()
    adata.obs = adata.obs[["cell_type"]] if column else adata.obs[[]]
    assert found_in(adata[np.argsort(cells.obs["cell_type"].astype(str), kind="stable")].copy()) == []


@pytest.mark.slow
def test_joined_samples_are_annotated_as_each_alone(
    cells, tmp_path: Path, new_store: Callable[[Path], Path]
) -> None:
    parts, both, _ = joined(cells)
    donors = [p.obs["donor"].iloc[0] for p in parts]
    reference = cells[~cells.obs["donor"].isin(donors)].copy()
    store = new_store(tmp_path / "store")
    scvec.ingest_cells(store, [reference], name="two", label_key="cell_type", min_cells=5)
    annotated = scvec.query(store, both)
    right = annotated.label == both.obs["cell_type"].astype(str).to_numpy()
    assert any(
        n.startswith("warning:") and "outer join" in n and str(donors[1]) in n for n in annotated.notes
    )
    assert [p["n_cells"] for p in annotated.parameters["gene_sets"]] == sorted(
        (p.n_obs for p in parts), reverse=True
    )
    assert annotated.cells.tolist() == both.obs_names.tolist()
    for part, donor in zip(parts, donors, strict=True):
        alone = scvec.query(store, part)
        expected = float(np.mean(alone.label == part.obs["cell_type"].astype(str).to_numpy()))
        assert not any("outer join" in n for n in alone.notes)
        here = (both.obs["donor"] == donor).to_numpy()
        assert right[here].mean() >= 0.99 * expected
        # As a file of its own: rare genes that no cell of it has are all that may differ.
        assert np.mean(annotated.label[here] == alone.label) > 0.99
        assert np.abs(annotated.novelty[here] - alone.novelty).mean() < 0.02
    # Cells of both lie in one space: a type is nearer to itself in the other donor than to other types.
    sizes = both.obs.groupby(["cell_type", "donor"], observed=True).size().unstack(fill_value=0)
    common = list(sizes.index[(sizes >= 20).all(axis=1)])
    first, second = (
        np.array(
            [
                annotated.vectors[((both.obs["cell_type"] == t) & (both.obs["donor"] == d)).to_numpy()].mean(
                    0
                )
                for t in common
            ]
        )
        for d in donors
    )
    away = np.linalg.norm(first[:, None] - second[None], axis=2)
    assert len(common) >= 3 and (away.argmin(axis=1) == np.arange(len(common))).all()


@pytest.mark.slow
def test_evidence_of_cells_that_lack_genes(cells, tmp_path: Path, new_store: Callable[[Path], Path]) -> None:
    _, both, gone = joined(cells)
    donors = both.obs["donor"].unique()
    store = new_store(tmp_path / "store")
    reference = cells[~cells.obs["donor"].isin(donors)].copy()
    scvec.ingest_cells(store, [reference], name="two", label_key="cell_type", min_cells=5)
    annotated = scvec.query(store, both)
    lacking = int(np.flatnonzero((both.obs["donor"] == donors[-1]).to_numpy())[0])
    told = annotated.explain(cell=str(annotated.cells[lacking]), n_genes=50)
    assert told.label == annotated.label[lacking]
    assert not {g.symbol for g in told.genes} & gone


@pytest.mark.slow
def test_cells_that_lack_genes_are_appended(cells, tmp_path: Path, new_store: Callable[[Path], Path]) -> None:
    _, both, _ = joined(cells)
    store = new_store(tmp_path / "store")
    reference = cells[~cells.obs["donor"].isin(both.obs["donor"].unique())].copy()
    scvec.ingest_cells(store, [reference], name="two", label_key="cell_type", min_cells=5)
    both = both[both.obs["cell_type"].isin(Store(store).reference("two").meta["classes"])]
    mixed = both[np.random.default_rng(2).permutation(both.n_obs)].copy()
    report = scvec.append_cells(store, [mixed], name="two", label_key="cell_type")
    assert any("outer join" in note for note in report.notes)
    stored = Store(store).reference("two")
    assert stored.obs.index[-mixed.n_obs :].tolist() == mixed.obs_names.tolist()
    first = stored.vectors[-mixed.n_obs :]
    [of_whole] = [p for p in gene_sets(CellSource.open(mixed)) if not p.missing.any()]
    found = scvec.query(store, both[mixed.obs_names[of_whole.rows[:1]]].copy())
    np.testing.assert_allclose(first[of_whole.rows[0]], found.vectors[0], atol=1e-5)


def test_a_joined_reference_is_warned_of(cells, tmp_path: Path, new_store: Callable[[Path], Path]) -> None:
    _, both, _ = joined(cells)
    report = scvec.ingest_cells(
        new_store(tmp_path / "store"), [both], name="joined", label_key="cell_type", min_cells=5
    )
    assert sum("outer join" in note for note in report.notes) == 1
