"""Packs: a pulled pack equals the packed reference, and manipulated packs are refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import scvec
from scvec.base.errors import InputError, NetworkError, ResourceError, ScvecError, StoreError
from scvec.cli.main import cli
from scvec.model.card import CardOptions
from scvec.stores.store import packs
from scvec.stores.store.files import read_tensors, write_tensors
from scvec.stores.store.store import Store
from scvec.workflows.diff import diff_references
from scvec.workflows.labels import labels

CARD = CardOptions(license="CC-BY-4.0", sources=("doi:10.1/abc",))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_adata, new_store):
    """A store with a reference, its pack with and without cells, and new cells."""
    folder = tmp_path_factory.mktemp("packs")
    store = new_store(folder / "store")
    tiny_adata(120, 3, donors=3).write_h5ad(folder / "ref.h5ad")
    tiny_adata(40, 3, seed=5).write_h5ad(folder / "new.h5ad")
    scvec.ingest_cells(store, [folder / "ref.h5ad"], name="islets", label_key="cell_type", batch_key="donor")
    scvec.pack(store, "islets", output=folder / "whole.scvec", card=CARD)
    scvec.pack(store, "islets", output=folder / "bare.scvec", with_cells=False)
    return folder


@pytest.fixture
def target(tmp_path, new_store):
    return new_store(tmp_path / "target")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "lock.json"
    }


def test_a_pulled_reference_gives_the_same_answers_byte_for_byte(made, target, tmp_path):
    report = scvec.pull(target, made / "whole.scvec", name="mine")
    assert report.name == "mine" and report.n_cells == 120 and report.n_golden > 50
    scvec.query(made / "store", made / "new.h5ad", output=tmp_path / "a.csv")
    scvec.query(target, made / "new.h5ad", output=tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert Store(target).verify().to_dict()["problems"] == []


@pytest.mark.parametrize("name", ["pancreas-human", "pancreas-mouse"])
def test_references_that_ship_get_their_answers(name, target):
    report = scvec.pull(target, name)
    assert report.name == name and report.n_golden > 50 and report.n_cells > 1800
    assert any("MIT" in line for line in report.card)
    # No folder of the machine that packed it.
    meta = Store(target).reference(name).meta
    named = [source["name"] for source in meta["sources"]] + meta["card"]["files"]
    assert named == [Path(file).name for file in named] != []


def test_the_card_says_what_the_reference_is(made):
    with packs.PackReader(made / "whole.scvec") as pack:
        _, header, text = pack.card.split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["license"] == "CC-BY-4.0" and facts["sources"] == ["doi:10.1/abc"]
    assert facts["cells"] == 120 and facts["species"] == "human"
    assert {x["label"]: x["cells"] for x in facts["labels"]} == {"alpha": 40, "beta": 40, "acinar": 40}
    assert all(x["donors"] == 3 and x["cl_id"].startswith("CL:") for x in facts["labels"])
    assert 0 < facts["held_out"]["accuracy"] <= 1 and facts["held_out"]["what"] == "batch"
    assert "islets" in text


def test_info_shows_the_card(made, target):
    # Of a reference that came with one, and of one whose card nobody wrote.
    scvec.pull(target, made / "whole.scvec", name="mine")
    pulled, own = scvec.info(target, "mine"), scvec.info(made / "store", "islets")
    assert scvec.info(target).card is None
    for report, license_, sources in ((pulled, "CC-BY-4.0", ["doi:10.1/abc"]), (own, "", [])):
        card = json.loads(json.dumps(report.to_dict()))["card"]
        assert (card["license"], card["sources"], card["n_cells"]) == (license_, sources, 120)
        assert {x["label"]: x["cells"] for x in card["labels"]} == {"alpha": 40, "beta": 40, "acinar": 40}
        assert report.lines()[-len(report.card.lines()) :] == report.card.lines()
    assert "Licence: CC-BY-4.0" in pulled.lines() and "- doi:10.1/abc" in pulled.lines()
    assert "Licence: not stated" in own.lines()


def test_a_pulled_reference_that_grew_says_so_on_its_card(made, target, tmp_path, tiny_adata, new_store):
    scvec.pull(target, made / "whole.scvec", name="mine")
    before = scvec.info(target, "mine").card
    assert before.changed == [] and "Changed" not in "\n".join(before.lines())
    more = tiny_adata(30, 3, seed=9)
    more.obs["donor"] = "donor 9"
    more.write_h5ad(tmp_path / "more.h5ad")
    scvec.append_cells(target, [tmp_path / "more.h5ad"], name="mine", label_key="cell_type")
    scvec.drop_cells(target, "mine", where="donor = 'donor 9' AND cell_type = 'beta'")
    card = scvec.info(target, "mine").card
    sha256 = hashlib.sha256((made / "whole.scvec").read_bytes()).hexdigest()
    assert card.derived_from == [{"name": "islets", "sha256": sha256, "scvec": scvec.__version__}]
    labels = more.obs["cell_type"].value_counts().to_dict()
    assert [(c["what"], c["cells"], c["labels"]) for c in card.changed] == [
        ("appended", 30, labels),
        ("deleted", labels["beta"], {"beta": labels["beta"]}),
    ]
    assert card.changed[0]["source"] == "more.h5ad" and all(c["date"] for c in card.changed)
    # The cells are those of now, and what was measured is told to be from before.
    assert {x["label"]: x["cells"] for x in card.labels} == {"alpha": 50, "beta": 40, "acinar": 50}
    assert card.n_cells == 140 and card.accuracy == before.accuracy
    assert any("measured before" in line for line in card.lines())
    # Packed, its golden query is a new one, and the card goes with it.
    scvec.pack(target, "mine", output=tmp_path / "grown.scvec")
    with packs.PackReader(made / "whole.scvec") as old, packs.PackReader(tmp_path / "grown.scvec") as new:
        assert old.manifest.golden != new.manifest.golden
        facts = yaml.safe_load(new.card.split("---\n", 2)[1])
        assert "measured" in facts["held_out"] and len(facts["changed"]) == 2
    other = new_store(tmp_path / "other")
    scvec.pull(other, tmp_path / "grown.scvec", name="theirs")
    third = scvec.info(other, "theirs").card
    assert third.changed == card.changed
    assert [p["name"] for p in third.derived_from] == ["islets", "mine"]
    # What is done to it there is told besides, once.
    scvec.drop_cells(other, "theirs", where="donor = 'donor 9'")
    assert [c["what"] for c in scvec.info(other, "theirs").card.changed] == ["appended", "deleted", "deleted"]
    assert len(scvec.info(other, "theirs").card.derived_from) == 2


def grown(store, made):
    more = anndata.read_h5ad(made / "new.h5ad")
    scvec.append_cells(store, [more], name="islets", label_key="cell_type")


#: What may have happened to a reference of the name of a pack, and whether pull may replace it unasked.
BEFORE_PULL = {
    "pulled": (lambda store, made: scvec.pull(store, made / "whole.scvec"), True),
    "pulled, then compacted": (
        lambda store, made: (scvec.pull(store, made / "whole.scvec"), scvec.compact(store)),
        True,
    ),
    "another file of the pack": (lambda store, made: scvec.pull(store, made / "bare.scvec"), True),
    "ingested": (
        lambda store, made: scvec.ingest_cells(
            store, [made / "ref.h5ad"], name="islets", label_key="cell_type"
        ),
        False,
    ),
    "appended to": (
        lambda store, made: (scvec.pull(store, made / "whole.scvec"), grown(store, made)),
        False,
    ),
    "deleted from": (
        lambda store, made: (
            scvec.pull(store, made / "whole.scvec"),
            scvec.drop_cells(store, "islets", where="donor = 'donor1'"),
        ),
        False,
    ),
    "with other terms": (
        lambda store, made: (
            scvec.pull(store, made / "whole.scvec"),
            labels(store, "islets", set={"alpha": "CL:0000236"}),
        ),
        False,
    ),
    "of another pack": (lambda store, made: scvec.pull(store, "pancreas-mouse", name="islets"), False),
}


@pytest.mark.parametrize("case", BEFORE_PULL)
def test_pull_replaces_only_what_it_can_bring_back(case, made, target):
    prepare, may_replace = BEFORE_PULL[case]
    prepare(target, made)
    before = content(target)
    if may_replace:
        assert scvec.pull(target, made / "whole.scvec").n_cells == 120
        return
    with pytest.raises(InputError) as refused:
        scvec.pull(target, made / "whole.scvec")
    assert refused.value.code == "reference-exists" and content(target) == before
    ran = CliRunner().invoke(cli, ["pull", str(made / "whole.scvec"), "--store", str(target), "--json"])
    assert ran.exit_code == 2 and json.loads(ran.stdout)["code"] == "reference-exists"
    scvec.pull(target, made / "whole.scvec", name="other")
    assert set(Store(target).references()) == {"islets", "other"}
    ran = CliRunner().invoke(cli, ["pull", str(made / "whole.scvec"), "--store", str(target), "--replace"])
    assert ran.exit_code == 0 and Store(target).reference("islets").n == 120


@pytest.mark.parametrize("bad", [["x"], [{}], {"a": 1}, 5, [{"what": "\x1b[2J", "cells": "x"}]])
def test_an_invalid_card_is_refused(bad, made, target, tmp_path):
    before = content(target)
    pack = with_model(
        made / "whole.scvec", tmp_path / "bad.scvec", lambda _, meta: meta.update(card={"changed": bad})
    )
    with pytest.raises(StoreError):
        scvec.pull(target, pack)
    assert content(target) == before


def test_terminal_codes_in_a_card_are_removed(made, target, tmp_path):
    card = {"license": "\x1b]0;title\x07", "sources": ["\x1b[2J\u202etxt", "!!python/object:os.system"]}
    pack = with_model(made / "whole.scvec", tmp_path / "odd.scvec", lambda _, meta: meta.update(card=card))
    lines = [*scvec.pull(target, pack).card, *scvec.info(target, "islets").lines()]
    assert all(line.isprintable() for line in lines) and any("[2J" in line for line in lines)


def test_two_packs_or_references_are_compared(made, target, tmp_path, tiny_adata):
    """Labels, cells, genes, licence and sources, of packs too; nothing where all is equal."""
    adata = tiny_adata(90, 4, donors=3)
    store = made / "store"
    with_fewer = adata[(adata.obs["cell_type"] != "alpha").to_numpy(), 5:].copy()
    scvec.ingest_cells(target, [with_fewer], name="new", label_key="cell_type", batch_key="donor")
    scvec.pack(
        target,
        "new",
        output=tmp_path / "new.scvec",
        card=CardOptions(license="MIT", sources=("x", "doi:10.1/abc")),
    )
    found = diff_references(target, made / "whole.scvec", tmp_path / "new.scvec")
    cells = {label: [entry and entry["cells"] for entry in pair] for label, pair in found.labels.items()}
    counts = with_fewer.obs["cell_type"].value_counts()
    assert cells["alpha"] == [40, None] and cells["ductal"] == [None, counts["ductal"]]
    assert cells["beta"] == [40, counts["beta"]]
    assert found.facts["n_cells"] == (120, len(with_fewer))
    assert found.facts["license"] == ("CC-BY-4.0", "MIT")
    assert found.facts["sources"] == (["doi:10.1/abc"], ["x", "doi:10.1/abc"])
    own, other = (
        set(Store(s).reference(n).meta["all_genes"]) for s, n in ((store, "islets"), (target, "new"))
    )
    assert (found.genes_added, found.genes_removed) == (len(other - own), len(own - other)) != (0, 0)
    assert not found.same and "label alpha: 40 -> 0 cells" in str(found)
    scvec.pull(target, made / "whole.scvec", name="islets")
    assert diff_references(target, "islets", made / "whole.scvec").same
    ran = CliRunner().invoke(cli, ["diff", "--reference", "islets", "new", "--store", str(target), "--json"])
    assert ran.exit_code == 0 and json.loads(ran.stdout)["facts"]["n_cells"] == [120, len(with_fewer)]
    for wrong in (["islets", "--reference"], ["islets", "none", "--reference"], ["x.scvec", "new"]):
        assert CliRunner().invoke(cli, ["diff", *wrong, "--store", str(target)]).exit_code == 2


def test_packs_of_one_reference_are_equal(made, tmp_path):
    scvec.pack(made / "store", output=tmp_path / "again.scvec", card=CARD)
    assert (tmp_path / "again.scvec").read_bytes() == (made / "whole.scvec").read_bytes()


def test_no_cell_can_be_found_in_a_pack_without_cells(made, tmp_path):
    """No array has a row that is, or points like, a vector or a profile of a cell; no name of a cell."""
    stored = Store(made / "store").reference("islets")
    names = set(stored.obs.index)
    profiles = np.zeros((120, len(stored.meta["all_genes"])), dtype=np.float32)
    kept = stored.tensors
    for i in range(120):
        part = slice(kept["sample.indptr"][i], kept["sample.indptr"][i + 1])
        profiles[i, kept["sample.indices"][part]] = kept["sample.data"][part]
    cells = [np.asarray(stored.vectors, dtype=np.float64), profiles.astype(np.float64)]
    with packs.PackReader(made / "bare.scvec") as pack:
        assert pack.manifest.with_cells is False
        for file in pack.manifest.files:
            pack.copy(file, tmp_path / file)
            data = (tmp_path / file).read_bytes()
            assert not any(name.encode() in data for name in names)
            if not file.endswith(".safetensors"):
                continue
            for array in read_tensors(tmp_path / file).values():
                for known in cells:
                    if array.ndim != 2 or array.shape[1] != known.shape[1] or array.dtype.kind != "f":
                        continue
                    # Rows of a few numbers lie near one another by chance: only equal ones count there.
                    same = np.abs(array[:, None, :8] - known[None, :, :8]).max(axis=2) < 1e-6
                    assert not same[np.abs(array[:, :8]).max(axis=1) > 0].any()
                    if array.shape[1] < 50:
                        continue
                    a = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
                    b = known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
                    assert (a @ b.T).max() < 0.999


def test_a_pack_without_cells_annotates(made, target):
    report = scvec.pull(target, made / "bare.scvec")
    assert report.n_cells == 0
    new = scvec.query(target, made / "new.h5ad")
    head = scvec.query(made / "store", made / "new.h5ad", method="head")
    assert (new.label == head.label).mean() == 1
    np.testing.assert_allclose(new.proba, head.proba, atol=1e-5)
    with pytest.raises(InputError):
        scvec.append_cells(target, [made / "ref.h5ad"], name="islets", label_key="cell_type")


def test_labels_of_few_cells_are_not_packed_without_cells(tmp_path, tiny_adata, new_store):
    store = new_store(tmp_path / "store")
    scvec.ingest_cells(store, [tiny_adata(24, 3)], name="r", label_key="cell_type")
    with pytest.raises(InputError):
        scvec.pack(store, output=tmp_path / "r.scvec", with_cells=False)
    assert not (tmp_path / "r.scvec").exists()


# What somebody may do to a pack: each changes the list of (name, bytes) of its members, or the bytes.


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as pack:
        return {i.filename: pack.read(i) for i in pack.infolist()}


def written(path: Path, parts: list[tuple[str, bytes]], **how) -> Path:
    with zipfile.ZipFile(path, "w", how.pop("kind", zipfile.ZIP_STORED)) as pack:
        for name, data in parts:
            info = zipfile.ZipInfo(name, packs.TIME)
            info.external_attr = how.get("mode", 0o644) << 16
            info.compress_type = pack.compression
            pack.writestr(info, data)
    return path


def signed(parts: dict[str, bytes], **changes: bytes) -> list[tuple[str, bytes]]:
    """Return members with new content for some files, and a manifest that is right for them."""
    manifest = json.loads(parts["manifest.json"])
    card = changes.pop("README.md", parts["README.md"])
    files = {k.removeprefix("files/"): v for k, v in parts.items() if k.startswith("files/")}
    renamed = {}
    for old, data in changes.items():
        sha256 = hashlib.sha256(data).hexdigest()
        stem, ending = old.rpartition(".")[0].rpartition("-")[0], old.rpartition(".")[2]
        renamed[old] = f"{stem}-{sha256[:16]}.{ending}"
        del files[old]
        files[renamed[old]] = data
    text = json.dumps(manifest)
    for old, new in renamed.items():
        text = text.replace(old, new)
    manifest = json.loads(text)
    manifest["card"] = hashlib.sha256(card).hexdigest()
    manifest["files"] = {
        n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()
    }
    return [
        ("manifest.json", json.dumps(manifest).encode()),
        ("README.md", card),
        *[(f"files/{n}", d) for n, d in sorted(files.items())],
    ]


def manifest_with(parts: dict[str, bytes], **values) -> list[tuple[str, bytes]]:
    manifest = json.loads(parts["manifest.json"]) | values
    return [("manifest.json", json.dumps(manifest).encode()), *list(parts.items())[1:]]


def deep(_: bytes, __: Path) -> bytes:
    return b"[" * 500_000


def large_header(_: bytes, __: Path) -> bytes:
    return struct.pack("<Q", 1 << 40) + b"{}"


def deep_header(_: bytes, __: Path) -> bytes:
    text = b'{"a":' * 200_000
    return struct.pack("<Q", len(text)) + text


def large_array(_: bytes, __: Path) -> bytes:
    text = json.dumps({"vectors": {"dtype": "F32", "shape": [1 << 40, 1], "data_offsets": [0, 1 << 42]}})
    return struct.pack("<Q", len(text)) + text.encode()


def large_index(data: bytes, _: Path) -> bytes:
    return data[:37] + struct.pack("<Q", 1 << 36) + data[45:]


def table(data: bytes, path: Path, **columns) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, compression="zstd")
    return path.read_bytes()


def many_rows(data: bytes, path: Path) -> bytes:
    import pyarrow as pa

    return table(data, path, x=pa.DictionaryArray.from_arrays(np.zeros(30_000_000, np.int8), ["a"]))


def long_texts(data: bytes, path: Path) -> bytes:
    """120 rows that have one text of 60 MB, which as a file are some kilobytes."""
    import pyarrow as pa

    return table(data, path, x=pa.DictionaryArray.from_arrays(np.zeros(120, np.int8), ["a" * 60_000_000]))


def nested(data: bytes, path: Path) -> bytes:
    return table(data, path, x=[[0] * 100_000] * 120)


#: What fills memory when it is read -> part of the name of the file that it takes the place of, and it.
BOMBS = {
    "deep-meta": (".meta-", deep),
    "deep-golden": ("golden-", deep),
    "large-header": (".model-", large_header),
    "deep-header": (".model-", deep_header),
    "large-array": (".vectors-", large_array),
    "large-index": (".index-", large_index),
    "many-rows": (".obs-", many_rows),
    "long-texts": (".obs-", long_texts),
    "nested": (".obs-", nested),
}


def hostile(name: str, whole: Path, out: Path) -> Path:
    """Return the path of a pack that something was done to."""
    parts = members(whole)
    listed = list(parts.items())
    first = next(n for n in parts if n.startswith("files/"))
    data = bytearray(whole.read_bytes())
    extra = {
        "absolute": "/tmp/x",
        "up": "../x",
        "up-inside": "files/../../x",
        "backslash": "files\\..\\x",
        "drive": "C:\\x",
        "terminal": "files/\x1b[2Jx",
        "newline": "files/a\nb",
        "hidden": "files/.bashrc",
        "folder": "files/sub/x.json",
        "unlisted": "files/extra-0123456789abcdef.json",
        "empty-name": "",
        "long": "files/" + "a" * 300,
        "unicode": "files/\uff41.json",
        "second-manifest": "Manifest.json",
    }
    if name in extra:
        return written(out, [*listed, (extra[name], b"x")])
    if name == "link":
        return written(out, listed, mode=0o120777)
    if name == "folder-entry":
        return written(out, [*listed, ("files/", b"")])
    if name == "deflated":
        return written(out, listed, kind=zipfile.ZIP_DEFLATED)
    if name == "bomb":
        parts[first] = b"\0" * 50_000_000
        return written(out, list(parts.items()), kind=zipfile.ZIP_DEFLATED)
    if name == "twice":
        with pytest.warns(UserWarning):
            return written(out, [*listed, (first, b"other")])
    if name == "manifest-last":
        return written(out, [*listed[1:], listed[0]])
    if name == "no-manifest":
        return written(out, listed[1:])
    if name == "no-card":
        return written(out, [p for p in listed if p[0] != "README.md"])
    if name == "missing-file":
        return written(out, [p for p in listed if p[0] != first])
    if name == "swapped-content":
        return written(out, [(n, b"x" if n == first else d) for n, d in listed])
    if name == "card-changed":
        return written(out, [(n, d + b"!" if n == "README.md" else d) for n, d in listed])
    if name == "not-json":
        return written(out, [("manifest.json", b"{"), *listed[1:]])
    if name == "deep-json":
        return written(out, [("manifest.json", b"[" * 200_000), *listed[1:]])
    if name == "huge-manifest":
        return written(out, [("manifest.json", b" " * (packs.MAX_MANIFEST + 1)), *listed[1:]])
    if name == "newer":
        return written(out, manifest_with(parts, pack=99, needs="\x1b[2J9"))
    if name == "odd-name":
        return written(out, manifest_with(parts, name="../../etc"))
    if name == "other-ending":
        return written(out, manifest_with(parts, golden=["golden.pkl", "golden.json"]))
    if name == "wrong-size":
        files = json.loads(parts["manifest.json"])["files"]
        files[first.removeprefix("files/")]["bytes"] = 1 << 60
        return written(out, manifest_with(parts, files=files))
    if name == "truncated":
        out.write_bytes(data[: len(data) // 2])
    elif name == "cut-end":
        out.write_bytes(data[:-10])
    elif name == "flipped-byte":
        data[data.find(b"files/") + 5000] ^= 1
        out.write_bytes(data)
    elif name == "wrong-crc":
        at = data.rfind(b"PK\x01\x02", 0, data.rfind(first.encode()))
        data[at + 16] ^= 1
        out.write_bytes(data)
    elif name == "overlapping":
        # The directory's second entry points at the first one's header.
        entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]
        data[entries[-1] + 42 : entries[-1] + 46] = struct.pack("<I", 0)
        out.write_bytes(data)
    elif name == "encrypted":
        data[data.rfind(b"PK\x01\x02") + 8] |= 1
        out.write_bytes(data)
    elif name == "text":
        out.write_text("not a pack")
    elif name == "empty":
        out.write_bytes(b"")
    elif name == "other-zip":
        return written(out, [("hello.txt", b"hello")])
    elif name == "model-is-text":
        model = next(n for n in parts if ".model-" in n).removeprefix("files/")
        return written(out, signed(parts, **{model: b"not safetensors"}))
    elif name == "obs-is-text":
        obs = next(n for n in parts if ".obs-" in n).removeprefix("files/")
        return written(out, signed(parts, **{obs: b"not parquet"}))
    elif name == "meta-is-a-list":
        meta = next(n for n in parts if ".meta-" in n).removeprefix("files/")
        return written(out, signed(parts, **{meta: b"[]"}))
    elif name in ("comment", "gap"):
        with zipfile.ZipFile(out, "w") as pack:
            for member, content_ in listed:
                pack.writestr(zipfile.ZipInfo(member, packs.TIME), content_)
                if name == "gap":
                    pack.fp.write(b"hidden")
                    pack.start_dir = pack.fp.tell()
            pack.comment = b"#!/bin/sh" if name == "comment" else b""
    elif name == "trailing":
        out.write_bytes(data + b"x" * 100)
    elif name == "before":
        out.write_bytes(b"#!/bin/sh\n" + data)
    elif name == "stream":
        for at in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
            data[at] |= 8
        out.write_bytes(data)
    elif name == "zip64-lies":
        # A second end of the directory, in long numbers, claims a thousand billion members.
        lies = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 40, 0)
        where = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1)
        out.write_bytes(data[:-22] + lies + where + data[-22:])
    elif name == "size-lies":
        at = data.rfind(b"PK\x01\x02")
        data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFFE, 0xFFFFFFFE)
        out.write_bytes(data)
    elif name == "many-members":
        return written(out, [*listed, *[(f"files/{k}.json", b"") for k in range(20_000)]])
    elif name == "same-but-for-case":
        return written(out, [*listed, (first.upper().replace("FILES/", "files/"), parts[first])])
    elif name == "link-of-windows":
        with zipfile.ZipFile(out, "w") as pack:
            for member, content_ in listed:
                info = zipfile.ZipInfo(member, packs.TIME)
                info.create_system, info.external_attr = 0, 0o120777 << 16 | 0x400
                pack.writestr(info, content_)
    elif name == "index-is-a-table":
        obs, index = (
            next(n for n in parts if f".{p}-" in n).removeprefix("files/") for p in ("obs", "index")
        )
        text = parts["manifest.json"].decode().replace(index, index.rpartition(".")[0] + ".parquet")
        moved = {f"files/{index}": f"files/{index.rpartition('.')[0]}.parquet"}
        return written(
            out, [("manifest.json", text.encode())] + [(moved.get(n, n), d) for n, d in listed[1:]]
        )
    elif name in BOMBS:
        part, make = BOMBS[name]
        member = next(n for n in parts if part in n).removeprefix("files/")
        return written(out, signed(parts, **{member: make(parts[f"files/{member}"], out)}))
    elif name == "golden-is-a-list":
        golden = next(n for n in parts if "golden-" in n and n.endswith("json")).removeprefix("files/")
        return written(out, signed(parts, **{golden: b"[]"}))
    else:
        raise KeyError(name)
    return out


HOSTILE = [
    *BOMBS,
    *"absolute up up-inside backslash drive terminal newline hidden folder unlisted long unicode "
    "second-manifest link folder-entry deflated bomb twice manifest-last no-manifest no-card missing-file "
    "swapped-content card-changed not-json deep-json huge-manifest newer odd-name other-ending wrong-size "
    "truncated cut-end flipped-byte wrong-crc overlapping encrypted text empty other-zip model-is-text "
    "obs-is-text meta-is-a-list golden-is-a-list "
    "comment gap trailing before stream zip64-lies size-lies many-members same-but-for-case link-of-windows "
    "index-is-a-table".split(),
]
#: Seconds in which a pack must be refused.
SECONDS = 5.0


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_packs_change_nothing(name, made, target, tmp_path, record_property):
    before, outside = content(target), sorted(p.name for p in tmp_path.iterdir())
    pack = hostile(name, made / "whole.scvec", tmp_path / "bad.scvec")
    began = time.process_time()
    with pytest.raises(ScvecError) as caught:
        scvec.pull(target, pack)
    assert time.process_time() - began < SECONDS
    record_property("seconds", time.process_time() - began)
    assert isinstance(caught.value, StoreError | InputError)
    assert "\x1b" not in str(caught.value)
    assert content(target) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*outside, "bad.scvec"])


def with_model(whole: Path, out: Path, change) -> Path:
    """Return a pack whose model, description or both were changed, with all checksums right."""
    parts = members(whole)
    wanted = ("model", "meta")
    name = {p: next(n for n in parts if f".{p}-" in n).removeprefix("files/") for p in wanted}
    file = out.with_suffix(".safetensors")
    file.write_bytes(parts[f"files/{name['model']}"])
    tensors, meta = read_tensors(file), json.loads(parts[f"files/{name['meta']}"])
    change(tensors, meta)
    write_tensors(file, tensors)
    changed = {name["model"]: file.read_bytes(), name["meta"]: json.dumps(meta).encode()}
    file.unlink()
    return written(out, signed(parts, **changed))


def zeroed_head(tensors, meta):
    tensors["head.W"] = np.zeros_like(tensors["head.W"])


def swapped_classes(tensors, meta):
    meta["classes"] = meta["classes"][::-1]


def other_gene_order(tensors, meta):
    genes = meta["all_genes"]
    meta["all_genes"] = meta["genes"] = genes[1:] + genes[:1]


def other_axes(tensors, meta):
    tensors["encoder.0.weights"] = -tensors["encoder.0.weights"]


def shuffled_labels(tensors, meta):
    meta["model"]["calibration"]["temperatures"] = [0.01, 0.01]


@pytest.mark.parametrize(
    "change", [zeroed_head, swapped_classes, other_gene_order, other_axes, shuffled_labels]
)
def test_the_golden_query_finds_a_pack_that_does_not_work(change, made, target, tmp_path):
    before = content(target)
    pack = with_model(made / "whole.scvec", tmp_path / "bad.scvec", change)
    with packs.PackReader(pack) as opened:
        opened.check()  # every checksum is right
    with pytest.raises(StoreError):
        scvec.pull(target, pack)
    assert content(target) == before


def test_the_same_model_passes_the_golden_query(made, target, tmp_path):
    """Otherwise the test above would prove nothing."""
    scvec.pull(target, with_model(made / "whole.scvec", tmp_path / "same.scvec", lambda *_: None))


class Files(BaseHTTPRequestHandler):
    """Serves one file, also in parts; interrupts after some bytes on request."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def do_GET(self):
        data, start = self.state["data"], 0
        self.state["asked"].append(self.headers.get("Range"))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/islets.scvec")
            self.end_headers()
            return
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        if (asked := self.headers.get("Range")) and self.state.get("ranges", True):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        part = data[start:]
        if self.state["asked"] and (cut := self.state.pop("cut", None)):
            part = part[:cut]
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(made, monkeypatch, tmp_path):
    monkeypatch.setattr("scvec.workflows.pull.cache_folder", lambda: tmp_path / "cache")
    state = {"data": (made / "whole.scvec").read_bytes(), "asked": []}
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, state))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    state["url"] = f"http://127.0.0.1:{httpd.server_port}/islets.scvec"
    state["sha256"] = hashlib.sha256(state["data"]).hexdigest()
    yield state
    httpd.shutdown()
    httpd.server_close()


