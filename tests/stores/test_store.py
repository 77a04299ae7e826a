from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_store import SPACE, cells, fill, genes, put_gene, tree, vectors

from scvec.base.errors import InputError, LockedError, StoreError
from scvec.base.types import Gene
from scvec.stores.index import build_index
from scvec.stores.store.reference_reader import StoredReference
from scvec.stores.store.store import Store


class TestOpening:
    def test_a_new_store_is_empty(self, store):
        assert store.generation.number == 0
        assert store.references() == {} and store.spaces() == {}
        assert store.verify().ok

    def test_missing(self, tmp_path):
        with pytest.raises(InputError) as error:
            Store(tmp_path / "none")
        assert error.value.exit_code == 2 and "scvec ingest cells" in error.value.fix
        assert not (tmp_path / "none").exists()

    def test_an_empty_folder_is_not_a_store_yet(self, tmp_path):
        with pytest.raises(InputError, check=lambda e: e.code == "store-empty"):
            Store(tmp_path)
        assert Store.open(tmp_path, create=True).generation.number == 0

    def test_another_folder_is_refused_and_untouched(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        for create in (False, True):
            with pytest.raises(StoreError, check=lambda e: e.code == "not-a-store"):
                Store.open(tmp_path, create=create)
        assert os.listdir(tmp_path) == ["thesis.tex"]

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "f").write_text("x")
        for create in (False, True):
            with pytest.raises(StoreError, check=lambda e: e.code == "not-a-store"):
                Store.open(tmp_path / "f", create=create)

    def test_creating_twice_keeps_the_content(self, filled):
        assert Store.open(filled.path, create=True).generation.number == 1

    def test_interrupted_creation_continues(self, tmp_path):
        (tmp_path / "files").mkdir()
        (tmp_path / "generations").mkdir()
        (tmp_path / "lock").touch()
        assert Store.open(tmp_path, create=True).generation.number == 0

    @pytest.mark.parametrize("content", [b"", b"1", b"000001", b"000001\n", b"000001\nxyz\n", b"\x00" * 80])
    def test_damaged_current(self, filled, content):
        (filled.path / "CURRENT").write_bytes(content)
        with pytest.raises(StoreError, match="CURRENT"):
            Store(filled.path)

    def test_a_missing_current_is_not_an_empty_store(self, filled):
        (filled.path / "CURRENT").unlink()
        for create in (False, True):
            with pytest.raises(StoreError, match="CURRENT"):
                Store.open(filled.path, create=create)

    def test_a_missing_manifest(self, filled):
        (filled.path / "generations" / "000001.json").unlink()
        with pytest.raises(StoreError, match="version 1 ") as error:
            Store(filled.path)
        assert error.value.where.endswith("000001.json")

    def test_newer_format_names_the_version(self, store):
        import hashlib

        path = store.path / "generations" / "000000.json"
        data = json.loads(path.read_text())
        data.update(format=99, needs="3.1.4")
        path.write_text(json.dumps(data))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        (store.path / "CURRENT").write_text(f"000000\n{sha256}\n")
        with pytest.raises(StoreError) as error:
            Store(store.path)
        assert "format 99" in error.value.what and "3.1.4" in error.value.fix


