from __future__ import annotations

import base64

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.base.types import Space, text_sha256
from scvec.stores.store.journal import AppendLog
from scvec.stores.store.store import Store
from scvec.stores.store.vector_cache import VectorCache


def space(dim=4, name="minilm"):
    return Space(name, "r1", "ab" * 32, "{text}", "mean", dim, True)


def vectors(n, dim=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def shas(*texts):
    return [text_sha256(str(t)) for t in texts]


@pytest.fixture
def cache(tmp_path):
    cache = VectorCache({}, tmp_path / "vectors.log")
    yield cache
    cache.close()


def test_vectors_are_found_in_the_order_of_the_request(cache):
    given = vectors(5)
    cache.put_many(space(), shas(*range(5)), given)
    found, got = cache.get_many(space(), shas(3, "none", 0, 3))
    assert found.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(got, [given[3], np.zeros(4), given[0], given[3]])
    assert got.dtype == np.float32


def test_empty_requests(cache):
    cache.put_many(space(), [], vectors(0))
    found, got = cache.get_many(space(), [])
    assert found.shape == (0,) and got.shape == (0, 4)


def test_it_survives_the_process_and_reading_makes_no_file(tmp_path):
    path = tmp_path / "vectors.log"
    first = VectorCache({}, path)
    assert not first.get_many(space(), shas(1))[0].any() and not path.exists()
    first.put_many(space(), shas(1), vectors(1))
    first.close()
    again = VectorCache({}, path)
    assert again.get_many(space(), shas(1))[0].all()
    again.close()


def test_spaces_do_not_mix(cache):
    cache.put_many(space(), shas(1), vectors(1))
    assert not cache.get_many(space(name="other"), shas(1))[0].any()
    assert not cache.get_many(space(dim=5), shas(1))[0].any()


def test_putting_again_replaces(cache):
    cache.put_many(space(), shas(1, 2, 1), vectors(3))
    np.testing.assert_array_equal(cache.get_many(space(), shas(1))[1][0], vectors(3)[2])
    cache.put_many(space(), shas(1), vectors(1, seed=9))
    np.testing.assert_array_equal(cache.get_many(space(), shas(1))[1], vectors(1, seed=9))


@pytest.mark.parametrize(
    "bad",
    [
        vectors(2),
        vectors(3, 5),
        vectors(3).astype(np.float64),
        vectors(3)[:, 0],
        np.full((3, 4), np.nan, np.float32),
        np.full((3, 4), -np.inf, np.float32),
    ],
    ids=["n", "dim", "float64", "1d", "nan", "inf"],
)
def test_bad_vectors_are_refused(cache, bad):
    with pytest.raises(InputError):
        cache.put_many(space(), shas(1, 2, 3), bad)
    assert not cache.get_many(space(), shas(1, 2, 3))[0].any()


@pytest.mark.parametrize("blob", [b"", b"123", vectors(1, 5).tobytes(), np.full(4, np.nan, "<f4").tobytes()])
def test_a_bad_blob_is_not_returned_and_can_be_replaced(cache, blob):
    cache.put_many(space(), shas(1, 2), vectors(2))
    body = base64.b64encode(blob).decode()
    AppendLog(cache._log.path).append([(["vector", space().fingerprint, shas(1)[0]], body)])
    cache = VectorCache({}, cache._log.path)
    assert cache.get_many(space(), shas(1, 2))[0].tolist() == [False, True]
    assert "1 damaged" in cache.notes[0]
    cache.put_many(space(), shas(1), vectors(1))
    assert cache.get_many(space(), shas(1))[0].all()


@pytest.mark.parametrize("content", [b"", b"x" * 100_000, b"DUCK" * 5000])
def test_a_broken_working_file_is_replaced(tmp_path, content):
    (tmp_path / "vectors.log").write_bytes(content)
    cache = VectorCache({}, tmp_path / "vectors.log")
    cache.put_many(space(), shas(1), vectors(1))
    assert cache.get_many(space(), shas(1))[0].all()
    assert not content or "damaged" in cache.notes[0]
    assert [p.read_bytes() for p in tmp_path.glob("vectors.damaged-*")] == [content] * bool(content)
    cache.close()


def test_intact_records_of_a_damaged_file_stay(tmp_path):
    path = tmp_path / "vectors.log"
    cache = VectorCache({}, path)
    cache.put_many(space(), shas(*range(20)), vectors(20))
    cache.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    cache = VectorCache({}, path)
    found, got = cache.get_many(space(), shas(*range(20)))
    assert found.sum() == 19 and "19 vectors could be read" in cache.notes[0]
    np.testing.assert_array_equal(got[found], vectors(20)[found])
    assert cache.known_spaces() == [space()]
    cache.put_many(space(), shas(*range(20)), vectors(20))
    np.testing.assert_array_equal(cache.get_many(space(), shas(*range(20)))[1], vectors(20))


def test_a_read_only_cache_refuses_writes():
    cache = VectorCache({})
    assert not cache.get_many(space(), shas(1))[0].any()
    with pytest.raises(InputError, match="read-only"):
        cache.put_many(space(), shas(1), vectors(1))


def genes(*names):
    return pd.DataFrame(
        {
            "gene_id": [f"HGNC:{n}" for n in names],
            "species": "human",
            "symbol": "x",
            "text_sha256": shas(*names),
        }
    )


def test_rows_move_from_the_working_file_into_the_generation(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    work = store.path / "work" / "vectors.log"
    with pytest.raises(ZeroDivisionError), store.begin("ingest embeddings") as txn:
        txn.vectors().put_many(space(), shas(*range(10)), vectors(10))
        raise ZeroDivisionError
    assert work.exists()
    with store.begin("ingest embeddings") as txn:
        found, got = txn.vectors().get_many(space(), shas(*range(12)))
        assert found.tolist() == [True] * 10 + [False] * 2
        txn.put_space(space(), genes(*range(8)), got[:8])
        txn.commit()
    with store.begin("ingest embeddings") as txn:
        cache = txn.vectors()
        found, got = cache.get_many(space(), shas(*range(12)))
        assert found.tolist() == [True] * 10 + [False] * 2
        np.testing.assert_array_equal(got[:10], vectors(10))
        assert sum(b"vector" in line for line in work.read_bytes().splitlines()) == 2
        txn.put_space(space(), genes(*range(10)), got[:10])
        txn.commit()
    assert not work.exists()
    assert store.vectors().get_many(space(), shas(*range(12)))[0].sum() == 10


def test_genes_with_equal_texts_share_a_vector(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    table = genes(1, 2)
    table["text_sha256"] = shas("same", "same")
    with store.begin("x") as txn:
        txn.put_space(space(), table, np.repeat(vectors(1), 2, axis=0))
        txn.commit()
    np.testing.assert_array_equal(store.vectors().get_many(space(), shas("same"))[1], vectors(1))


@settings(max_examples=25)
@given(
    batches=st.lists(st.lists(st.integers(0, 12), max_size=6), max_size=4), asked=st.lists(st.integers(0, 15))
)
def test_it_behaves_like_a_dictionary(tmp_path_factory, batches, asked):
    cache, model = VectorCache({}, tmp_path_factory.mktemp("c") / "v.duckdb"), {}
    for seed, batch in enumerate(batches):
        given = vectors(len(batch), seed=seed)
        cache.put_many(space(), shas(*batch), given)
        model.update(zip(batch, given, strict=True))
    found, got = cache.get_many(space(), shas(*asked))
    assert found.tolist() == [a in model for a in asked]
    for a, vector in zip(asked, got, strict=True):
        np.testing.assert_array_equal(vector, model.get(a, np.zeros(4)))
    cache.close()
