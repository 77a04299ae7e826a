"""Readers beside a writer, damaged files, full disks."""

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
import pytest
from small_store import SPACE, cells, fill, genes, put_gene, tree, vectors

from scvec.base.errors import InputError, ResourceError, ScvecError, StoreError
from scvec.stores.store.files import _seen
from scvec.stores.store.store import Store


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

    def test_a_reference_outlives_its_store_object(self, filled):
        reference = Store(filled.path).reference("pancreas")
        with filled.begin("x") as txn:
            txn.remove_reference("pancreas")
            txn.commit()
        gc.collect()
        filled.compact()
        assert reference.index.n == 30 and len(reference.obs) == 30

    @pytest.mark.slow
    def test_readers_never_see_a_mix_of_commits(self, store):
        """Readers loop while another process commits; all parts that they see belong to one commit."""
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
        assert [9] * 9 in seen and len({s[0] for s in seen if s}) > 1
        assert store.refresh().number == 10 and store.verify().ok


def seeds_of(store):
    """Return the number that the writer below puts into a commit, from each of its parts."""
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
from scvec.stores.store.store import Store
from scvec.base.types import Space
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
from scvec.stores.store.store import Store
from scvec.base.types import Gene, Space
SPACE = Space("minilm", "r1", "ab" * 32, "{text}", "mean", 6, True)
store = Store(sys.argv[1])
for seed in range(10):
    with store.begin("ingest cells") as txn:
        txn.open_knowledge().upsert_genes([Gene(f"HGNC:{seed}", "human", f"G{seed}")])
        genes = pd.DataFrame({"gene_id": "g", "species": "human", "symbol": "s", "text_sha256": [str(seed)]})
        txn.put_space(SPACE, genes, np.full((1, 6), seed, np.float32))
        txn.put_reference(
            "a", meta={"seed": seed}, tensors={"seed": np.array(seed)},
            obs=pd.DataFrame({"seed": [seed] * 3}), vectors=np.full((3, 4), seed, np.float32),
        )
        txn.commit()
    if seed % 3 == 2:
        store.compact()
"""


def open_knowledge(store):
    with store.knowledge():
        pass


#: Functions that read the files of a query, one by one.
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
            _seen.clear()  # simulate a new process
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
    def test_replaced_files_are_refused(self, filled, kind, tmp_path):
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
    def test_ingesting_again_repairs_files(self, filled, kind):
        path = stored_file(filled.path, kind)
        path.write_bytes(b"x" * path.stat().st_size)
        fill(filled)
        load_all(filled.path)
        assert filled.verify().ok

    @pytest.mark.parametrize("part", ["index", "vectors"])
    def test_parts_of_different_content_are_found(self, store, part):
        """The checksums match but the contents do not, because the manifest lists other files."""
        from scvec.stores.store.generations import write_generation
        from scvec.stores.store.manifest import Manifest

        fill(store)
        fill(store, seed=1, name="b")
        old = json.loads(store.generation.manifest.to_bytes())
        old["references"]["pancreas"][part] = old["references"]["b"][part]
        used = {v for r in old["references"].values() for k, v in r.items() if isinstance(v, str)}
        used |= {v for s in old["spaces"].values() for v in s.values() if isinstance(v, str)}
        old["files"] = {n: e for n, e in old["files"].items() if n in used}
        write_generation(store.path, Manifest.from_bytes(json.dumps(old).encode(), "x"))
        report = Store(store.path).verify()
        assert any("reference pancreas" in p and "vector file" in p for p in report.problems)

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

        def full_text(*args, **kwargs):  # like FAISS and safetensors
            raise RuntimeError("write error: 10 != 20 (No space left on device)")

        with pytest.raises(ResourceError) as error, filled.begin("x") as txn:
            target = {
                "fsync": "os.fsync",
                "replace": "os.replace",
                "copyfile": "shutil.copyfile",
                "write_table": "scvec.stores.store.transaction.write_table",
                "write_tensors": "scvec.stores.store.transaction.write_tensors",
                "index": "scvec.stores.index.flat.FaissFlatIndex.save",
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
        """A really full disk; needs permission to mount."""
        mount = tmp_path / "small"
        mount.mkdir()
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], capture_output=True
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
    def test_no_permission_to_write(self, filled):
        os.chmod(filled.path, 0o500)
        try:
            load_all(filled.path)
            with pytest.raises(ScvecError, match="permission"), filled.begin("x"):
                pass
        finally:
            os.chmod(filled.path, 0o700)
