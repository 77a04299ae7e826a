"""Write tables of cells as text or parquet."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from scvec.errors import InputError
from scvec.ingest.write import check_output, replacing

__all__ = ["write_table", "write_tables"]

SUFFIXES = (".csv", ".tsv", ".parquet")


def write_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table as .csv, .tsv or .parquet; it appears whole or not at all.

    Text is written as it is. Spreadsheets take a cell that starts with ``=``, ``+``, ``-`` or ``@`` for a
    formula; a quote mark before it would change cell names such as ``-1_AAACCTG`` and break every join on
    them, and scripts are what reads these files. Columns of control characters have no use: they are
    quoted by the CSV rules.

    Raises
    ------
    InputError
        If the suffix is another, or the output cannot be written there.
    ResourceError
        If the disk is full.
    """
    write_tables([table], path)


def write_tables(parts: Iterable[pd.DataFrame], path: str | os.PathLike[str]) -> None:
    """Write a table that comes in parts of its rows, the same columns and categories in each.

    The file is, to the byte, that of :func:`write_table` of the whole; raises as that.
    """
    out = check_output(path)
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        fix = f"name it {', '.join(SUFFIXES)} or .h5ad"
        raise InputError(f"cannot tell what to write into a '{out.suffix}' file", str(out), fix)
    with replacing(out) as temporary:
        if suffix == ".parquet":
            _write_parquet(parts, temporary)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            for k, part in enumerate(parts):
                part.to_csv(file, sep="\t" if suffix == ".tsv" else ",", lineterminator="\n", header=k == 0)


def _write_parquet(parts: Iterable[pd.DataFrame], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Arrow holds a name in its bytes and 4 more, pandas in 70. One piece a column, as pandas writes it:
    # where pages end depends on the pieces.
    whole = pa.concat_tables([pa.Table.from_pandas(part) for part in parts]).combine_chunks()
    pq.write_table(whole, path)
