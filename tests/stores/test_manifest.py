from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Space
from scvec.stores.store.manifest import (
    FORMAT,
    FileEntry,
    KnowledgeEntry,
    Manifest,
    ReferenceEntry,
    SpaceEntry,
    portable,
)

SPACE = Space("minilm", "r1", "ab" * 32, "{text}", "mean", 8, True)
SHA = "0123456789abcdef" * 4


def manifest(**changes):
    space = SpaceEntry(SPACE, 3, "genes-1.parquet", "v-1.safetensors", "i-1.faiss", "flat")
    reference = ReferenceEntry(
        2, 4, "m.json", "t.safetensors", "o.parquet", "v.safetensors", "i.faiss", "flat"
    )
    files = {name: FileEntry(5, SHA) for name in (*space.files(), *reference.files())}
    fields = {
        "generation": 7,
        "command": "ingest cells",
        "params": {"seed": 0},
        "versions": {"scvec": "0.1.0"},
        "files": files,
        "knowledge": KnowledgeEntry("kb-1.duckdb", "d" * 64, 1),
        "spaces": {SPACE.fingerprint: space},
        "references": {"pancreas": reference},
        "run": {"created_at": "2026-01-01", "kb_bytes": 9, "kb_sha256": SHA},
    }
    return Manifest(**{**fields, **changes})


def test_round_trip():
    first = manifest()
    again = Manifest.from_bytes(first.to_bytes(), "x")
    assert again == first
    assert again.to_bytes() == first.to_bytes()
    assert again.entry("kb-1.duckdb") == FileEntry(9, SHA)
    assert set(again.all_files()) == set(first.files) | {"kb-1.duckdb"}


def test_empty_round_trip():
    assert Manifest.from_bytes(Manifest(0).to_bytes(), "x") == Manifest(0)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/ann/ref.h5ad", "ref.h5ad"),
        ("~/ref.h5ad", "ref.h5ad"),
        ("C:\\data\\ref.h5ad", "ref.h5ad"),
        ("\\\\server\\share\\ref.h5ad", "ref.h5ad"),
        ("file:///home/ann/ref.h5ad", "ref.h5ad"),
        ("st:/home/ann/model", "st:model"),
        (Path("/home/ann/ref.h5ad"), "ref.h5ad"),
        ("https://host/v1", "https://host/v1"),
        ("st:org/model", "st:org/model"),
        ("data/ref.h5ad", "data/ref.h5ad"),
        ("cell_type", "cell_type"),
        ({"a": ["/x/y"]}, {"a": ["y"]}),
        (np.float32(0.5), 0.5),
        ((1, np.int64(2)), [1, 2]),
    ],
)
def test_paths_of_a_machine_are_not_written(given, kept):
    assert portable(given) == kept
    assert json.loads(manifest(params={"p": given}).to_bytes())["params"]["p"] == kept


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {"x": b"y"}])
def test_values_that_json_cannot_hold_are_refused(value):
    with pytest.raises(InputError):
        portable(value)


def change(path, value):
    def apply(data):
        *way, last = path
        for key in way:
            data = data[key]
        data[last] = value

    return apply


def rename_file(new):
    def apply(data):
        data["files"][new] = data["files"].pop("m.json")
        data["references"]["pancreas"]["meta"] = new

    return apply


BAD_NAMES = [
    "../x",
    "a/b",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\\b",
    "C:x",
    "a\x00b",
    "a\nb",
    ".hidden",
    "a..b",
    "x" * 200,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_file_names_that_lead_elsewhere_are_refused(name):
    data = json.loads(manifest().to_bytes())
    rename_file(name)(data)
    with pytest.raises(StoreError, match="damaged"):
        Manifest.from_bytes(json.dumps(data).encode(), "x")
    data = json.loads(manifest().to_bytes())
    data["knowledge"]["file"] = name
    with pytest.raises(StoreError, match="damaged"):
        Manifest.from_bytes(json.dumps(data).encode(), "x")
    data = json.loads(manifest().to_bytes())
    data["references"][name] = data["references"]["pancreas"]
    with pytest.raises(StoreError, match="damaged"):
        Manifest.from_bytes(json.dumps(data).encode(), "x")


@pytest.mark.parametrize(
    "spoil",
    [
        change(["files", "m.json", "sha256"], "xyz"),
        change(["files", "m.json", "sha256"], None),
        change(["files", "m.json", "bytes"], -1),
        change(["files", "m.json", "bytes"], "5"),
        change(["files", "m.json", "bytes"], True),
        change(["files", "stray.json"], {"bytes": 1, "sha256": SHA}),
        change(["files"], []),
        change(["generation"], -1),
        change(["generation"], "7"),
        change(["generation"], 10**7),
        change(["spaces", SPACE.fingerprint, "space", "dim"], 9),
        change(["spaces", SPACE.fingerprint, "space", "dim"], 0),
        change(["spaces", SPACE.fingerprint, "extra"], 0),
        change(["references", "pancreas", "n"], -5),
        change(["references", "pancreas"], None),
        change(["run", "kb_bytes"], None),
        change(["run"], {}),
        change(["run"], None),
        change(["knowledge", "digest"], 1),
        change(["format"], 0),
        change(["format"], "1"),
        change(["format"], None),
        lambda data: data.pop("files"),
        lambda data: data["files"].pop("m.json"),
    ],
)
def test_an_inconsistent_manifest_is_refused(spoil):
    data = json.loads(manifest().to_bytes())
    spoil(data)
    with pytest.raises(StoreError) as error:
        Manifest.from_bytes(json.dumps(data).encode(), "x")
    assert error.value.exit_code == 3 and len(error.value.lines()) <= 3


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"7", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}']
)
def test_other_texts_than_manifests_are_refused(data):
    with pytest.raises(StoreError):
        Manifest.from_bytes(data, "x")


def test_a_newer_format_names_the_version_needed():
    data = {"format": FORMAT + 1, "needs": "2.5.0", "all": "new"}
    with pytest.raises(StoreError) as error:
        Manifest.from_bytes(json.dumps(data).encode(), "x")
    assert f"format {FORMAT + 1}" in error.value.what and "2.5.0" in error.value.fix


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(data=st.data(), value=json_values)
def test_any_value_anywhere_is_read_or_refused(data, value):
    """Hostile values make the reader raise StoreError and no other exception."""
    document = json.loads(manifest().to_bytes())
    spoiled = copy.deepcopy(document)
    node = spoiled
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if isinstance(node[key], dict) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = value
        break
    try:
        read = Manifest.from_bytes(json.dumps(spoiled).encode(), "x")
    except StoreError:
        return
    assert all("/" not in name and ".." not in name for name in read.all_files())