def test_an_address_with_its_hash_is_pulled(server, target):
    assert scvec.pull(target, f"{server['url']}#sha256={server['sha256']}").name == "islets"


def test_an_address_without_a_hash_is_refused_unless_trusted(server, target):
    with pytest.raises(InputError):
        scvec.pull(target, server["url"])
    assert server["asked"] == []
    scvec.pull(target, server["url"].replace("islets", "moved"), trust=True)


def test_another_file_than_the_hash_says_is_refused(server, target, tmp_path):
    before = content(target)
    with pytest.raises(StoreError):
        scvec.pull(target, f"{server['url']}#sha256={'0' * 64}")
    assert content(target) == before and not list((tmp_path / "cache").glob("*.scvec"))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on(server, target, ranges):
    server["cut"], server["ranges"] = 10_000, ranges
    address = f"{server['url']}#sha256={server['sha256']}"
    with pytest.raises(NetworkError):
        scvec.pull(target, address)
    scvec.pull(target, address)
    assert server["asked"] == [None, "bytes=10000-"]


def test_a_refused_name_needs_no_second_download(server, made, target):
    address = f"{server['url']}#sha256={server['sha256']}"
    scvec.ingest_cells(target, [made / "ref.h5ad"], name="islets", label_key="cell_type")
    with pytest.raises(InputError) as refused:
        scvec.pull(target, address)
    assert refused.value.code == "reference-exists"
    scvec.pull(target, address, name="other")
    assert server["asked"] == [None]


