"""Values of every kind become log1p CP10k; oracle: the counts that they were made of."""

from __future__ import annotations

import math

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.cli.options import VALUES as CLI_VALUES
from scvec.ingest.cells.expression import ExpressionState, MatrixProfile, normalize
from scvec.ingest.cells.source import CellSource, FileRows, recipe_of
from scvec.ingest.cells.values import VALUES, best_transform, detect_state
from scvec.model.annotation import novel_notes
from scvec.model.matching import MatchedSource, settle_values
from scvec.model.resolvers import GeneMap

LENGTHS = np.random.default_rng(7).uniform(0.2, 5, 2000)


def counts(seed: int = 0, n: int = 60, genes: int = 500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.3, 3, (n, 1))
    return rng.poisson(rng.gamma(0.4, 3, genes) * depth).astype(np.float64)


def cp(x: np.ndarray, target: float = 1e4) -> np.ndarray:
    return x * target / x.sum(1, keepdims=True)


def tpm(x: np.ndarray) -> np.ndarray:
    return cp(x / LENGTHS[: x.shape[1]], 1e6)


def estimated(x: np.ndarray) -> np.ndarray:
    """Some reads of RSEM fall on several genes."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(x.shape) < 0.3, np.round(x * rng.uniform(0.5, 1, x.shape), 2), x)


def corrected(x: np.ndarray) -> np.ndarray:
    """DecontX subtracts the ambient part of each count."""
    return x * np.random.default_rng(2).beta(40, 3, x.shape)


#: name -> (linear values, what is done to them, kind)
TRANSFORMS = {
    "counts": (lambda x: x, lambda v: v, "counts"),
    "log1p CP10k": (cp, np.log1p, "log1p_cp10k"),
    "log1p CPM": (lambda x: cp(x, 1e6), np.log1p, "log"),
    "log2 CPM": (lambda x: cp(x, 1e6), lambda v: np.log2(v + 1), "log"),
    "log2 CP10k": (cp, lambda v: np.log2(v + 1), "log"),
    "log10 CPM": (lambda x: cp(x, 1e6), lambda v: np.log10(v + 1), "log"),
    "log2 TPM": (tpm, lambda v: np.log2(v + 1), "log"),
    "log1p TPM": (tpm, np.log1p, "log"),
    "log2 TPM/10": (tpm, lambda v: np.log2(v / 10 + 1), "log"),
    "log1p CP-median": (lambda x: cp(x, np.median(x.sum(1))), np.log1p, "log"),
    "log1p counts": (lambda x: x, np.log1p, "log"),
    "log2 counts": (lambda x: x, lambda v: np.log2(v + 1), "log"),
    "sqrt counts": (lambda x: x, np.sqrt, "sqrt"),
    "arcsinh counts": (lambda x: x, np.arcsinh, "arcsinh"),
    "arcsinh CP10k": (cp, np.arcsinh, "arcsinh"),
    "CPM": (lambda x: cp(x, 1e6), lambda v: v, "linear"),
    "CP10k": (cp, lambda v: v, "linear"),
    "TPM": (tpm, lambda v: v, "linear"),
    "estimated counts": (estimated, lambda v: v, "estimated_counts"),
    "corrected counts": (corrected, lambda v: v, "estimated_counts"),
}
#: Those of which part of the genes tells what whole cells add up to.
OF_PARTS = [
    "log1p CP10k",
    "log1p CPM",
    "log2 CPM",
    "log2 CP10k",
    "log10 CPM",
    "log1p CP-median",
    "CPM",
    "CP10k",
]


def made(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the stored values, float32, and their log1p CP10k."""
    linear, done, _ = TRANSFORMS[name]
    return done(linear(x)).astype(np.float32), np.log1p(cp(linear(x)))


def state_of(values: np.ndarray, told: str = "auto") -> ExpressionState:
    profile = MatrixProfile()
    block = sp.csr_matrix(values)
    block.eliminate_zeros()
    profile.add(block)
    return detect_state(profile, "X", told)


def adata_of(values: np.ndarray) -> anndata.AnnData:
    with np.errstate(over="ignore"):  # one value is too large for float32, as it may be in a file
        adata = anndata.AnnData(sp.csr_matrix(values.astype(np.float32)))
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"G{i}" for i in range(adata.n_vars)]
    return adata