class TestContent:
    def test_stored_content_comes_back(self, filled):
        reference, given = filled.reference("pancreas"), cells()
        assert isinstance(reference, StoredReference) and (reference.n, reference.dim) == (30, 5)
        assert reference.meta == {"seed": 0, "classes": ["a", "b"], "n": 30}
        for name, array in given["tensors"].items():
            np.testing.assert_array_equal(reference.tensors[name], array)
            assert reference.tensors[name].dtype == np.asarray(array).dtype
        pd.testing.assert_frame_equal(reference.obs, given["obs"])
        np.testing.assert_array_equal(reference.vectors, given["vectors"])
        assert not reference.vectors.flags.writeable
        found = reference.index.search(given["vectors"], 1)
        np.testing.assert_array_equal(found.indices[:, 0], np.arange(30))
        space = filled.space(SPACE.fingerprint)
        assert space.space == SPACE
        pd.testing.assert_frame_equal(space.genes, genes(20))
        np.testing.assert_array_equal(space.vectors, vectors(20))
        assert space.index.n == 20
        with filled.knowledge() as kb:
            assert kb.genes()["symbol"].tolist() == ["INS"]

    def test_a_second_process_sees_it(self, filled):
        code = "import sys; from scvec.stores.store.store import Store; "
        code += "print(Store(sys.argv[1]).reference('pancreas').n)"
        out = subprocess.run([sys.executable, "-c", code, str(filled.path)], capture_output=True, text=True)
        assert out.stdout == "30\n", out.stderr

    def test_unknown_names(self, store):
        with pytest.raises(InputError, match="'pancreas'", check=lambda e: e.code == "unknown-reference"):
            store.reference("pancreas")
        with pytest.raises(InputError, match="ingest genes", check=lambda e: e.code == "store-empty"):
            store.knowledge().__enter__()
        fill(store)
        with pytest.raises(InputError, match="did you mean 'pancreas'"):
            store.reference("pancras")
        with pytest.raises(InputError, match=SPACE.fingerprint):
            store.space("0" * 16)

    def test_removing(self, filled):
        with filled.begin("rm") as txn:
            txn.remove_reference("pancreas")
            txn.commit()
        assert filled.references() == {} and len(filled.spaces()) == 1
        assert len(filled.verify().unreferenced) == 5
        with filled.begin("rm") as txn, pytest.raises(KeyError):
            txn.remove_reference("pancreas")

    def test_merging_genes(self, filled):
        with filled.begin("ingest embeddings") as txn:
            txn.put_space(SPACE, genes(10, first=15), vectors(10, seed=5), merge=True)
            assert txn.space(SPACE.fingerprint).n == 25
            txn.commit()
        space = filled.space(SPACE.fingerprint)
        assert sorted(space.genes["gene_id"]) == space.genes["gene_id"].tolist() and space.n == 25
        rows = space.genes.reset_index().set_index("gene_id")["index"]
        np.testing.assert_array_equal(space.vectors[rows["HGNC:3"]], vectors(20)[3])
        np.testing.assert_array_equal(space.vectors[rows["HGNC:16"]], vectors(10, seed=5)[1])

    def test_the_transaction_sees_its_own_changes(self, store):
        with store.begin("x") as txn:
            assert txn.space(SPACE.fingerprint) is None and txn.reference("pancreas") is None
            txn.put_space(SPACE, genes(4), vectors(4))
            txn.put_reference("pancreas", **cells())
            assert txn.space(SPACE.fingerprint).index.n == 4
            assert txn.reference("pancreas").meta["n"] == 30
        assert store.generation.number == 0

    def test_an_index_that_is_given_is_used(self, store):
        given = cells()
        with store.begin("x") as txn:
            txn.put_reference("a", **given, index=build_index(given["vectors"]))
            with pytest.raises(InputError, match="the index holds"):
                txn.put_reference("b", **given, index=build_index(given["vectors"][:-1]))
            txn.commit()
        assert store.reference("a").index.kind == "flat"
        assert store.verify().ok

    def test_mixed_columns_become_text(self, store):
        given = cells()
        given["obs"]["odd"] = [1, "x", None] * 10
        given["obs"]["order"] = pd.Categorical(["a", "b"] * 15, ordered=np.bool_(True))
        with store.begin("x") as txn:
            txn.put_reference("a", **given)
            assert any("odd" in note for note in txn.notes)
            txn.commit()
        assert store.reference("a").obs["odd"].tolist()[:3] == ["1", "x", None]
        assert store.reference("a").obs["order"].tolist()[:2] == ["a", "b"]

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda c: c["vectors"].__setitem__((3, 1), np.nan), "row 3"),
            (lambda c: c.update(vectors=c["vectors"].astype(np.float64)), "float32"),
            (lambda c: c.update(vectors=c["vectors"][:-1]), "30 cells but 29 vectors"),
            (lambda c: c["tensors"].update(names=np.array(["x"])), "cannot be stored"),
            (lambda c: c["tensors"].update(o=np.array([None])), "cannot be stored"),
            (lambda c: c["meta"].update(x=float("nan")), "JSON"),
            (lambda c: c["obs"].insert(0, "label", 1, allow_duplicates=True), "same name: label"),
        ],
    )
    def test_invalid_content_is_refused(self, store, spoil, message):
        given = cells()
        spoil(given)
        before = tree(store.path)
        with pytest.raises(InputError, match=message), store.begin("x") as txn:
            txn.put_reference("a", **given)
        assert tree(store.path) == before

    @pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "é", "x" * 200, ".x", "a..b"])
    def test_names_of_references(self, store, name):
        refused = pytest.raises(InputError, check=lambda e: e.code == "bad-name")
        with store.begin("x") as txn, refused:
            txn.put_reference(name, **cells())

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (genes(4).drop(columns="symbol"), "symbol"),
            (genes(5), "5 genes but 4"),
            (pd.concat([genes(2), genes(2)]), "twice"),
        ],
    )
    def test_bad_gene_tables(self, store, table, message):
        with store.begin("x") as txn, pytest.raises(InputError, match=message):
            txn.put_space(SPACE, table, vectors(4))