def test_a_file_that_is_too_large_is_not_downloaded(server, target):
    with pytest.raises(ResourceError):
        scvec.pull(target, server["url"], trust=True, max_bytes=1000)


@pytest.mark.parametrize(
    "source",
    ["https://a.org/x.scvec#sha256=12", "https://u:p@a.org/x", "hf:only", "hf:a/b", "hf:a/../b@" + "0" * 40],
)
def test_invalid_addresses_are_refused(source, target):
    with pytest.raises(InputError) as caught:
        scvec.pull(target, source)
    assert "u:p" not in str(caught.value)


def test_a_mirror_is_a_plain_folder(made, target, tmp_path, monkeypatch, server):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "islets.scvec").write_bytes((made / "whole.scvec").read_bytes())
    monkeypatch.setenv("SCVEC_MIRROR", str(mirror))
    scvec.pull(target, "islets")
    address = f"https://example.org/some/islets.scvec#sha256={server['sha256']}"
    scvec.pull(target, address)
    (mirror / "islets.scvec").write_bytes(b"other")
    with pytest.raises(StoreError):
        scvec.pull(target, address)
    assert server["asked"] == []


def test_a_mirror_is_an_address(server, target, monkeypatch):
    monkeypatch.setenv("SCVEC_MIRROR", server["url"].rpartition("/")[0])
    with pytest.raises(InputError):
        scvec.pull(target, "https://example.org/some/islets.scvec")
    assert server["asked"] == []
    scvec.pull(target, f"https://example.org/some/islets.scvec#sha256={server['sha256']}")
    assert server["asked"] == [None]


COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(BaseHTTPRequestHandler):
    """Imitates the Hugging Face hub: list of a repository, and its files."""

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def give(self, data, code=200, **headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_GET(self):
        self.state["asked"].append((self.command, self.path))
        found = self.state["files"]
        if self.path in (f"/api/models/lab/islets/revision/{COMMIT}", "/api/models/lab/islets"):
            siblings = [{"rfilename": name} for name in (*found, "README.md")]
            about = {"id": "lab/islets", "modelId": "lab/islets", "sha": COMMIT, "siblings": siblings}
            self.give(json.dumps(about).encode(), Content_Type="application/json")
        elif (name := self.path.removeprefix(f"/lab/islets/resolve/{COMMIT}/")) in found:
            tag = hashlib.sha256(found[name]).hexdigest()
            self.give(found[name], X_Repo_Commit=COMMIT, ETag=f'"{tag}"', Accept_Ranges="bytes")
        else:
            self.give(b"{}", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """A server that is Hugging Face's hub to the real huggingface_hub."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    state = {"files": {"islets.scvec": (made / "whole.scvec").read_bytes()}, "asked": []}
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, state))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state["url"] = f"http://127.0.0.1:{httpd.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", state["url"])
    files = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", state["url"] + files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield state
    httpd.shutdown()
    httpd.server_close()


def test_a_file_of_the_hub_is_pulled(hub, target):
    report = scvec.pull(target, f"hf:lab/islets@{COMMIT}")
    assert report.name == "islets" and report.source == f"hf:lab/islets@{COMMIT}:islets.scvec"
    assert ("GET", f"/lab/islets/resolve/{COMMIT}/islets.scvec") in hub["asked"]
    # Without a commit it is taken on trust only, and the report names the commit that it was.
    hub["asked"].clear()
    with pytest.raises(InputError):
        scvec.pull(target, "hf:lab/islets")
    assert hub["asked"] == []
    assert COMMIT in scvec.pull(target, "hf:lab/islets:islets.scvec", name="again", trust=True).source


def test_what_the_hub_does_not_give(hub, target):
    before = content(target)
    hub["files"]["other.scvec"] = b"no pack"
    with pytest.raises(InputError) as caught:
        scvec.pull(target, f"hf:lab/islets@{COMMIT}")
    assert "2 packs" in str(caught.value)
    with pytest.raises(InputError):
        scvec.pull(target, f"hf:lab/islets@{COMMIT}:other.scvec")
    for wrong in (f"hf:lab/islets@{COMMIT}:none.scvec", f"hf:lab/nothing@{COMMIT}:islets.scvec"):
        with pytest.raises(NetworkError):
            scvec.pull(target, wrong)
    assert content(target) == before


@pytest.mark.slow
def test_the_hub_that_the_environment_names(hub, target, tmp_path):
    env = {**os.environ, "HF_ENDPOINT": hub["url"], "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    words = [sys.executable, "-m", "scvec", "pull", f"hf:lab/islets@{COMMIT}", "--store", str(target)]
    env["PYTHONPATH"] = str(Path(scvec.__file__).parents[1])
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(Store(target).references()) == {"islets"}


def test_an_unknown_name_lists_the_known_ones(target):
    with pytest.raises(InputError) as caught:
        scvec.pull(target, "pancreas-hamster")
    assert "pancreas-human" in caught.value.fix


#: Runs what it is told in processes made by fork: the libraries are loaded once. A line has a store
#: and seconds after which the process is killed, or -1.
KILLED = """
import os, signal, sys, threading, time
import duckdb, faiss, pandas, pyarrow.parquet, safetensors.numpy, scipy.sparse
import scvec.model.golden, scvec.model.resolvers, scvec.stores.store.store
from scvec.workflows.pull import pull
for line in sys.stdin:
    store, seconds = line.split()
    begun = time.perf_counter()
    child = os.fork()
    if child == 0:
        if float(seconds) >= 0:
            threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()
        pull(store, sys.argv[1])
        time.sleep(60 if float(seconds) >= 0 else 0)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), time.perf_counter() - begun, flush=True)
