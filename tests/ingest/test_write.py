"""Annotated copies: all that was there stays to the bit, and nothing half-written is left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvec
from scvec.base.errors import InputError, ResourceError
from scvec.ingest.cells import write
from scvec.ingest.cells.write import check_output, write_annotated, write_table, write_tables

N = 40


@pytest.fixture
def adata() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(rng.poisson(1.0, (N, 30)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(["a", "b"] * (N // 2), ["b", "a", "unused"], ordered=True),
            "depth": pd.array([1, None] * (N // 2), dtype="Int64"),
            "ok": pd.array([True, None] * (N // 2), dtype="boolean"),
            "score": rng.random(N).astype(np.float32),
            "text": [f"=1+{i}" for i in range(N)],
            "scvec_label": ["old"] * N,
        },
        index=[f"c{i // 2}" for i in range(N)],  # names that repeat stay as they are
    )
    obs.index.name = "barcode"
    adata = anndata.AnnData(
        x, obs=obs, var=pd.DataFrame({"n": range(30)}, index=[f"g{i}" for i in range(30)])
    )
    adata.raw = adata
    adata.layers["counts"] = x.copy()
    adata.obsm["X_pca"] = rng.random((N, 4))
    adata.obsp["near"] = sp.eye(N, format="csr")
    adata.uns = {"colors": np.array(["#fff"]), "deep": {"x": 1}}
    return adata


@pytest.fixture
def source(adata: anndata.AnnData, tmp_path: Path) -> Path:
    adata.write_h5ad(tmp_path / "in.h5ad", convert_strings_to_categoricals=False)
    return tmp_path / "in.h5ad"


def added() -> tuple[pd.DataFrame, dict, dict]:
    obs = pd.DataFrame(
        {
            "scvec_label": pd.Categorical(["beta", "alpha"] * (N // 2)),
            "scvec_confidence": np.linspace(0, 1, N, dtype=np.float32),
            "scvec_cl_id": ["CL:0000169", None] * (N // 2),
            "scvec_n": np.arange(N),
            "scvec_status": pd.Series(["novel"] * N, dtype="string").to_numpy(),
        }
    )
    obsm = {"X_scvec": np.random.default_rng(1).random((N, 8)).astype(np.float32)}
    parameters = {
        "n": 15,
        "where": None,
        "species": ("human", "mouse"),
        "a/b": True,
        "rows": [{"x": 1}, None],
    }
    return obs, obsm, {"scvec": {"version": "0.1", "classes": ["alpha", "beta"], "parameters": parameters}}


def digest(path: Path) -> dict[str, tuple]:
    """Bytes and attributes of everything in a file."""
    found: dict[str, tuple] = {}

    def visit(name: str, item) -> None:
        attributes = {k: np.asarray(v).tolist() for k, v in item.attrs.items()}
        content = item[()] if isinstance(item, h5py.Dataset) else None
        found[name] = (
            str(getattr(item, "dtype", "")),
            attributes,
            np.asarray(content).tobytes() if content is not None and item.dtype != object else repr(content),
        )

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_all_other_content_is_copied_to_the_bit(source: Path, tmp_path: Path) -> None:
    before, old = source.read_bytes(), digest(source)
    out = tmp_path / "out.h5ad"
    write_annotated(source, out, *added())
    assert source.read_bytes() == before
    new = digest(out)
    for name, content in old.items():
        if name != "obs" and not name.startswith("obs/scvec_label"):
            assert new[name] == content, name
    assert {name.split("/")[0] for name in set(new) - set(old)} == {"obs", "obsm", "uns"}


@pytest.mark.parametrize("kind", ["file", "object", "backed", "view"])
def test_results_are_there_for_anndata(
    kind: str, adata: anndata.AnnData, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5ad"
    given = {
        "file": lambda: source,
        "object": lambda: adata,
        "backed": lambda: anndata.read_h5ad(source, backed="r"),
        "view": lambda: adata[:, :],
    }[kind]()
    obs, obsm, uns = added()
    write_annotated(given, out, obs, obsm, uns)
    got = anndata.read_h5ad(out)
    assert list(got.obs["scvec_label"]) == ["beta", "alpha"] * (N // 2)
    assert got.obs["scvec_confidence"].dtype == np.float32
    assert got.obs["scvec_cl_id"].isna().sum() == N // 2
    assert list(got.obs_names) == list(adata.obs_names) and got.obs.index.name == "barcode"
    for column in ("cell_type", "depth", "ok", "score", "text"):
        # A view has its own idea of categories, which anndata makes when the view is taken.
        expected = given.obs[column] if kind == "view" else adata.obs[column]
        pd.testing.assert_series_equal(got.obs[column], expected)
    np.testing.assert_array_equal(got.obsm["X_scvec"], obsm["X_scvec"])
    np.testing.assert_array_equal(got.obsm["X_pca"], adata.obsm["X_pca"])
    assert (
        (got.X != adata.X).nnz == (got.raw.X != adata.raw.X).nnz == (got.layers["counts"] != adata.X).nnz == 0
    )
    assert got.uns["deep"] == {"x": 1}
    stored = got.uns["scvec"]
    assert list(stored["classes"]) == ["alpha", "beta"] and stored["version"] == "0.1"
    assert list(stored["parameters"]["species"]) == ["human", "mouse"]
    assert "where" not in stored["parameters"] and stored["parameters"]["a|b"]
    got[got.obs["scvec_confidence"] > 0.5].copy().write_h5ad(tmp_path / "again.h5ad")


def test_the_object_is_not_changed(adata: anndata.AnnData, tmp_path: Path) -> None:
    write_annotated(adata, tmp_path / "out.h5ad", *added())
    assert set(adata.obs["scvec_label"]) == {"old"}
    assert "X_scvec" not in adata.obsm and "scvec" not in adata.uns
    assert adata.obs["text"].dtype == object


def test_a_copy_can_be_annotated_again(source: Path, tmp_path: Path) -> None:
    obs, obsm, uns = added()
    write_annotated(source, tmp_path / "a.h5ad", obs, obsm, uns)
    write_annotated(
        tmp_path / "a.h5ad", tmp_path / "b.h5ad", obs[["scvec_n"]] * 2, {}, {"scvec": {"version": "2"}}
    )
    got = anndata.read_h5ad(tmp_path / "b.h5ad")
    assert list(got.obs["scvec_n"]) == list(range(0, 2 * N, 2))
    assert got.uns["scvec"] == {"version": "2"} and got.obs.columns.is_unique


def test_a_file_of_old_anndata_comes_out_as_a_new_one(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.ones((N, 2), np.float32)
        file["obs"] = np.array(
            [(f"c{i}".encode(), i) for i in range(N)], dtype=[("index", "S4"), ("n", "i8")]
        )
        file["var"] = np.array([(b"g0",), (b"g1",)], dtype=[("index", "S4")])
    write_annotated(tmp_path / "old.h5ad", tmp_path / "out.h5ad", *added())
    got = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(got.obs["n"]) == list(range(N)) and "scvec_label" in got.obs


def test_the_output_is_as_long_as_it_must_be(source: Path, tmp_path: Path) -> None:
    write_annotated(source, tmp_path / "out.h5ad", *added())
    assert (tmp_path / "out.h5ad").stat().st_size < source.stat().st_size + 200_000


@pytest.mark.parametrize("make", ["same", "symlink", "hardlink", "dots"])
def test_the_input_is_never_the_output(make: str, source: Path, tmp_path: Path) -> None:
    out = {"same": source, "dots": tmp_path / "x" / ".." / "in.h5ad"}.get(make, tmp_path / "alias.h5ad")
    (tmp_path / "x").mkdir()
    if make == "symlink":
        out.symlink_to(source)
    if make == "hardlink":
        os.link(source, out)
    before = source.read_bytes()
    with pytest.raises(InputError, match="output is the input"):
        write_annotated(source, out, *added())
    assert source.read_bytes() == before


def test_outputs_that_cannot_be_written_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_output(tmp_path / "no" / "out.h5ad")
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(InputError, match="slash"):
        write_annotated(source, tmp_path / "o.h5ad", pd.DataFrame({"a/b": range(N)}))
    with pytest.raises(InputError, match="names of the cells"):
        write_annotated(source, tmp_path / "o.h5ad", pd.DataFrame({"barcode": range(N)}))
    with pytest.raises(ValueError, match="3 rows of annotation for 40 cells"):
        write_annotated(source, tmp_path / "o.h5ad", pd.DataFrame({"a": range(3)}))
    assert sorted(os.listdir(tmp_path)) == ["in.h5ad"]


def test_an_object_that_anndata_cannot_write_is_an_error(source: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(source)
    adata.uns["call"] = len
    with pytest.raises(InputError, match="call") as caught:
        write_annotated(adata, tmp_path / "o.h5ad", *added())
    assert caught.value.code == "output-not-writable" and sorted(os.listdir(tmp_path)) == ["in.h5ad"]


def test_an_old_output_survives_a_failure(source: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out.h5ad"
    out.write_text("precious")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_add_columns", fail)
    with pytest.raises(KeyboardInterrupt):
        write_annotated(source, out, *added())
    assert out.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["in.h5ad", "out.h5ad"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_before_hdf5_sees_it(
    code: int, source: Path, tmp_path: Path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        write_annotated(source, tmp_path / "out.h5ad", *added())
    assert caught.value.exit_code == 6
    assert os.listdir(tmp_path) == ["in.h5ad"]


def test_a_disk_without_reservation_is_asked_for_its_room(source: Path, tmp_path: Path, monkeypatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
    write_annotated(source, tmp_path / "out.h5ad", *added())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError):
        write_annotated(source, tmp_path / "out2.h5ad", *added())


LIMITED = """
import os, resource, sys
import anndata, numpy as np, pandas as pd
from scvec.base.errors import ResourceError
from scvec.ingest.cells.write import write_annotated
from scvec.ingest.cells.write import write_table