def read(values: np.ndarray, size: int | None = None) -> tuple[np.ndarray, ExpressionState]:
    with CellSource.open(adata_of(values)) as source:
        return sp.vstack(list(source.chunks(size))).toarray(), source.state


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=12)
@given(seed=st.integers(0, 10_000))
def test_any_transform_is_undone(name: str, seed: int) -> None:
    values, wanted = made(name, counts(seed))
    state = state_of(values)
    assert state.kind == TRANSFORMS[name][2], state.message
    np.testing.assert_allclose(normalize(sp.csr_matrix(values), state).toarray(), wanted, atol=2e-3)


@pytest.mark.parametrize("name", OF_PARTS)
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_part_of_the_genes_is_enough_where_values_are_multiples_of_one_count(name: str, seed: int) -> None:
    values, wanted = made(name, counts(seed, genes=1500))
    part = np.random.default_rng(seed).permutation(1500)[:500]
    state = state_of(values[:, part])
    got = normalize(sp.csr_matrix(values[:, part]), state).toarray()
    np.testing.assert_allclose(got, wanted[:, part], atol=2e-3)


def test_values_above_what_a_natural_logarithm_can_be_are_of_base_two() -> None:
    x = counts(genes=1500) / LENGTHS[:1500]
    x[:, 0] = 0.4 * x.sum(1)  # one gene of 400,000 TPM
    values = np.log2(cp(x, 1e6) + 1)[:, :500]
    assert values.max() > math.log(1e6 + 1)
    state = state_of(values)
    assert (state.kind, state.base, state.per) == ("log", 2.0, 1e6)


def test_fractions_above_the_logarithm_of_ten_thousand_are_not_taken_as_log1p_cp10k() -> None:
    x = counts(genes=1500) / LENGTHS[:1500]
    x[:, 0] = 0.4 * x.sum(1)
    values = np.log1p(cp(x, 1e6))[:, :500]
    assert values.max() > math.log(1e4 + 1)
    got = normalize(sp.csr_matrix(values), state_of(values)).toarray()
    assert got.max() <= math.log(1e4 + 1) + 1e-3


def test_log_counts_of_scran_are_divided_by_their_own_sums() -> None:
    x = counts(genes=2000)
    factors = x.sum(1, keepdims=True) / x.sum(1).mean() * np.random.default_rng(3).uniform(0.8, 1.25, (60, 1))
    values = np.log2(x / factors + 1).astype(np.float32)
    got = normalize(sp.csr_matrix(values), state_of(values)).toarray()
    np.testing.assert_allclose(got, np.log1p(cp(x)), atol=2e-3)


def test_rounded_logarithms_of_equally_deep_cells_are_no_counts() -> None:
    x = counts(genes=1500)
    values = np.round(np.log1p(x * 1.7183), 3)  # one count is 1.000 in every cell
    assert state_of(values[:, :500]).kind == "log"


def test_full_length_reads_are_distinguished_from_molecules() -> None:
    rng = np.random.default_rng(0)
    reads = rng.negative_binomial(0.5, 0.005, (40, 3000)).astype(float)
    molecules = counts(n=40, genes=6000)
    for values in (reads, cp(reads, 1e6).astype(np.float32)):
        assert "full-length" in state_of(values).message
    assert "full-length" not in state_of(molecules).message


