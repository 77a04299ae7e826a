"""Tables of text; oracle: the same cells as AnnData, written by pandas and by hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from baron_parts import assert_same, assert_written, some_cells

from scvec.base.errors import InputError, ResourceError
from scvec.ingest.cells.readers import contents_of, kind_of, table
from scvec.ingest.cells.source import CellSource

PLENTY = 2**30


@pytest.fixture(scope="module")
def cells():
    return some_cells()


def frame(cells) -> pd.DataFrame:
    return pd.DataFrame(cells.X.toarray().astype(int), index=cells.obs_names, columns=cells.var_names)


def r_table(cells, sep: str, *, quote: str = '"') -> str:
    """Return the text of R's write.table: one title fewer than columns."""
    rows = frame(cells).T
    lines = [sep.join(f"{quote}{name}{quote}" for name in rows.columns)]
    lines += [
        sep.join([f"{quote}{gene}{quote}", *map(str, row)])
        for gene, row in zip(rows.index, rows.to_numpy(), strict=True)
    ]
    return "\n".join(lines) + "\n"


def numbered(cells) -> str:
    """Return the text of data.table's fwrite of a data.frame: row numbers before the names."""
    rows = frame(cells).T.rename_axis("gene").reset_index()
    rows.index += 1
    return rows.to_csv()


def gct(cells) -> str:
    rows = frame(cells).T.rename_axis("Name").reset_index()
    rows.insert(1, "Description", "na na")
    return f"#1.2\n{cells.n_vars}\t{cells.n_obs}\n" + rows.to_csv(sep="\t", index=False)


def feature_counts(cells) -> str:
    rows = frame(cells).T.rename_axis("Geneid").reset_index()
    for j, (name, value) in enumerate(
        {"Chr": "1;1", "Start": 5, "End": 9, "Strand": "+", "Length": 4}.items()
    ):
        rows.insert(j + 1, name, value)
    return "# Program:featureCounts v2.0.1; Command:...\n" + rows.to_csv(sep="\t", index=False)


