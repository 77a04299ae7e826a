"""Every shape in which people have cells; oracle: the labels of the plain counts of the same cells.

Each goes through Python and through the command line, which must agree.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from shapes import SHAPES, Shape, query_cells, reference_cells

import scvec
from scvec.base.errors import ScvecError
from scvec.cli.main import cli


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]) -> Path:
    store = new_store(tmp_path_factory.mktemp("shapes") / "store")
    scvec.ingest_cells(store, [reference_cells()], name="islets", label_key="cell_type", batch_key="donor")
    return store


@pytest.fixture(scope="module")
def plain(store: Path) -> float:
    """Accuracy of the plain counts."""
    found = scvec.query(store, query_cells())
    accuracy = right(found.label)
    assert accuracy > 0.9
    return accuracy


def right(labels: Any) -> float:
    truth = query_cells().obs["cell_type"].to_numpy()
    n = min(len(truth), len(labels))  # empty cells may follow
    return float(np.mean(np.asarray(labels, dtype=str)[:n] == truth[:n]))


def in_python(given: Any, store: Path, shape: Shape) -> tuple[list[str], str, str]:
    """Return the labels, the code of the error, and the message."""
    try:
        found = scvec.query(store, given, **shape.options)
    except ScvecError as error:
        assert error.exit_code == 2 and error.fix
        return [], error.code, str(error)
    return list(found.label), "", "\n".join(found.notes)


def on_command_line(path: Path, store: Path, shape: Shape, out: Path) -> tuple[list[str], str, str]:
    options = [word for name, value in shape.options.items() for word in (f"--{name}", str(value))]
    words = ["--store", store, "query", path, *options, "-o", out, "--json"]
    done = CliRunner().invoke(cli, [str(word) for word in words])
    if done.exit_code:
        assert done.exit_code == 2 and not out.exists(), done.output
        body = json.loads(done.stderr if done.stderr.startswith("{") else done.stdout)
        return [], body["code"], " ".join(str(body[key]) for key in ("what", "where", "fix"))
    return list(pd.read_csv(out)["scvec_label"].astype(str)), "", done.stdout


@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, id=s.name, marks=() if s.quick else pytest.mark.slow) for s in SHAPES],
)
def test_every_shape_is_read_rightly_or_refused(
    shape: Shape, store: Path, plain: float, tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what anndata says while files are written
        given = shape.make(tmp_path / "given", query_cells())
        path = given
        if isinstance(given, anndata.AnnData) and not shape.no_file:
            path = tmp_path / "cells.h5ad"
            given.write_h5ad(path)
    labels, code, said = in_python(given, store, shape)
    assert code == shape.code, said
    assert shape.says in said, said
    if not code:
        assert right(labels) >= shape.of * plain, said
    if not shape.no_file:
        again, its_code, _ = on_command_line(path, store, shape, tmp_path / "out.csv")
        assert (again, its_code) == (labels, code)


def test_there_are_seventy_and_their_names_differ() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) >= 70
