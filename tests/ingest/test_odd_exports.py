"""Files as people have them; oracle: the genes and values of the same cells written plainly."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvec
from scvec.base.errors import InputError
from scvec.ingest.cells.source import CellSource
from scvec.model.matching import MatchedSource, match_genes
from scvec.model.resolvers import is_row_numbers, snapshot_resolver

N = 60


@pytest.fixture(scope="module")
def resolver():
    return snapshot_resolver()


@cache
def _plain() -> anndata.AnnData:
    adata = anndata.read_h5ad(Path(scvec.__file__).parent / "data" / "baron_human.h5ad")
    adata = adata[adata.obs["donor"].isin(["human3", "human4"])][:N].copy()
    adata.obs = adata.obs[["cell_type", "donor"]]
    return adata


@pytest.fixture
def cells() -> anndata.AnnData:
    return _plain().copy()


def log1p_cp10k(x: Any) -> sp.csr_matrix:
    totals = np.asarray(x.sum(axis=1)).ravel()
    out = sp.csr_matrix(sp.diags(1e4 / totals) @ x)
    out.data = np.log1p(out.data)
    return out.astype(np.float32)


def genes_of(found: MatchedSource) -> pd.DataFrame:
    """Return (cells x genes) log1p CP10k on the linear scale, of genes that names stand for."""
    x = sp.vstack(list(found.source.chunks()))
    linear = pd.DataFrame(np.expm1(x.toarray().astype(np.float64)), columns=list(found.match.gene_ids))
    linear = linear.loc[:, [gene is not None for gene in found.match.gene_ids]]
    return linear.T.groupby(level=0).sum().T.sort_index(axis=1)


@cache
def _expected(resolver: Any) -> pd.DataFrame:
    return genes_of(match_genes(CellSource.open(_plain().copy()), resolver))


def same(given: Any, resolver: Any, of: anndata.AnnData | None = None) -> tuple[MatchedSource, list[str]]:
    """Check that cells are read as the plain ones are; return the match and the notes."""
    expected = _expected(resolver) if of is None else genes_of(match_genes(CellSource.open(of), resolver))
    found = match_genes(CellSource.open(given), resolver)
    got = genes_of(found)
    shared = expected.columns.intersection(got.columns)
    assert len(shared) >= 0.99 * len(expected.columns)
    np.testing.assert_allclose(got[shared], expected[shared], rtol=2e-3, atol=2e-3)
    return found, [*found.source.notes, *found.notes]


# Row numbers


@pytest.mark.parametrize("column", ["index", "_index", "external_gene_name", "whatever", "gene_symbols"])
@pytest.mark.slow
def test_names_are_found_in_any_column_of_text(column, cells, resolver) -> None:
    cells.var = pd.DataFrame({"biotype": "protein_coding", column: cells.var_names.astype(str)})
    cells.var.index = cells.var.index.astype(str)
    found, _ = same(cells, resolver)
    assert found.summary.endswith(f"(names from var['{column}'])")


@pytest.mark.parametrize(
    "numbers",
    [
        lambda n: range(n),
        lambda n: range(1, n + 1),
        lambda n: [f"{i}.0" for i in range(n)],
        lambda n: [f"X{i}" for i in range(1, n + 1)],
        lambda n: np.random.default_rng(0).permutation(n),
        lambda n: np.sort(np.random.default_rng(0).permutation(3 * n)[:n]),
        lambda n: np.random.default_rng(0).permutation(2 * n)[:n],
        lambda n: [f"g{i}" for i in np.sort(np.random.default_rng(0).permutation(2 * n)[:n])],
    ],
    ids=["zero", "one", "float", "R", "shuffled", "subset", "shuffled-subset", "letter"],
)
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.slow
def test_row_numbers_are_never_genes(numbers, force, cells, resolver) -> None:
    cells.var = pd.DataFrame(index=[str(i) for i in numbers(cells.n_vars)])
    with pytest.raises(InputError, match="row numbers"):
        match_genes(CellSource.open(cells), resolver, force=force)


def test_entrez_ids_are_genes_in_any_number_and_order(cells, resolver) -> None:
    entrez = resolver._names["human"].exact["entrez"]
    number_of = {genes[0]: number for number, genes in entrez.items() if len(genes) == 1}
    ids = [number_of.get(g) for g in resolver.resolve(list(cells.var_names), "human").gene_ids]
    kept = [i for i, number in enumerate(ids) if number is not None]
    part = cells[:, kept].copy()
    plain = part.copy()
    part.var = pd.DataFrame(index=[str(ids[i]) for i in kept])
    same(part, resolver, plain)
    low = sorted(range(len(kept)), key=lambda i: int(part.var_names[i]))[:800]
    for order in (low, low[::-1]):
        found = match_genes(CellSource.open(part[:, order].copy()), resolver)
        assert found.share > 0.99 and found.match.id_type == "Entrez ids"


def test_forms_of_row_numbers() -> None:
    assert is_row_numbers([str(i) for i in range(10)]) and not is_row_numbers([str(i) for i in range(9)])
    assert not is_row_numbers([*map(str, range(10)), "INS"]) and not is_row_numbers([])


@pytest.mark.parametrize("n", [None, 12000])
def test_x_with_names_is_used_instead_of_raw_with_row_numbers(n, cells, resolver) -> None:
    some = np.sort(np.random.default_rng(1).permutation(cells.n_vars)[:n])
    numbered = anndata.AnnData(
        cells.X[:, some], obs=cells.obs, var=pd.DataFrame(index=[str(i) for i in some])
    )
    cells.raw, cells.X = numbered, log1p_cp10k(cells.X)
    found, notes = same(cells, resolver)
    assert found.source.state.where == "X"
    assert "did not use raw: the names of its genes are unknown; used X" in notes


# Names


def _far(name: str) -> str:
    return f"{name}__chr{sum(map(ord, name)) % 19 + 1}"


@pytest.mark.parametrize(
    "spell",
    [
        _far,
        lambda n: f"GRCh38-{n}",
        lambda n: f"hg19-{n}",
        lambda n: f"hg38.{n}",
        lambda n: f"rna_{n}",
        lambda n: f'"{n}"',
        lambda n: f"b'{n}'",
        lambda n: f"{n}|NM_{sum(map(ord, n)):06d}|PolyA",
        # Neighbours of these.
        lambda n: f'"hg19_{_far(n)}"',
        lambda n: f"{sum(map(ord, n))}:{n}",
        lambda n: f"gene-{n}",
        lambda n: f"{n} (human)",
        lambda n: f"{n}/Homo_sapiens",
        lambda n: f"chr{sum(map(ord, n)) % 19};{n};+",
        lambda n: f"E{sum(map(ord, n))}\t{n}\tGene Expression",  # a line of features.tsv
        lambda n: f"{n}\t{sum(map(ord, n))}",
    ],
)
@pytest.mark.slow
def test_common_prefixes_and_suffixes_of_names_are_removed(spell, cells, resolver) -> None:
    top = cells.var_names[int(np.argmax(np.asarray(cells.X.sum(axis=0)).ravel()))]
    cells.var_names = [spell(name) for name in cells.var_names]
    _, notes = same(cells, resolver)
    assert any(f"'{spell(top)}' were read as" in note and top in note for note in notes)


@pytest.mark.parametrize("lower", [False, True])
def test_ids_of_hgnc_are_genes(lower, cells, resolver) -> None:
    ids = resolver.resolve(list(cells.var_names), "human").gene_ids
    kept = [i for i, gene in enumerate(ids) if gene is not None]
    cells = cells[:, kept].copy()
    plain = cells.copy()
    cells.var_names = [str(ids[i]).lower() if lower else str(ids[i]) for i in kept]
    found, _ = same(cells, resolver, plain)
    assert found.match.id_type == "nomenclature ids"


@pytest.mark.parametrize(
    "names",
    [
        ["CD3-AB", "CD19-AB", "CD45RA-AB"],
        ["CD3_prot", "IgG1_prot"],
        ["CD3 (ADT)", "CD14 (ADT)"],
        ["CD3E|CD3E|AHS0231|pAbO", "CD19|CD19|AHS0030|pAbO"],
        ["CD3-ADT", "CD19-HTO"],
        ["CD3", "CD4", "CD8a", "CD19", "CD45RA", "HLA-DR", "TIGIT", "IgG1_isotype", "CD56"],
        ["anti-human CD3", "anti-human CD4", "CD16.1", "CD25", "TCRab", "CD127", "PD-1"],
        ["__no_feature", "__ambiguous", "__too_low_aQual", "__not_aligned", "__alignment_not_unique"],
        ["N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"],
        ["no_feature", "not_aligned", "alignment_not_unique"],
    ],
)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.slow
def test_proteins_and_summary_rows_are_left_out(names, first, cells, resolver) -> None:
    if first and "CD4" in "".join(names):
        return  # a block without marks is told by being the last
    more = sp.csr_matrix(np.full((cells.n_obs, len(names)), 5000, np.float32))
    x, var = [cells.X, more], [list(cells.var_names), names]
    if first:
        x, var = x[::-1], var[::-1]
    var = pd.DataFrame(index=[*var[0], *var[1]])
    mixed = anndata.AnnData(sp.hstack(x, format="csr"), obs=cells.obs, var=var)
    _, notes = same(mixed, resolver)
    assert any(f"dropped {len(names)} non-gene features" in note for note in notes)


def test_genes_like_antibodies_stay_where_genes_go_on(cells, resolver) -> None:
    names = ["CD3E", "CD19", "CD4", "CD8A", "HLA-A", "HLA-B"]
    part = cells[:, [n for n in names if n in cells.var_names]].copy()
    part.X[:, 0] = 3
    assert CellSource.open(part).n_vars == part.n_vars
    order = [n for n in cells.var_names if n not in names] + list(part.var_names)[:4]
    assert CellSource.open(cells[:, order].copy()).n_vars == len(order)


def test_unknown_names_shown_are_those_with_most_counts(cells, resolver) -> None:
    cells.var_names = [f"odd{i}x" for i in range(cells.n_vars)]
    top = cells.var_names[int(np.argmax(np.asarray(cells.X.sum(axis=0)).ravel()))]
    with pytest.raises(InputError) as caught:
        match_genes(CellSource.open(cells), resolver)
    assert f"names like '{top}'" in caught.value.where


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ENST{:011d}", "transcript"),
        ("ENST{:011d}.2", "transcript"),
        ("ENSRNOG{:011d}", "rat"),
        ("ENSMMUG{:011d}", "rhesus"),
        ("FBgn{:07d}", "fruit fly"),
        ("ENSBTAG{:011d}", "cow"),
        ("ILMN_{}", "microarray"),
    ],
)
@pytest.mark.slow
def test_ids_of_other_things_are_named(name, hint, cells, resolver) -> None:
    cells.var_names = [name.format(i) for i in range(cells.n_vars)]
    with pytest.raises(InputError) as caught:
        match_genes(CellSource.open(cells), resolver)
    assert hint in caught.value.fix


def test_a_transposed_matrix_is_recognised(cells, resolver) -> None:
    for names in (None, [f"AAAC{i}-1" for i in range(N)], [str(i) for i in range(N)]):
        given = cells.T.copy()
        if names is not None:
            given.var_names = names
        with pytest.raises(InputError) as caught:
            match_genes(CellSource.open(given), resolver)
        assert "adata.T" in caught.value.fix