PAIRS = [
    ("counts", "log1p CP10k"),
    ("log1p CP10k", "log2 CPM"),
    ("log1p CP10k", "counts"),
    ("log2 TPM/10", "counts"),
    ("log1p CP10k", "log1p CP-median"),
    ("log1p CP10k", "CPM"),
    ("estimated counts", "log1p CPM"),
    ("log2 CPM", "log1p counts"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("n", [150, 290])
def test_cells_on_two_scales_are_converted_each(one: str, other: str, n: int) -> None:
    x = counts(5, n=300, genes=2000)
    (a, wanted_a), (b, wanted_b) = made(one, x[:n]), made(other, x[n:])
    order = np.random.default_rng(0).permutation(300)
    values, wanted = np.vstack([a, b])[order], np.vstack([wanted_a, wanted_b])[order]
    got, state = read(values)
    np.testing.assert_allclose(got, wanted, atol=5e-3)
    assert len(state.scales) == 2
    assert f"{n} " in state.message and f"{300 - n} " in state.message and "cell" in state.message
    for size in (1, 7, 64):
        np.testing.assert_array_equal(read(values, size)[0], got)


def test_odd_cells_outside_the_sample_are_found() -> None:
    x = counts(6, n=3000, genes=400)
    values = np.log1p(cp(x))
    odd = [600, 1111, 1112, 2222]
    values[odd] = x[odd]
    got, state = read(values)
    np.testing.assert_allclose(got, np.log1p(cp(x)), atol=2e-3)
    assert "4 raw counts (the first is 'cell600')" in state.message


def test_cells_on_an_unknown_scale_among_others_are_refused() -> None:
    x = counts(8, n=200, genes=1500)
    unknown = np.log1p(tpm(x) / 100)[:, :500]
    with pytest.raises(InputError, match="different scales") as caught:
        read(np.vstack([x[:100, :500], unknown[100:]]))
    assert "--values" in caught.value.fix


def test_another_process_reads_mixed_cells_as_this_one(tmp_path) -> None:
    x = counts(9, n=100)
    adata = adata_of(np.vstack([x[:50], np.log1p(cp(x))[50:]]))
    adata.write_h5ad(tmp_path / "mixed.h5ad")
    with CellSource.open(tmp_path / "mixed.h5ad") as source:
        [whole] = source.chunks(100)
        recipe = recipe_of(source)
    again = FileRows(recipe, 2**28)
    np.testing.assert_array_equal(again.rows(40, 60).toarray(), whole[40:60].toarray())
    again.close()


@pytest.mark.parametrize("name", ["log1p CP10k", "log2 CPM", "CPM", "counts", "log1p CP-median"])
def test_uniform_files_have_one_scale_also_where_genes_are_missing(name: str) -> None:
    values, _ = made(name, counts(4, n=500))
    values[::3, ::9] = 0  # an outer join: a third of the cells lack some genes
    assert not read(values)[1].others


@pytest.mark.parametrize(
    ("told", "base", "per"),
    [
        ("log1p", math.e, 1e4),
        ("log1p-cpm", math.e, 1e6),
        ("log2", 2.0, 1e4),
        ("log2-cpm", 2.0, 1e6),
        ("log2-tpm10", 2.0, 1e5),
        ("log10", 10.0, 1e6),
    ],
)
def test_given_values_override_the_detection(told: str, base: float, per: float) -> None:
    values = (np.log1p(counts() * LENGTHS[:500])[:, ::4]).astype(np.float32)
    state = state_of(values, told)
    assert (state.base, state.divisor) == (base, per) and "--values" in state.message
    got = normalize(sp.csr_matrix(values), state).toarray()
    np.testing.assert_allclose(got, np.log1p((base ** values.astype(float) - 1) * 1e4 / per), atol=1e-4)


def test_given_values_are_read_from_x_even_if_there_are_counts() -> None:
    x = counts()
    adata = adata_of(np.log2(cp(x, 1e6) + 1))
    adata.layers["counts"] = sp.csr_matrix(x[::-1].copy())
    with CellSource.open(adata, values="log2") as source:
        assert source.state.where == "X"
        [cells] = source.chunks(100)
    np.testing.assert_allclose(cells.toarray(), np.log1p(cp(x)), atol=2e-3)


def test_values_that_contradict_the_given_scale_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be log1p"):
        state_of(counts() * 100, "log1p")
    with pytest.raises(InputError, match="is not a value of --values"):
        CellSource.open(adata_of(counts()), values="log3")
    assert tuple(CLI_VALUES) == VALUES


@pytest.mark.parametrize("value", [1e308, 2.0**62, 1e16])
def test_impossible_values_are_refused(value: float) -> None:
    x = counts()
    x[x > 0] = value
    adata = adata_of(x)
    adata.X = sp.csr_matrix(x)
    with pytest.raises(InputError, match="no cell has as many"):
        CellSource.open(adata)


def test_one_impossible_value_outside_the_sample_is_refused() -> None:
    x = sp.csr_matrix(counts(n=3000, genes=100))
    x.data[x.indptr[1500]] = 1e308
    with pytest.raises(InputError, match="no cell has as many"):
        CellSource.open(anndata.AnnData(x))


def test_counts_of_more_than_a_billion_are_noted() -> None:
    x = counts()
    x[3, 3] = 3e9
    adata = adata_of(x)
    adata.X = sp.csr_matrix(x)
    with CellSource.open(adata) as source:
        assert any(note.startswith("warning: ") and "3,000,000,000" in note for note in source.notes)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), right=st.integers(0, 3))