"""


@pytest.fixture
def stack():
    with ExitStack() as found:
        yield found


@pytest.mark.kill
@pytest.mark.timeout(3000)
@pytest.mark.slow
def test_killed_while_it_pulls(made, tmp_path, new_store, stack):
    """Whatever the moment, the store has the reference whole or not at all, and a second run completes.

    ``SCVEC_KILLS`` says how often.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(scvec.__file__).parents[1])}

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [sys.executable, "-c", KILLED, str(made / "whole.scvec")]
    forks = stack.enter_context(subprocess.Popen(words, env=environment, **pipes))

    def run(store, seconds):
        print(store, seconds, file=forks.stdin, flush=True)
        code, took = forks.stdout.readline().split()
        assert int(code) == (-signal.SIGKILL if seconds >= 0 else 0)
        return took

    whole = new_store(tmp_path / "whole")
    takes = float(run(whole, -1))
    expected = scvec.query(whole, made / "new.h5ad").proba
    chance, found = random.Random(3), []
    for k in range(int(os.environ.get("SCVEC_KILLS", "6"))):
        store = new_store(tmp_path / f"store{k}")
        run(store, chance.uniform(0, takes))
        opened = Store(store)
        assert opened.verify().to_dict()["problems"] == []
        found.append("islets" in opened.references())
        if found[-1]:
            np.testing.assert_array_equal(scvec.query(store, made / "new.h5ad").proba, expected)
        scvec.pull(store, made / "whole.scvec")
        again = Store(store)
        assert set(again.references()) == {"islets"} and again.verify().to_dict()["problems"] == []
        files = [p.name for p in (store / "files").iterdir() if p.name.startswith("islets.")]
        assert sorted(files) == sorted(again.reference("islets").entry.files())
        np.testing.assert_array_equal(scvec.query(store, made / "new.h5ad").proba, expected)
        shutil.rmtree(store)
    assert not all(found)
    print(f"{len(found)} kills within {takes:.1f} s, {sum(found)} after the reference was there")
