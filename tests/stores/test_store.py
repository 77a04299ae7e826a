from __future__ import annotations

import errno
import gc
import inspect
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from scvec.errors import InputError, LockedError, ResourceError, ScvecError, StoreError
from scvec.stores import Store, StoredReference, build_index, default_store_path
from scvec.stores.files import _seen
from scvec.types import Gene, Space

SPACE = Space("minilm", "r1", "ab" * 32, "{text}", "mean", 6, True)


def genes(n, first=0):
    numbers = range(first, first + n)
    return pd.DataFrame(
        {
            "gene_id": [f"HGNC:{i}" for i in numbers],
            "species": "human",
            "symbol": [f"G{i}" for i in numbers],
            "text_sha256": [f"{i:064x}" for i in numbers],
        }
    )


def vectors(n, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def cells(n=30, seed=0):
    return {
        "meta": {"seed": seed, "classes": ["a", "b"], "n": np.int64(n)},
        "tensors": {"W": vectors(4, 3, seed).T, "mask": np.array([True, False]), "scale": np.float64(seed)},
        "obs": pd.DataFrame(
            {"label": pd.Categorical(["a", "b"] * (n // 2)), "count": np.arange(n)},
            index=pd.Index([f"cell{i}" for i in range(n)], name="cell"),
        ),
        "vectors": vectors(n, 5, seed),
    }


def put_gene(transaction, symbol="INS"):
    kb = transaction.open_knowledge()
    kb.upsert_genes([Gene(f"HGNC:{len(symbol)}", "human", symbol, name=symbol.lower())])


def fill(store, seed=0, name="pancreas"):
    with store.begin("ingest cells", {"seed": seed, "ref": "/home/ann/ref.h5ad"}) as txn:
        put_gene(txn)
        txn.put_space(SPACE, genes(20), vectors(20, seed=seed))
        txn.put_reference(name, **cells(seed=seed), run={"seconds": time.monotonic()})
        txn.commit()
    return store


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return fill(Store.open(tmp_path_factory.mktemp("template") / "store", create=True)).path


@pytest.fixture
def filled(template, tmp_path):
    """A store with one space and one reference, a copy: making one takes half a second."""
    shutil.copytree(template, tmp_path / "filled")
    return Store(tmp_path / "filled")


def tree(folder):
    """All files with their content, working files aside."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.relative_to(folder).parts[0] != "work" and p.name != "lock"
    }


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

    def test_an_empty_folder_is_no_store_yet(self, tmp_path):
        with pytest.raises(InputError, match="no store here yet"):
            Store(tmp_path)
        assert Store.open(tmp_path, create=True).generation.number == 0

    def test_another_folder_is_refused_and_untouched(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        for create in (False, True):
            with pytest.raises(StoreError, match="not a store"):
                Store.open(tmp_path, create=create)
        assert os.listdir(tmp_path) == ["thesis.tex"]

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "f").write_text("x")
        for create in (False, True):
            with pytest.raises(StoreError, match="this is a file"):
                Store.open(tmp_path / "f", create=create)

    def test_creating_twice_keeps_what_is_there(self, filled):
        assert Store.open(filled.path, create=True).generation.number == 1

    def test_interrupted_creation_goes_on(self, tmp_path):
        (tmp_path / "files").mkdir()
        (tmp_path / "generations").mkdir()
        (tmp_path / "lock").touch()
        assert Store.open(tmp_path, create=True).generation.number == 0

    @pytest.mark.parametrize("content", [b"", b"1", b"000001", b"000001\n", b"000001\nxyz\n", b"\x00" * 80])
    def test_damaged_current(self, filled, content):
        (filled.path / "CURRENT").write_bytes(content)
        with pytest.raises(StoreError, match="CURRENT"):
            Store(filled.path)

    def test_lost_current_is_not_taken_for_an_empty_store(self, filled):
        (filled.path / "CURRENT").unlink()
        for create in (False, True):
            with pytest.raises(StoreError, match="lost its file CURRENT"):
                Store.open(filled.path, create=create)

    def test_lost_manifest(self, filled):
        (filled.path / "generations" / "000001.json").unlink()
        with pytest.raises(StoreError, match="missing"):
            Store(filled.path)

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

    def test_default_path(self, tmp_path):
        assert default_store_path(tmp_path, {"SCVEC_STORE": "/x"}) == tmp_path
        assert str(default_store_path(None, {"SCVEC_STORE": "/x"})) == "/x"
        assert "scvec" in str(default_store_path(None, {}))


class TestContent:
    def test_what_is_put_comes_back(self, filled):
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
        code = "import sys; from scvec.stores import Store; print(Store(sys.argv[1]).reference('pancreas').n)"
        out = subprocess.run([sys.executable, "-c", code, str(filled.path)], capture_output=True, text=True)
        assert out.stdout == "30\n", out.stderr

    def test_unknown_names(self, store):
        with pytest.raises(InputError, match="none yet"):
            store.reference("pancreas")
        with pytest.raises(InputError, match="scvec ingest genes"), store.knowledge():
            pass
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
            txn.put_reference("a", **given, index=build_index(given["vectors"], "numpy"))
            with pytest.raises(InputError, match="the index holds"):
                txn.put_reference("b", **given, index=build_index(given["vectors"][:-1]))
            txn.commit()
        assert store.reference("a").index.kind == "numpy"
        assert store.verify().ok

    def test_mixed_columns_become_text(self, store):
        given = cells()
        given["obs"]["odd"] = [1, "x", None] * 10
        with store.begin("x") as txn:
            txn.put_reference("a", **given)
            assert any("odd" in note for note in txn.notes)
            txn.commit()
        assert store.reference("a").obs["odd"].tolist()[:3] == ["1", "x", None]

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda c: c["vectors"].__setitem__((3, 1), np.nan), "row 3"),
            (lambda c: c.update(vectors=c["vectors"].astype(np.float64)), "float32"),
            (lambda c: c.update(vectors=c["vectors"][:-1]), "30 cells but 29 vectors"),
            (lambda c: c["tensors"].update(names=np.array(["x"])), "cannot be stored"),
            (lambda c: c["tensors"].update(o=np.array([None])), "cannot be stored"),
            (lambda c: c["meta"].update(x=float("nan")), "JSON"),
            (lambda c: c["obs"].insert(0, "label", 1, allow_duplicates=True), "one name"),
        ],
    )
    def test_what_cannot_be_stored_is_refused(self, store, spoil, message):
        given = cells()
        spoil(given)
        before = tree(store.path)
        with pytest.raises(InputError, match=message), store.begin("x") as txn:
            txn.put_reference("a", **given)
        assert tree(store.path) == before

    @pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "é", "x" * 200, ".x", "a..b"])
    def test_names_of_references(self, store, name):
        with store.begin("x") as txn, pytest.raises(InputError, match="name of a reference"):
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
            time.sleep(1.1 if name == "one" else 0)
        assert made[0].deterministic_bytes() == made[1].deterministic_bytes()
        one, two = (json.loads(m.to_bytes()) for m in made)
        assert {k for k in one if one[k] != two[k]} == {"run"}

    def test_no_machine_in_the_store(self, store):
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

    def test_a_finished_transaction_is_over(self, store):
        with store.begin("x") as txn:
            txn.commit()
            for use in (txn.commit, txn.knowledge, txn.vectors):
                with pytest.raises(RuntimeError):
                    use()
        with pytest.raises(RuntimeError):
            txn.put_file("a", "json", lambda path: path.write_text("x"))

    def test_a_store_object_goes_on_from_what_others_wrote(self, store):
        other = Store(store.path)
        fill(store)
        with other.begin("x") as txn:
            txn.put_reference("b", **cells())
            txn.commit()
        assert sorted(other.references()) == ["b", "pancreas"]

    def test_resumable_knowledge(self, filled):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), filled.begin("complement", {"m": 1}) as txn:
                kb = txn.open_knowledge(resume=True)
                seen = kb.genes()["symbol"].tolist()
                put_gene(txn, "GCG1")
                raise ZeroDivisionError
        assert sorted(seen) == ["GCG1", "INS"]
        with filled.begin("complement", {"m": 2}) as txn:  # other parameters: other work
            assert txn.open_knowledge(resume=True).genes()["symbol"].tolist() == ["INS"]
        with filled.begin("ingest genes") as txn:  # and nobody else commits half of it
            assert txn.open_knowledge().genes()["symbol"].tolist() == ["INS"]
        filled.compact()
        with filled.begin("complement", {"m": 1}) as txn:
            assert "GCG1" in txn.open_knowledge(resume=True).genes()["symbol"].tolist()
            txn.commit()
        with filled.knowledge() as kb:
            assert "GCG1" in kb.genes()["symbol"].tolist()
        assert list((filled.path / "work").glob("kb-*")) != []  # of the other parameters, now outdated
        filled.compact()
        assert list((filled.path / "work").glob("kb*")) == []

    def test_knowledge_left_open_by_the_caller(self, store):
        from scvec.stores import KnowledgeBase

        with store.begin("x") as txn:
            kb = KnowledgeBase.open(txn.knowledge())
            kb.upsert_genes([Gene("HGNC:1", "human", "INS")])
            kb.close()
            txn.commit()
        with store.knowledge() as kb:
            assert len(kb.genes()) == 1


class TestReaders:
    def test_a_reader_stays_on_its_generation(self, filled):
        reader = Store(filled.path)
        with filled.begin("x") as txn:
            put_gene(txn, "GCG")
            txn.remove_reference("pancreas")
            txn.commit()
        report = filled.compact()
        assert report.kept == [1] and report.dropped == [0]
        assert reader.reference("pancreas").index.n == 30
        with reader.knowledge() as kb:
            assert kb.genes()["symbol"].tolist() == ["INS"]
        assert reader.refresh().number == 2
        with pytest.raises(InputError):
            reader.reference("pancreas")
        gc.collect()
        report = filled.compact()
        assert report.dropped == [1] and report.kept == [] and report.n_files == 6
        assert filled.verify().ok and filled.verify().unreferenced == []

    def test_what_a_reader_took_outlives_its_store_object(self, filled):
        reference = Store(filled.path).reference("pancreas")
        with filled.begin("x") as txn:
            txn.remove_reference("pancreas")
            txn.commit()
        gc.collect()
        filled.compact()
        assert reference.index.n == 30 and len(reference.obs) == 30

    def test_never_a_mix(self, store):
        """Readers loop while another process commits; all parts of what they see are of one commit."""
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(store.path)])
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(store.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        seen = []
        while not seen or writer.poll() is None:
            seen.append(seeds_of(Store(store.path)))
            time.sleep(0.01)
        assert writer.wait() == 0
        seen.append(seeds_of(Store(store.path)))
        out, _ = reader.communicate("stop\n")
        assert reader.returncode == 0
        seen += json.loads(out)
        assert [s for s in seen if len(set(s)) > 1] == []
        assert [19] * 9 in seen and len({s[0] for s in seen if s}) > 3
        assert store.refresh().number == 20 and store.verify().ok


def seeds_of(store):
    """The number that the writer below put into every part of a commit, as each part has it."""
    if not store.generation.number:
        return []
    reference, space = store.reference("a"), store.space(SPACE.fingerprint)
    with store.knowledge() as kb:
        n_genes = len(kb.genes())
    return [
        reference.meta["seed"],
        int(reference.tensors["seed"]),
        int(reference.obs["seed"].iloc[0]),
        int(reference.vectors[0, 0]),
        int(reference.index.vectors()[0, 0]),
        int(space.vectors[0, 0]),
        int(space.index.vectors()[0, 0]),
        int(space.genes["text_sha256"].iloc[0]),
        n_genes - 1,
    ]


READER = f"""
import json, select, sys, time
from scvec.stores import Store
from scvec.types import Space
SPACE = {SPACE!r}
{inspect.getsource(seeds_of)}
seen = []
while not select.select([sys.stdin], [], [], 0)[0]:
    seen.append(seeds_of(Store(sys.argv[1])))
    time.sleep(0.01)
print(json.dumps(seen))
"""

WRITER = """
import sys
import numpy as np, pandas as pd
from scvec.stores import Store
from scvec.types import Gene, Space
SPACE = Space("minilm", "r1", "ab" * 32, "{text}", "mean", 6, True)
store = Store(sys.argv[1])
for seed in range(20):
    with store.begin("ingest cells") as txn:
        txn.open_knowledge().upsert_genes([Gene(f"HGNC:{seed}", "human", f"G{seed}")])
        genes = pd.DataFrame({"gene_id": "g", "species": "human", "symbol": "s", "text_sha256": [str(seed)]})
        txn.put_space(SPACE, genes, np.full((1, 6), seed, np.float32))
        txn.put_reference(
            "a", meta={"seed": seed}, tensors={"seed": np.array(seed)},
            obs=pd.DataFrame({"seed": [seed] * 3}), vectors=np.full((3, 4), seed, np.float32),
        )
        txn.commit()
    if seed % 5 == 4:
        store.compact()
"""


def open_knowledge(store):
    with store.knowledge():
        pass


#: What a query reads, file by file.
LOADS = {
    "kb": open_knowledge,
    "meta": lambda store: store.reference("pancreas").meta,
    "model": lambda store: store.reference("pancreas").tensors,
    "obs": lambda store: store.reference("pancreas").obs,
    "vectors": lambda store: store.reference("pancreas").vectors,
    "index": lambda store: store.reference("pancreas").index,
    "genes": lambda store: store.space(SPACE.fingerprint).genes,
    "gene-vectors": lambda store: store.space(SPACE.fingerprint).vectors,
    "gene-index": lambda store: store.space(SPACE.fingerprint).index,
}
KINDS = list(LOADS)


def load_all(folder):
    for load in LOADS.values():
        load(Store(folder))


def stored_file(folder, kind):
    pattern = f"{kind}-*" if kind.startswith(("kb", "gene")) else f"pancreas.{kind}-*"
    (path,) = (folder / "files").glob(pattern)
    return path


class TestDamage:
    @pytest.mark.parametrize("kind", [*KINDS, "CURRENT", "manifest"])
    def test_every_flipped_bit_is_found(self, filled, kind):
        paths = {"CURRENT": filled.path / "CURRENT", "manifest": filled.path / "generations" / "000001.json"}
        path = paths.get(kind) or stored_file(filled.path, kind)
        good = path.read_bytes()
        rng = np.random.default_rng(7)
        for attempt in range(100):
            bad = bytearray(good)
            bad[rng.integers(len(good))] ^= 1 << rng.integers(8)
            path.write_bytes(bad)
            _seen.clear()  # a process that begins now has read nothing yet
            with pytest.raises(StoreError) as error:
                LOADS.get(kind, open_knowledge)(Store(filled.path))
            assert error.value.exit_code == 3
            if kind in KINDS:
                assert path.name in error.value.where and "scvec verify" in error.value.fix
            if kind in KINDS and attempt % 25 == 0:
                report = Store(filled.path).verify()
                assert len(report.problems) == 1 and path.name in report.problems[0]
        path.write_bytes(good)
        load_all(filled.path)
        assert Store(filled.path).verify().ok

    @pytest.mark.parametrize("kind", KINDS)
    def test_files_that_are_not_what_was_stored(self, filled, kind, tmp_path):
        path = stored_file(filled.path, kind)
        good = path.read_bytes()
        (tmp_path / "else").write_bytes(good)
        ways = {
            "missing": lambda: None,
            "short": lambda: path.write_bytes(good[:-1]),
            "long": lambda: path.write_bytes(good + b"x"),
            "empty": lambda: path.write_bytes(b""),
            "link": lambda: path.symlink_to(tmp_path / "else"),
            "pipe": lambda: os.mkfifo(path),
            "folder": lambda: path.mkdir(),
        }
        for how, make in ways.items():
            path.unlink(missing_ok=True)
            make()
            with pytest.raises(StoreError, match=r"missing|bytes instead|regular"):
                LOADS[kind](Store(filled.path))
            assert len(Store(filled.path).verify().problems) == 1, how

    def test_a_change_within_one_process_is_seen(self, filled):
        load_all(filled.path)
        path = stored_file(filled.path, "index")
        bad = bytearray(path.read_bytes())
        bad[-1] ^= 1
        path.write_bytes(bad)
        with pytest.raises(StoreError, match="damaged"):
            load_all(filled.path)

    @pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("kb", "genes")])
    def test_ingesting_again_mends(self, filled, kind):
        path = stored_file(filled.path, kind)
        path.write_bytes(b"x" * path.stat().st_size)
        fill(filled)
        load_all(filled.path)
        assert filled.verify().ok

    @pytest.mark.parametrize("part", ["index", "vectors"])
    def test_parts_of_different_content_are_found(self, store, part):
        """Checksums that fit, contents that do not: the manifest was written over other files."""
        from scvec.stores.generations import write_generation
        from scvec.stores.manifest import Manifest

        fill(store)
        fill(store, seed=1, name="b")
        old = json.loads(store.generation.manifest.to_bytes())
        old["references"]["pancreas"][part] = old["references"]["b"][part]
        used = {v for r in old["references"].values() for k, v in r.items() if isinstance(v, str)}
        used |= {v for s in old["spaces"].values() for v in s.values() if isinstance(v, str)}
        old["files"] = {n: e for n, e in old["files"].items() if n in used}
        write_generation(store.path, Manifest.from_bytes(json.dumps(old).encode(), "x"))
        report = Store(store.path).verify()
        assert any("other vectors" in p for p in report.problems)

    def test_stray_files_are_reported_and_compacted(self, filled):
        (filled.path / "files" / "stray.bin").write_bytes(b"x" * 10)
        (filled.path / "generations" / ".000009.json.ab.tmp").write_bytes(b"x")
        report = filled.verify()
        assert report.ok and report.unreferenced == ["stray.bin"]
        assert filled.compact().n_bytes >= 10
        assert filled.verify().unreferenced == []
        assert not list(filled.path.rglob("*.tmp"))


class TestFullDisk:
    @pytest.mark.parametrize(
        "step", ["fsync", "replace", "write_table", "write_tensors", "index", "copyfile"]
    )
    def test_no_space_at_a_step(self, filled, monkeypatch, step):
        before = tree(filled.path)

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def full_text(*args, **kwargs):  # as FAISS and safetensors say it
            raise RuntimeError("write error: 10 != 20 (No space left on device)")

        with pytest.raises(ResourceError) as error, filled.begin("x") as txn:
            target = {
                "fsync": "os.fsync",
                "replace": "os.replace",
                "copyfile": "shutil.copyfile",
                "write_table": "scvec.stores.transaction.write_table",
                "write_tensors": "scvec.stores.transaction.write_tensors",
                "index": "scvec.stores.faiss_index.FaissFlatIndex.save",
            }[step]
            monkeypatch.setattr(target, full_text if step in ("index", "write_tensors") else full)
            put_gene(txn, "GCG")
            txn.put_space(SPACE, genes(9), vectors(9))
            txn.put_reference("b", **cells())
            txn.commit()
        monkeypatch.undo()
        assert error.value.exit_code == 6 and "the store was not changed" in error.value.what
        assert {k: v for k, v in tree(filled.path).items() if k in before} == before
        assert Store(filled.path).generation.number == 1 and Store(filled.path).verify().ok
        fill(filled, seed=4)
        assert filled.generation.number == 2 and filled.verify().ok

    def test_a_small_file_system(self, tmp_path):
        """A real full disk; needs the right to mount."""
        mount = tmp_path / "small"
        mount.mkdir()
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)], capture_output=True
            )
        except OSError:
            pytest.skip("no mount here")
        if done.returncode:
            pytest.skip("no right to mount here")
        try:
            store = fill(Store.open(mount / "store", create=True))
            before = tree(store.path)
            big = vectors(100_000, 5)
            for put in (
                lambda t: t.put_reference("b", **{**cells(100_000), "vectors": big}),
                lambda t: t.put_space(SPACE, genes(100_000), vectors(100_000)),
                lambda t: t.put_file("a", "bin", lambda p: p.write_bytes(bytes(10**7))),
                lambda t: t.vectors().put_many(
                    SPACE, [f"{i:064x}" for i in range(100_000)], vectors(100_000)
                ),
            ):
                with pytest.raises(ResourceError) as error, store.begin("x") as txn:
                    put(txn)
                assert error.value.exit_code == 6
                assert tree(store.path) == before
                shutil.rmtree(store.path / "work")
            assert store.verify().ok
            store = fill(store, seed=2)
            assert store.generation.number == 2 and store.verify().ok
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=False)

    @pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="rights do not bind the superuser")
    def test_no_right_to_write(self, filled):
        os.chmod(filled.path, 0o500)
        try:
            load_all(filled.path)
            with pytest.raises(ScvecError, match="permission"), filled.begin("x"):
                pass
        finally:
            os.chmod(filled.path, 0o700)


def test_importing_stores_loads_nothing_heavy():
    code = (
        "import sys; import scvec.stores, scvec.stores.store, scvec.stores.transaction\n"
        "print([m for m in ('pandas', 'duckdb', 'faiss', 'torch', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "[]\n", out.stderr


def test_a_caller_who_leaves_the_knowledge_open_is_told(filled):
    from scvec.stores import KnowledgeBase

    with filled.begin("x") as txn:
        kb = KnowledgeBase.open(txn.knowledge())
        try:
            kb.upsert_genes([Gene("HGNC:77", "human", "TP53")])
            with pytest.raises(StoreError, match="still open"):
                txn.commit()
        finally:
            kb.close()
    assert Store(filled.path).generation.number == 1