def test_the_transform_that_fits_the_reference_is_found(seed: int, right: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.gamma(0.3, 1.0, 500)
    other = np.abs(reference * rng.uniform(0.7, 1.3, 500) + rng.normal(0, 0.05, 500))  # other cells
    factors = np.array([1.0, 1.44, 2.3, 0.3])
    candidates = other * (factors / factors[right])[:, None]
    assert best_transform(candidates, reference) == right


@pytest.mark.parametrize("base", [math.e, 2.0])
def test_the_reference_decides_between_possible_scales(base: float) -> None:
    x = counts(11, n=200, genes=2000)
    values = (np.log1p(tpm(x) / 100) / math.log(base))[:, :500]  # logarithms of CP10k-like TPM, base unknown
    wanted = np.log1p(tpm(x) / 100)[:, :500]
    genes = GeneMap(sp.identity(500, dtype=np.float32, format="csr"), np.ones(500, dtype=bool))
    with CellSource.open(adata_of(values)) as source:
        assert source.state.candidates
        settle_values(MatchedSource(source, None, "index", 1.0), genes, wanted[::2].mean(axis=0))
        [cells] = source.chunks(200)
        assert [note for note in source.notes if "fits the reference best" in note] == [source.state.message]
    np.testing.assert_allclose(cells.toarray(), wanted, atol=2e-3)


def test_a_warning_names_causes_in_order_where_nearly_all_is_novel() -> None:
    parameters = {"species": "human", "reference_species": "mouse", "values": "auto"}
    log = ExpressionState("log", "X", 2.0, None, "X holds ...", 1e5)
    assert novel_notes(0.8, log, parameters) == []
    [note] = novel_notes(0.81, log, parameters)
    places = [
        note.index(word) for word in ("81%", "log2(x + 1)", "--values", "--species", "tissue", "platform")
    ]
    assert places == sorted(places) and note.startswith("warning: ")
    [of_counts] = novel_notes(0.9, ExpressionState("counts", "X"), parameters)
    assert of_counts.index("--species") < of_counts.index("--values")


def test_a_warning_names_other_references_where_the_labels_differ_little() -> None:
    known = {"species": "human", "reference_species": "human", "reference": "islets"}
    counts, others = ExpressionState("counts", "X"), [f"r{i}" for i in range(7)]
    assert novel_notes(0.3, counts, {**known, "contrast": 0.31}, others) == []
    assert novel_notes(0.3, counts, {**known, "contrast": None}, others) == []
    [note] = novel_notes(0.3, counts, {**known, "contrast": 0.08}, others)
    places = [note.index(word) for word in ("'islets'", "30%", "8%", "tissue", "r0, r1", "one or two")]
    assert places == sorted(places) and note.startswith("warning: ") and "r6" not in note


REAL = {
    "hnscc_puram_ref180_7943genes": ("log", 2.0, 1e5),
    "brain_darmanis_human": ("linear", None, None),
    "liver_aizarani_human": ("linear", None, None),
    "tabula_muris_facs_8tissues": ("linear", None, None),
    "pbmc_kang_ifnb_1267genes": ("counts", None, None),
    "pbmc_3assays_symphony_1767genes": ("log", math.e, 1e4),
    "pbmc68k_reduced_765genes": ("log", math.e, 1e4),
    "pbmc3k_10x": ("counts", None, None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_has_the_published_scale(name: str, shared_data) -> None:
    with CellSource.open(shared_data / f"{name}.h5ad") as source:
        state = source.state
        assert (state.kind, state.base, state.divisor) == REAL[name]
        assert not state.others and not state.candidates
        reads = name in ("brain_darmanis_human", "tabula_muris_facs_8tissues")
        assert ("full-length" in state.message) == reads


def test_half_of_real_cells_as_counts_and_half_as_log1p(shared_data) -> None:
    adata = anndata.read_h5ad(shared_data / "pancreas_baron_human.h5ad")
    with CellSource.open(adata) as source:
        wanted = sp.vstack(list(source.chunks()))
    mixed = adata.copy()
    half = adata.n_obs // 2
    mixed.X = sp.vstack([adata.X[:half], wanted[half:]], format="csr")
    mixed.obs = pd.DataFrame(index=adata.obs_names)
    with CellSource.open(mixed) as source:
        got = sp.vstack(list(source.chunks()))
        assert f"{half:,} raw counts" in source.state.message
    assert abs(got - wanted).max() < 1e-3