source, folder = sys.argv[1:]
obs = pd.DataFrame({"scvec_n": range(40)})
adata = anndata.read_h5ad(source)
limit = os.path.getsize(source) + 10_000  # room for the copy, not for what is added
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
big = np.random.default_rng(0).random((40, 20000))
table = pd.DataFrame(big)
for write in (
    lambda: write_annotated(source, folder + "/a.h5ad", obs, {"x": big}),
    lambda: write_annotated(adata, folder + "/b.h5ad", obs, {"x": big}),
    lambda: write_table(table, folder + "/c.csv"),
    lambda: write_table(table, folder + "/d.parquet"),
):
    try:
        write()
        print("written")
    except ResourceError:
        print("refused")
print(os.listdir(folder))
"""


@pytest.mark.skipif(os.name == "nt", reason="no file size limits")
@pytest.mark.slow
def test_a_real_limit_ends_in_an_error_not_in_a_crash(source: Path, tmp_path: Path) -> None:
    # HDF5 that meets a full disk dies with the process, long after the error was handled.
    (tmp_path / "to").mkdir()
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "to")],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=Path(scvec.__file__).parents[1],
    )
    assert child.returncode == 0 and "Error" not in child.stderr, child.stderr[-2000:]
    assert child.stdout.split("\n")[:-1] == ["refused"] * 4 + ["[]"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".CSV"])
def test_tables_come_back_exactly(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    table = pd.DataFrame(
        {"label": ["=1+1", "a,b\t'\"", "-x"], "p": [0.1, 1 / 3, 1.0]}, index=["-1_AAA", "@b", "c"]
    )
    path.write_text("old")
    write_table(table, path)
    if suffix == ".parquet":
        got = pd.read_parquet(path)
    else:
        got = pd.read_csv(
            path, index_col=0, sep="\t" if suffix == ".tsv" else ",", float_precision="round_trip"
        )
    pd.testing.assert_frame_equal(got, table)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("sizes", [[0], [7], [3, 4], [1, 1, 6]], ids=str)
def test_a_table_in_parts_is_the_table(suffix: str, sizes: list[int], tmp_path: Path) -> None:
    n = sum(sizes)
    table = pd.DataFrame(
        {"label": pd.Categorical((["b", "a", ""] * n)[:n], ["", "a", "b"]), "p": np.linspace(0, 1, n)},
        index=pd.Index([f'c"{i},' for i in range(n)], dtype=object, name="cell"),
    )
    ends = np.cumsum(sizes)
    write_tables((table.iloc[b - k : b] for k, b in zip(sizes, ends, strict=True)), tmp_path / f"t{suffix}")
    if suffix == ".csv":
        table.to_csv(tmp_path / "whole", lineterminator="\n")
    else:
        table.to_parquet(tmp_path / "whole")
    assert (tmp_path / f"t{suffix}").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_table_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.xlsx"):
        write_table(pd.DataFrame({"a": [1]}), tmp_path / "t.xlsx")
    assert os.listdir(tmp_path) == []


def test_outputs_can_be_read_by_others(source: Path, tmp_path: Path) -> None:
    write_annotated(source, tmp_path / "out.h5ad", *added())
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "out.h5ad").stat().st_mode == (tmp_path / "plain").stat().st_mode
