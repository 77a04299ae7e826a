"""Matrix Market text, read block by block; oracle: the numbers that were written, and scipy's reader."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import mmread

from scvec.base import arrays
from scvec.base.errors import InputError
from scvec.ingest.cells.matrix import open_matrix
from scvec.ingest.cells.readers import tenx
from scvec.ingest.cells.readers.tenx import read_text
from scvec.ingest.cells.source import CellSource
from scvec.ingest.cells.write import write_annotated

PLENTY = 2**30
ENDS = [b"\n", b"\r\n", b" \n", b"\n\n", b"\n \t\n", b"\r\n\r\n"]
TITLE = b"%%MatrixMarket matrix coordinate integer general\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(-3, 400)), max_size=120),
    st.sampled_from(["cells", "genes", "none"]),
    st.lists(
        st.sampled_from([b"\n", b"\r\n", b" \n", b"\n\n", b"\n \t\n", b"\r\n\r\n"]), min_size=1, max_size=5
    ),
    st.booleans(),
    st.integers(8, 200),
    st.sampled_from([768, 4000, PLENTY]),
)
def test_text_in_any_order_and_spacing(folder: Path, entries, order, ends, packed, block, memory) -> None:
    if order != "none":
        entries.sort(key=lambda entry: entry[order == "cells"])
    lines = [b"%d %d\t%d" % entry + ends[i % len(ends)] for i, entry in enumerate(entries)]
    text = TITLE + b"%% made up\n%%\n9 7 %d\n" % len(entries) + b"".join(lines)
    text = text[:-1] if lines else text  # the last line has no end
    path = folder / ("matrix.mtx.gz" if packed else "matrix.mtx")
    path.write_bytes(gzip.compress(text, 1) if packed else text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenx, "_LEAST", block)
        patch.setattr(tenx, "_MOST", block)
        made = read_text(path, 9, 7, memory)
    assert isinstance(made.data, np.memmap) == (12 * len(entries) > memory // 8)
    assert made.data.dtype == np.float32
    genes, cells, counts = np.array(entries, dtype=int).reshape(-1, 3).T
    expected = sp.coo_matrix((counts, (cells - 1, genes - 1)), shape=(7, 9)).toarray()
    reader = open_matrix(made, "X", 7, 9, memory)
    np.testing.assert_array_equal(reader.rows(0, 7).toarray(), expected)
    assert reader.n_unsorted == 0
    assert reader.n_duplicates == len(entries) - len({entry[:2] for entry in entries})
    found = mmread(io.BytesIO(TITLE + b"9 7 %d\n" % len(entries) + b"".join(lines)))
    np.testing.assert_array_equal(sp.coo_matrix(found).toarray().T, expected)


MANY = b"1 1 1\n" * 3000
BAD = {
    "zero-byte": (1, b"1 1 5 \0 \n", "value 1 is not"),
    "zero-byte-in-a-number": (1, b"1 1 5\0\n", "value 1 is not"),
    "no-utf8": (1, b"1 1 \xff\n", "value 1 is not"),
    "escape": (1, b"1 1 \x1b[2J\n", "value 1 is not"),
    "comma": (1, b"1 1 1,5\n", "value 1 is not"),
    "hexadecimal": (1, b"1 1 0x10\n", "after value 0 is not"),
    "quotes": (1, b'1 1 "5"\n', "value 1 is not"),
    "comment-below": (2, b"1 1 5\n% here\n1 1 1\n", "value 2 is not"),
    "gene-beyond": (3001, MANY + b"10 1 1\n", "value 3,001 has gene number 10 of 9"),
    "gene-zero": (3001, MANY + b"\n\n0 1 1\n", "value 3,001 has gene number 0 of 9"),
    "gene-far-beyond": (1, b"99999999999 1 1\n", "value 1 is not"),
    "cell-beyond": (1, b"1 8 1\n", "value 1 has cell number 8 of 7"),
    "huge": (1, b"1 1 99999999999999999999\n", "value 1 is not"),
    "two-numbers": (2, b"1 1 1\n1 1\n", "value 2 is not"),
    "four-numbers": (2, b"1 1 1\n1 1 1 1\n", "value 2 is not"),
    "four-numbers-at-the-end": (1, b"1 1 5 7", "value 1 is not"),
    "two-numbers-at-the-end": (2, b"1 1 1\n1 1", "value 2 is not"),
    "words": (1, b"1 1 Infinity\n", "value 1 is not"),
    "fewer": (3009, MANY, "ends after 3,000 of 3,009 values"),
    "more": (2999, MANY, "more values than the 2,999"),
    "long-line": (1, b"1 1 " + b" " * 2**17 + b"1\n", "value 1 is not"),
    "long-number": (1, b"1 1 " + b"1" * 2**22 + b"\n", "value 1 is not"),
}


@pytest.mark.parametrize("kind", BAD)
def test_damaged_text_is_refused_with_its_place(kind: str, tmp_path: Path) -> None:
    n, body, message = BAD[kind]
    path = tmp_path / "matrix.mtx"
    path.write_bytes(TITLE + b"%%\n9 7 %d\n" % n + body)
    with pytest.raises(InputError, match=message) as caught:
        read_text(path, 9, 7, 2**19)  # blocks of 4 KB
    assert "matrix.mtx is damaged" in caught.value.what and caught.value.where == str(tmp_path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("end", [b"1 1 5", b"1 1 5\r", b"1 1 5 ", b"1\t1\t5"])
def test_the_last_line_needs_no_end(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "matrix.mtx"
    path.write_bytes(TITLE + b"9 7 1\n" + end)
    made = read_text(path, 9, 7, PLENTY)
    assert (made.data.tolist(), made.indices.tolist(), made.indptr[:2].tolist()) == ([5], [0], [0, 1])


def test_a_packed_text_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "matrix.mtx.gz"
    path.write_bytes(gzip.compress(TITLE + b"9 7 3000\n" + MANY)[:-20])
    with pytest.raises(InputError, match=r"matrix\.mtx\.gz is damaged"):
        read_text(path, 9, 7, PLENTY)


def test_a_folder_is_the_same_in_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    counts = sp.coo_matrix(rng.poisson(0.3, (60, 500)))
    rows = [b"%d %d %d\n" % row for row in zip(counts.row + 1, counts.col + 1, counts.data, strict=True)]
    rows += rows[:5]
    head = b"%%MatrixMarket matrix coordinate real general\n" + b"60 500 %d\n" % len(rows)
    (tmp_path / "matrix.mtx").write_bytes(head + b"".join(rows))
    (tmp_path / "barcodes.tsv").write_text("".join(f"c{i}\n" for i in range(500)))
    (tmp_path / "genes.tsv").write_text("".join(f"E{i}\tG{i}\n" for i in range(60)))
    found = []
    for memory in ("400K", "1G"):
        with CellSource.open(tmp_path, memory=memory) as source:
            found.append((np.concatenate([c.data for c in source.chunks(99)]).tobytes(), source.notes))
            assert isinstance(source.reader._matrix.data, np.memmap) == (memory == "400K")
    assert found[0] == found[1]
    reserved = []
    monkeypatch.setattr(arrays, "reserved", lambda *what: reserved.append(what) or np.empty(*what))
    write_annotated(tmp_path, tmp_path / "out.h5ad", pd.DataFrame({"a": range(500)}), memory="1G")
    assert not reserved
    write_annotated(tmp_path, tmp_path / "out.h5ad", pd.DataFrame({"a": range(500)}), memory="400K")
    assert len(reserved) == 6
    total = counts.sum() + counts.data[:5].sum()
    assert anndata.read_h5ad(tmp_path / "out.h5ad").X.sum() == total
    assert "summed 5 values stored twice for one cell and gene" in found[0][1]