SHAPES = {
    "genes.csv": lambda c: frame(c).T.to_csv(),
    "cells.csv": lambda c: frame(c).to_csv(),
    "genes.tsv": lambda c: frame(c).T.to_csv(sep="\t", index_label="GENE"),
    "cells.txt": lambda c: frame(c).to_csv(sep="\t"),
    "r-tabs.txt": lambda c: r_table(c, "\t"),
    "r-blanks.txt": lambda c: r_table(c, " "),
    "r-unquoted.txt": lambda c: r_table(c, "\t", quote=""),
    "row-numbers.csv": numbered,
    "semicolons.csv": lambda c: frame(c).T.to_csv(sep=";"),
    "windows.csv": lambda c: "\ufeff" + frame(c).T.to_csv().replace("\n", "\r\n"),
    "trailing.csv": lambda c: frame(c).T.to_csv().replace("\n", ",\n"),
    "floats.csv": lambda c: frame(c).astype(float).T.to_csv(),
    "decimal-comma.csv": lambda c: frame(c).astype(float).T.to_csv(sep=";", decimal=","),
    "quoted-numbers.csv": lambda c: frame(c).T.astype(str).to_csv(quoting=1),
    "blank-lines.csv": lambda c: frame(c).to_csv().replace("\n", "\n\n"),
    "expression.gct": gct,
    "featureCounts.txt": feature_counts,
    "no-end.csv": lambda c: frame(c).to_csv().rstrip("\n"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_of_writing_gives_the_same_cells(shape: str, packed: bool, cells, tmp_path: Path) -> None:
    path = tmp_path / (f"{shape}.gz" if packed else shape)
    text = SHAPES[shape](cells).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    assert kind_of(path, PLENTY) == "table"
    notes = assert_same(path, cells)
    side = "columns" if shape.split(".")[0] in ("cells", "blank-lines", "no-end") else "rows"
    assert any(f"genes in its {side}" in note for note in notes)


def test_blocks_of_lines_give_the_same(cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_LEAST", 300)
    monkeypatch.setattr(table, "_MOST", 300)
    for name in ("genes.csv", "cells.csv"):
        (tmp_path / name).write_text(SHAPES[name](cells))
        assert_same(tmp_path / name, cells)


@pytest.mark.parametrize("ids", ["ENSG{:011d}.3", "ENSMUSG{:011d}", "{}", "named__chr{}"])
def test_genes_of_other_names_are_found(ids: str, cells, tmp_path: Path) -> None:
    adata = cells.copy()
    numbers = np.random.default_rng(0).permutation(90_000)[: adata.n_vars] + 10
    names = adata.var_names if "named" in ids else [""] * adata.n_vars
    adata.var_names = [ids.format(i).replace("named", n) for i, n in zip(numbers, names, strict=True)]
    for name in ("genes.csv", "cells.csv"):
        (tmp_path / name).write_text(SHAPES[name](adata))
        contents = contents_of(tmp_path / name, PLENTY)
        assert list(contents.places["X"].var()[0].index) == adata.var_names.tolist()
        assert list(contents.obs.index) == adata.obs_names.tolist()


def test_cells_keep_what_stands_beside_their_genes(cells, tmp_path: Path) -> None:
    rows = frame(cells)
    rows.insert(0, "cell_type", cells.obs["cell_type"].astype(str))
    rows.insert(3, "donor", [f"d, {i % 3}" for i in range(len(rows))])  # quoted, for its comma
    rows["percent.mito"] = np.linspace(0, 1, len(rows))
    path = tmp_path / "cells.csv"
    rows.to_csv(path)
    notes = assert_same(path, cells, labels="cell_type")
    assert any("percent.mito" in note for note in notes)
    written = assert_written(path, cells, tmp_path / "out.h5ad")
    assert written.obs["donor"].tolist() == rows["donor"].tolist()
    np.testing.assert_allclose(written.obs["percent.mito"], rows["percent.mito"], rtol=1e-6)


def test_genes_keep_their_other_names(cells, tmp_path: Path) -> None:
    rows = frame(cells).T
    rows.insert(0, "gene_name", rows.index)
    rows.index = [f"ENSG{i:011d}" for i in range(len(rows))]
    rows.to_csv(tmp_path / "genes.tsv", sep="\t")
    with CellSource.open(tmp_path / "genes.tsv") as source:
        assert source.gene_name_candidates()["gene_name"] == cells.var_names.tolist()
        assert source.obs_names == cells.obs_names.tolist()


def test_cells_without_names_are_numbered(cells, tmp_path: Path) -> None:
    frame(cells).to_csv(tmp_path / "cells.csv", index=False)
    with CellSource.open(tmp_path / "cells.csv") as source:
        assert source.var_names == cells.var_names.tolist() and source.obs_names[0] == "cell1"
        np.testing.assert_array_equal(source.totals, np.asarray(cells.X.sum(axis=1)).ravel())


GOOD = b",c1,c2,c3\nINS,1,0,3\nGCG,0,2,0\nSST,4,0,0\n"
BAD = {
    "ragged-short": (GOOD.replace(b"0,2,0", b"0,2"), "line 3 "),
    "ragged-long": (GOOD.replace(b"0,2,0", b"0,2,0,5"), "line 3 "),
    "text": (GOOD.replace(b"0,2,0", b"0,two,0"), "line 3 "),
    "nan": (GOOD.replace(b"0,2,0", b"0,NaN,0"), "line 3 "),
    "infinite": (GOOD.replace(b"0,2,0", b"0,1e999,0"), "line 3 "),
    "missing": (GOOD.replace(b"0,2,0", b"0,,0"), "line 3 "),
    "hexadecimal": (GOOD.replace(b"0,2,0", b"0,0x10,0"), "line 3 "),
    "escape": (GOOD.replace(b"0,2,0", b"0,\x1b[2J,0"), "line 3 "),
    "zero-byte": (GOOD.replace(b"0,2,0", b"0,\x00,0"), "line 3 "),
    "zero-byte-far": (GOOD + b"TTR,1,1,1\n" * 99 + b"TTR,1,\x00,1\n", "line 104 "),
    "latin-1": (GOOD.replace(b"GCG", b"G\xe9G"), "line 3 "),
    "latin-1-title": (GOOD.replace(b"c2", b"c\xe9"), "line 1 "),
    "text-far": (GOOD + b"TTR,1,1,1\n" * 500 + b"IAPP,1,1,x\n", "line 505 "),
    "quote-not-closed": (GOOD.replace(b"GCG", b'"GCG'), "line 3 "),
    "title-too-many": (GOOD.replace(b"c3", b"c3,c4,c5"), "line 1 "),
    "no-numbers": (b"cell,label\nc1,beta\nc2,alpha\n", "no numbers"),
    "no-rows": (b",c1,c2,c3\n", "no "),
    "no-gene-names": (b"1,0,3\n0,2,0\n4,0,0\n", "have no names"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_are_refused_with_the_line(kind: str, packed: bool, tmp_path: Path) -> None:
    content, message = BAD[kind]
    path = tmp_path / "bad.csv"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match=message) as caught:
        contents_of(path, PLENTY)
    assert str(path) in caught.value.where and "\x1b" not in str(caught.value)


def test_utf16_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(GOOD.decode().encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        contents_of(tmp_path / "bad.csv", PLENTY)


def test_lines_of_carriage_returns_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(GOOD.replace(b"\n", b"\r"))
    with pytest.raises(InputError, match="carriage returns") as caught:
        contents_of(tmp_path / "bad.csv", PLENTY)
    assert caught.value.code == "wrong-format"


def test_a_packed_table_that_breaks_off(cells, tmp_path: Path) -> None:
    path = tmp_path / "genes.csv.gz"
    path.write_bytes(gzip.compress(SHAPES["genes.csv"](cells).encode())[:-99])
    with pytest.raises(InputError, match="damaged"):
        contents_of(path, PLENTY)


def test_what_does_not_fit_is_refused_with_a_way_round(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    row = ",".join(["7"] * 2000)
    genes = "".join(f"INS,{row}\n" for _ in range(300))
    path.write_text("," + ",".join(f"c{i}" for i in range(2000)) + "\n" + genes)
    with pytest.raises(ResourceError, match="memory") as caught:
        contents_of(path, 2**23)
    assert "h5ad" in caught.value.fix
    assert contents_of(path, 2**26).n_obs == 2000
    path.write_bytes(b",c1\nINS," + b"1" * 2**21 + b"\n")  # one endless line
    with pytest.raises(ResourceError, match="line 2 "):
        contents_of(path, 2**23)
    path.write_bytes(gzip.compress(b",c1,c2\nINS,1,0\n" + b"0" * 2**25))
    with pytest.raises(ResourceError, match="line 3 "):
        contents_of(path, 2**23)
