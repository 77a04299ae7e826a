"""A reader is one file with one registration: a toy reader, and the message for unknown formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvec.base.errors import InputError
from scvec.ingest.cells import readers
from scvec.ingest.cells.readers import Contents, Place, contents_of, formats, kind_of, reader
from scvec.ingest.cells.source import CellSource

MEMORY = 2**28


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    formats()  # the readers that ship come first
    monkeypatch.setattr(readers, "_READERS", dict(readers._READERS))

    @reader("toy", "a .toy file", sniff=lambda given: given.head.startswith(b"TOY\n"))
    def read_toy(given, memory: int) -> Contents:
        rows = [line.split() for line in given.path.read_text().splitlines()[1:]]
        genes = pd.DataFrame(index=pd.Index(rows[0], dtype=object))
        x = sp.csr_matrix(np.array([row[1:] for row in rows[1:]], dtype=np.float32))
        obs = pd.DataFrame(index=pd.Index([row[0] for row in rows[1:]], dtype=object))
        place = Place(x, lambda: (genes, ("a toy was read",)))
        return Contents(str(given.path), obs, {"X": place}, given.path)

    path = tmp_path / "named.h5ad"  # the bytes decide, not the name
    path.write_text("TOY\nINS GCG SST\na 3 0 1\nb 0 5 2\n")
    return path


def test_a_toy_reader_is_one_registration(toy: Path) -> None:
    assert kind_of(toy, MEMORY) == "toy"
    with CellSource.open(toy) as source:
        assert source.obs_names == ["a", "b"] and source.var_names == ["INS", "GCG", "SST"]
        np.testing.assert_array_equal(source.totals, [4, 7])
        assert "a toy was read" in source.notes


def test_messages_list_the_formats_that_are_registered(toy: Path) -> None:
    other = toy.with_name("other.bin")
    other.write_bytes(b"\x00\x01\x02\x03" * 200)
    for path in (other, toy.parent):
        with pytest.raises(InputError) as caught:
            contents_of(path, MEMORY)
        assert "a .toy file" in caught.value.fix and "an h5ad file" in caught.value.fix