class TestTransactions:
    def test_nothing_without_commit(self, filled):
        before = tree(filled.path)
        with filled.begin("x") as txn:
            put_gene(txn, "GCG")
            txn.put_reference("b", **cells())
        with pytest.raises(ZeroDivisionError), filled.begin("x") as txn:
            put_gene(txn, "GCG")
            txn.put_reference("b", **cells())
            raise ZeroDivisionError
        assert tree(filled.path) == before
        assert list((filled.path / "work").iterdir()) == []

    def test_an_unchanged_store_stays_on_its_generation(self, filled):
        fill(filled)
        assert filled.generation.number == 1

    def test_unchanged_files_are_shared(self, filled):
        with filled.begin("x") as txn:
            txn.put_reference("b", **cells(seed=3))
            txn.commit()
        assert filled.generation.number == 2
        assert len(list((filled.path / "files").glob("kb-*"))) == 1
        assert sorted(filled.references()) == ["b", "pancreas"]
        assert set(filled.generation.manifest.run["references"]) == {"b", "pancreas"}

    def test_equal_runs_give_equal_manifests_but_for_run(self, tmp_path):
        made = []
        for name in ("one", "two"):
            store = fill(Store.open(tmp_path / name, create=True))
            made.append(store.generation.manifest)
            time.sleep(1.1 if name == "one" else 0)  # so that the run times differ
        one, two = (json.loads(m.to_bytes()) for m in made)
        assert {k for k in one if one[k] != two[k]} == {"run"}

    def test_the_store_does_not_name_the_machine(self, store):
        import getpass
        import socket

        fill(store)
        text = (store.path / "generations" / "000001.json").read_text()
        assert '"ref.h5ad"' in text
        assert str(store.path) not in text and "/home" not in text
        assert f'"{socket.gethostname()}"' not in text and f'"{getpass.getuser()}"' not in text

    def test_a_locked_store_names_the_process(self, store):
        refused = pytest.raises(LockedError, match=f"process {os.getpid()}")
        with store.begin("ingest cells"), refused, store.begin("ingest genes"):
            pass
        with store.begin("ingest genes"):
            pass

    def test_a_finished_transaction_cannot_be_used(self, store):
        with store.begin("x") as txn:
            txn.commit()
            for use in (txn.commit, txn.open_knowledge, txn.vectors):
                with pytest.raises(RuntimeError):
                    use()
        with pytest.raises(RuntimeError):
            txn.put_file("a", "json", lambda path: path.write_text("x"))

    def test_a_store_object_continues_from_other_writers(self, store):
        other = Store(store.path)
        fill(store)
        with other.begin("x") as txn:
            txn.put_reference("b", **cells())
            txn.commit()
        assert sorted(other.references()) == ["b", "pancreas"]


def test_importing_stores_loads_nothing_heavy():
    code = (
        "import sys; import scvec.stores, scvec.stores.store.store, scvec.stores.store.transaction\n"
        "print([m for m in ('pandas', 'duckdb', 'faiss', 'torch', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "[]\n", out.stderr


def test_an_open_knowledge_base_at_commit_is_an_error(filled):
    from scvec.stores.knowledge.knowledge import KnowledgeBase

    with filled.begin("x") as txn:
        kb = KnowledgeBase.open(txn.open_knowledge().path)
        try:
            kb.upsert_genes([Gene("HGNC:77", "human", "TP53")])
            with pytest.raises(StoreError, match="still open"):
                txn.commit()
        finally:
            kb.close()
    assert Store(filled.path).generation.number == 1


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    import os

    from scvec.stores.store.files import write_tensors

    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"rows": np.arange(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
