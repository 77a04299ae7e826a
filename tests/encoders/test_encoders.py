"""Tests of properties of all encoders, and of each encoder against its definition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.base.types import CellChunk, CellEncoder
from scvec.encoders import Material, encoder_kind, encoder_names, load_encoder, make_encoder
from scvec.encoders.adapted import (
    TEXT_RANK,
    AdaptedEncoder,
    AdaptedOptions,
    ResidualEncoder,
    centred,
    leading,
)
from scvec.encoders.discriminant import DiscriminantEncoder
from scvec.encoders.pca import PCAEncoder, Scaling
from scvec.encoders.statistics import Profile, StatisticsAccumulator
from scvec.encoders.weighted import WeightedEncoder

N_GENES, N_CLASSES, N_CELLS, TEXT_DIM = 60, 3, 90, 16
#: Encoders without a model. Encoders with a model have their own tests.
PLAIN = [name for name in encoder_names() if name not in ("prompt", "sentence", "obsm")]


@dataclass(frozen=True)
class Planted:
    """Cells of three classes with ten marker genes each."""

    cells: CellChunk
    labels: Any
    scaling: Scaling
    profile: Profile
    text: Any


@lru_cache
def planted(seed: int = 0) -> Planted:
    rng = np.random.default_rng(seed)
    labels = np.arange(N_CELLS) % N_CLASSES
    rate = np.full((N_CELLS, N_GENES), 0.7)
    for k in range(N_CLASSES):
        rate[labels == k, 10 * k : 10 * k + 10] = 4.0
    X = sp.csr_matrix(np.log1p(rng.poisson(rate)).astype(np.float32))
    gathered = StatisticsAccumulator(N_GENES)
    gathered.add(X)
    text = rng.normal(size=(N_GENES, TEXT_DIM)).astype(np.float32)
    cells = CellChunk(X, np.ones(N_GENES, bool))
    scaling = Scaling.from_statistics(gathered.result())
    return Planted(cells, labels, scaling, Profile.from_cells(X, labels), text)


@lru_cache
def trained(name: str) -> CellEncoder:
    data = planted()
    text = data.text if encoder_kind(name).texts == "genes" else None
    encoder = make_encoder(name, Material(data.cells, data.labels, text))
    if isinstance(encoder, AdaptedEncoder):
        encoder.options = replace(encoder.options, epochs=30)
    encoder.fit([data.cells], data.labels, seed=0)
    return encoder


def rows(chunk: CellChunk, numbers: Any) -> CellChunk:
    return CellChunk(chunk.X[numbers], chunk.measured)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=15)
@given(data=st.data())
def test_a_cell_has_the_same_vector_alone_and_among_others(name: str, data: st.DataObject) -> None:
    encoder = trained(name)
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    measured = rng.random(N_GENES) >= data.draw(st.sampled_from([0.0, 0.5]))
    X = sp.csr_matrix(planted(7).cells.X.multiply(measured.astype(np.float32)))
    X.eliminate_zeros()
    chunk = CellChunk(X, measured)
    whole = encoder.encode(chunk)
    assert whole.shape == (N_CELLS, encoder.embed_dim) and whole.dtype == np.float32
    assert np.isfinite(whole).all()
    order = rng.permutation(N_CELLS)
    np.testing.assert_allclose(encoder.encode(rows(chunk, order)), whole[order], atol=1e-5)
    cuts = sorted(data.draw(st.lists(st.integers(0, N_CELLS), max_size=4)))
    parts = [encoder.encode(rows(chunk, part)) for part in np.split(np.arange(N_CELLS), cuts)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    one = int(order[0])
    np.testing.assert_allclose(encoder.encode(rows(chunk, [one]))[0], whole[one], atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_unmeasured_genes_take_no_part(name: str) -> None:
    # With unmeasured genes, the vector equals that of an encoder without these genes.
    encoder = trained(name)
    measured = np.ones(N_GENES, bool)
    measured[::3] = False
    X = sp.csr_matrix(planted(7).cells.X.multiply(measured.astype(np.float32)))
    X.eliminate_zeros()
    got = encoder.encode(CellChunk(X, measured))
    tensors, meta = encoder.state()
    changed = {k: v.copy() for k, v in tensors.items()}
    for key in ("G", "components", "gene_vectors", "0.weights"):
        if key in changed:
            changed[key][~measured] = 1e4
    for key in ("scaling.mean", "profile.mean", "0.mean", "0.profile.mean"):
        if key in changed:
            changed[key][~measured] = 77.0
    other = load_encoder(name, changed, meta)
    np.testing.assert_allclose(other.encode(CellChunk(X, measured)), got, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_a_cell_without_counts_has_a_finite_vector(name: str) -> None:
    empty = CellChunk(sp.csr_matrix((2, N_GENES), dtype=np.float32), np.ones(N_GENES, bool))
    assert np.isfinite(trained(name).encode(empty)).all()
    none = CellChunk(sp.csr_matrix((0, N_GENES), dtype=np.float32), np.ones(N_GENES, bool))
    assert trained(name).encode(none).shape == (0, trained(name).embed_dim)


@pytest.mark.parametrize("name", PLAIN)
def test_the_state_gives_identical_vectors(name: str) -> None:
    import json

    encoder, cells = trained(name), planted(7).cells
    tensors, meta = encoder.state()
    again = load_encoder(
        encoder.name, {k: np.array(v) for k, v in tensors.items()}, json.loads(json.dumps(meta))
    )
    assert isinstance(again, type(encoder)) and isinstance(again, CellEncoder)
    assert again.embed_dim == encoder.embed_dim
    np.testing.assert_array_equal(again.encode(cells), encoder.encode(cells))


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("adapted", "G"),
        ("adapted", "W"),
        ("adapted", "b"),
        ("adapted", "A"),
        ("pca", "components"),
        ("adapted", "profile.mean"),
        ("pca", "scaling.sd"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, spoilt: str) -> None:
    tensors, meta = trained(name).state()
    short = {**tensors, spoilt: tensors[spoilt][..., :-1]}
    with pytest.raises(ValueError):
        load_encoder(name, short, meta)
    del short[spoilt]
    with pytest.raises(KeyError, match=spoilt):
        load_encoder(name, short, meta)


def test_options_that_no_encoder_has_are_refused() -> None:
    tensors, meta = trained("adapted").state()
    with pytest.raises(TypeError, match="depth"):
        load_encoder("adapted", tensors, {**meta, "options": {**meta["options"], "depth": 2}})


# adapted


def gelu_head(encoder: AdaptedEncoder, vectors: Any) -> Any:
    from torch import from_numpy as t
    from torch.nn.functional import gelu, linear

    return linear(gelu(t(vectors)), t(encoder.W), t(encoder.b)).numpy()


@pytest.mark.parametrize("name", ["adapted", "residual"])
def test_adapted_learns_planted_classes(name: str) -> None:
    encoder, data = trained(name), planted(7)
    assert isinstance(encoder, AdaptedEncoder)
    scores = gelu_head(encoder, encoder.encode(data.cells))
    assert (scores.argmax(axis=1) == data.labels).mean() > 0.95


def test_encode_is_the_layer_norm_of_torch() -> None:
    import torch

    encoder, data = trained("adapted"), planted(7)
    assert isinstance(encoder, AdaptedEncoder)
    Z = torch.from_numpy(encoder.profile.dense(data.cells))
    c = torch.nn.functional.layer_norm(Z @ torch.from_numpy(encoder.G) / N_GENES**0.5, (encoder.embed_dim,))
    np.testing.assert_allclose(encoder.encode(data.cells), c.numpy(), atol=1e-5)
    np.testing.assert_allclose(c.numpy().var(axis=1), 1.0, atol=1e-2)


def test_adapted_is_decided_by_the_seed_alone() -> None:
    import torch

    data = planted()

    def fit(seed: int) -> AdaptedEncoder:
        encoder = AdaptedEncoder(data.text, data.profile, embed_dim=8, options=AdaptedOptions(epochs=2))
        encoder.fit([data.cells], data.labels, seed=seed)
        return encoder

    a = fit(3)
    torch.manual_seed(99)  # the global seed of torch has no effect
    b, c = fit(3), fit(4)
    for key in ("G", "A", "W", "b"):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
    assert not np.allclose(a.G, c.G)
    # The seed changes the start, too, not only the order of cells: a learning rate of 0 shows the start.
    starts = [
        AdaptedEncoder(data.text, data.profile, embed_dim=8, options=AdaptedOptions(lr=0.0)) for _ in range(2)
    ]
    for seed, start in enumerate(starts):
        start.fit([data.cells], data.labels, seed=seed)
    assert not np.allclose(starts[0].A, starts[1].A)


def test_chunks_of_training_cells_are_joined() -> None:
    data = planted()
    whole, parts = (
        AdaptedEncoder(data.text, data.profile, embed_dim=8, options=AdaptedOptions(epochs=2))
        for _ in range(2)
    )
    whole.fit([data.cells], data.labels, seed=0)
    parts.fit([rows(data.cells, slice(0, 40)), rows(data.cells, slice(40, None))], data.labels, seed=0)
    np.testing.assert_array_equal(whole.G, parts.G)


def test_before_training_the_text_alone_decides() -> None:
    data = planted()
    text = data.text.copy()
    text[5] = text[6]
    # A learning rate of 0 shows the start, which is text @ A without residuals.
    encoder = AdaptedEncoder(text, data.profile, embed_dim=8, options=AdaptedOptions(lr=0.0))
    encoder.fit([data.cells], data.labels, seed=0)
    np.testing.assert_allclose(encoder.G, centred(text) * np.float32(0.1) @ encoder.A, atol=1e-6)
    np.testing.assert_array_equal(encoder.G[5], encoder.G[6])
    assert np.abs(encoder.G).max() > 1e-3
    later = AdaptedEncoder(text, data.profile, embed_dim=8, options=AdaptedOptions(epochs=2))
    later.fit([data.cells], data.labels, seed=0)
    residual = later.G - centred(text) * np.float32(0.1) @ later.A
    assert np.abs(residual).max() > 1e-3 and np.abs(later.A - encoder.A).max() > 1e-3


def test_unlabelled_cells_are_not_used_for_training() -> None:
    data = planted()
    labels = data.labels.copy()
    labels[:30] = -1
    noise = sp.csr_matrix(np.random.default_rng(0).random((30, N_GENES)).astype(np.float32) * 6)
    encoders = []
    for first in (data.cells.X[:30], noise):
        encoder = AdaptedEncoder(data.text, data.profile, embed_dim=8, options=AdaptedOptions(epochs=2))
        cells = CellChunk(sp.vstack([first, data.cells.X[30:]], format="csr"), data.cells.measured)
        encoder.fit([cells], labels, seed=0)
        encoders.append(encoder)
    np.testing.assert_array_equal(encoders[0].G, encoders[1].G)


def test_centred_takes_the_common_direction_away() -> None:
    rng = np.random.default_rng(0)
    v = (rng.normal(size=(40, 6)) * rng.uniform(0.1, 9, (40, 1)) + 50).astype(np.float32)
    got = centred(v)
    np.testing.assert_allclose((got**2).mean(axis=1), 1.0, rtol=1e-4)
    away = v - v.mean(axis=0)
    cosine = (got * away).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(away, axis=1)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-5)
    assert (centred(np.ones((3, 4), np.float32)) == 0).all()


def test_of_long_text_vectors_the_leading_axes_are_kept() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=(50, 20)) @ rng.normal(size=(20, 300))
    v = (low + 0.01 * rng.normal(size=(50, 300))).astype(np.float32)
    short = leading(v)
    assert short.shape == (50, TEXT_RANK) and leading(short) is short
    np.testing.assert_allclose(short @ short.T, v @ v.T, rtol=1e-2, atol=0.5)  # angles and lengths stay


def test_wrong_number_of_gene_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="59 gene vectors for 60"):
        AdaptedEncoder(planted().text[:-1], planted().profile)


def test_a_saved_encoder_cannot_continue_training_without_its_text() -> None:
    encoder, data = trained("adapted"), planted()
    again = load_encoder("adapted", *encoder.state())
    with pytest.raises(ValueError, match="text"):
        again.fit([data.cells], data.labels)


# pca and weighted


def test_pca_has_the_subspace_of_an_svd() -> None:
    data = planted()
    encoder = PCAEncoder(data.scaling, embed_dim=4)
    encoder.fit([data.cells], data.labels)
    Z = data.scaling.dense(data.cells).astype(np.float64)
    _, _, V = np.linalg.svd(Z - Z.mean(axis=0), full_matrices=False)
    overlap = np.linalg.svd(encoder.components.T @ V[:4].T, compute_uv=False)
    np.testing.assert_allclose(overlap, 1.0, atol=1e-4)
    np.testing.assert_allclose(encoder.encode(data.cells), Z @ encoder.components, atol=1e-3)


def test_pca_has_no_more_components_than_cells_or_genes() -> None:
    data = planted()
    encoder = PCAEncoder(data.scaling)
    encoder.fit([rows(data.cells, slice(0, 7))], data.labels[:7])
    assert encoder.embed_dim == 7 == encoder.encode(data.cells).shape[1]


def test_weighted_is_the_weighted_mean_of_gene_vectors() -> None:
    data = planted()
    encoder = WeightedEncoder(data.text)
    encoder.fit([data.cells], data.labels)
    X = data.cells.X.toarray().astype(np.float64)
    mean = X @ data.text / X.sum(axis=1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(data.cells), expected, atol=1e-5)
    empty = CellChunk(sp.csr_matrix((1, N_GENES), dtype=np.float32), data.cells.measured)
    assert (encoder.encode(empty) == 0).all()


# registry


def test_the_registry() -> None:
    data = planted()
    taking_text = [n for n in encoder_names() if encoder_kind(n).texts == "genes"]
    assert taking_text == ["adapted", "weighted", "prompt"]
    material = Material(data.cells, data.labels, data.text)
    kinds = {name: type(make_encoder(name, material)) for name in PLAIN}
    assert kinds == {
        "discriminant": DiscriminantEncoder, "adapted": AdaptedEncoder, "weighted": WeightedEncoder,
        "pca": PCAEncoder, "residual": ResidualEncoder
    }  # fmt: skip
    residual = make_encoder("residual", Material(data.cells, data.labels))
    assert isinstance(residual, AdaptedEncoder) and residual.text is None
    for name in ("adapted", "weighted"):
        with pytest.raises(ValueError, match="needs gene vectors"):
            make_encoder(name, Material(data.cells, data.labels))


def test_an_unknown_encoder_gets_a_hint() -> None:
    with pytest.raises(InputError) as caught:
        encoder_kind("adaptd")
    assert caught.value.code == "unknown-choice" and "'adapted'?" in caught.value.fix
    with pytest.raises(InputError):
        load_encoder("zzz", {}, {})
