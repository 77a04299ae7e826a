"""An approximate index as part of a reference of a store."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from ivf_parts import TARGET, N, clustered, truth

from scvec.base.errors import StoreError
from scvec.stores.index.ivf import IvfIndex


@pytest.fixture(scope="module")
def base():
    rows = clustered(N, 0)
    rows.flags.writeable = False
    return rows


@pytest.fixture(scope="module")
def index(base):
    return IvfIndex.build(base, recall=TARGET)


class TestStore:
    def put(self, store, base, **options):
        obs = pd.DataFrame({"n": np.arange(len(base))}, index=[f"c{i}" for i in range(len(base))])
        with store.begin("test") as txn:
            txn.put_reference("r", meta={"x": 1}, tensors={}, obs=obs, vectors=base, **options)
            txn.commit()
        return store.reference("r")

    @pytest.mark.slow
    def test_round_trip_through_the_store(self, store, base, index):
        stored = self.put(store, base, index=index)
        assert stored.index_kind == "ivf" and stored.meta["x"] == 1
        assert stored.meta["index"] == index.settings.to_dict()
        queries = clustered(40, 1)
        np.testing.assert_array_equal(
            stored.index.search(queries, 5).indices, index.search(queries, 5).indices
        )
        np.testing.assert_array_equal(
            stored.searcher(exact=True).search(queries, 5).indices, truth(base, queries, 5)
        )
        assert isinstance(stored.index.vectors(), np.ndarray) and not stored.index.vectors().flags.writeable
        assert stored.searcher(recall=0.99).effort.nprobe > stored.index.effort.nprobe
        assert store.verify().ok

    def test_flat_stays_exact(self, store, base):
        stored = self.put(store, base[:200])
        assert stored.index_kind == "flat" and "index" not in stored.meta
        assert stored.searcher(exact=True) is stored.searcher(recall=0.5) is stored.index

    def test_missing_settings_are_refused(self, store, base, index):
        self.put(store, base, index=index)
        with store.begin("test") as txn:
            txn.put_meta("r", {})
            txn.commit()
        with pytest.raises(StoreError, match="settings"):
            _ = store.reference("r").index
        assert any("settings" in problem for problem in store.verify().problems)

    def test_a_damaged_file_is_refused(self, store, base, index):
        stored = self.put(store, base, index=index)
        path = store.path / "files" / stored._entry.index
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(bytes(data))
        with pytest.raises(StoreError, match="damaged"):
            _ = store.reference("r").index
