"""Files joined from samples with different genes; oracle: the removed genes, and each sample alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

import scvec
from scvec.ingest.cells.source import CellSource
from scvec.model.unmeasured import unmeasured_somewhere

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


def found_in(adata: anndata.AnnData) -> tuple[set[str], dict[str, int]]:
    source = CellSource.open(adata, columns=False)
    missing, batches = unmeasured_somewhere(source)
    return {source.var_names[i] for i in np.flatnonzero(missing)}, batches


@pytest.mark.parametrize("column", ["donor", "batch", "Sample_ID", "orig.ident", "dataset", None])
@pytest.mark.slow
def test_genes_that_a_sample_did_not_measure_are_found(column, cells) -> None:
    _, both, gone = joined(cells)
    both.obs = both.obs[["donor"]].rename(columns={"donor": column or "other"})
    names, batches = found_in(both)
    common = {g for g in gone if g in both.var_names and (both[:, g].X > 0).mean() > 0.1}
    assert len(common) > 500 and common <= names
    assert len(names - gone) < 0.03 * len(names)
    if column:
        assert list(batches) == [f"{column} {both.obs[column].iloc[-1]}"]


def test_samples_in_any_order_of_cells(cells) -> None:
    _, both, gone = joined(cells)
    names, _ = found_in(both[np.random.default_rng(1).permutation(both.n_obs)].copy())
    assert len(names & gone) > 500


@pytest.mark.parametrize("species", ["human", "mouse"])
@pytest.mark.parametrize("keep", [True, False])
def test_files_of_one_study_lack_nothing(species, keep) -> None:
    adata = anndata.read_h5ad(DATA.with_name(f"baron_{species}.h5ad"))
    if not keep:
        adata.obs = adata.obs[[]]
    assert found_in(adata) == (set(), {})


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
    for part, donor in zip(parts, donors, strict=True):
        alone = scvec.query(store, part)
        expected = float(np.mean(alone.label == part.obs["cell_type"].astype(str).to_numpy()))
        assert not any("outer join" in n for n in alone.notes)
        assert right[(both.obs["donor"] == donor).to_numpy()].mean() >= expected - 0.01


def test_a_joined_reference_is_warned_of(cells, tmp_path: Path, new_store: Callable[[Path], Path]) -> None:
    _, both, _ = joined(cells)
    report = scvec.ingest_cells(
        new_store(tmp_path / "store"), [both], name="joined", label_key="cell_type", min_cells=5
    )
    assert sum("outer join" in note for note in report.notes) == 1
