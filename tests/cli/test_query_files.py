"""Several files, each with outputs of its own."""

from pathlib import Path

import pytest

from scvec.base.errors import InputError
from scvec.cli.query import AnnotatedFile, QueryFile, query_files


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / "one.h5ad", tmp_path / "two.h5", tmp_path / "three"]
    for path in found:
        path.touch()
    return found


def test_the_place_is_the_name_of_the_file(paths):
    assert query_files(paths, "out/{}.csv", "{}/{}.html") == [
        QueryFile(path, Path(f"out/{name}.csv"), Path(f"{name}/{name}.html"))
        for path, name in zip(paths, ["one", "two", "three"], strict=True)
    ]


def test_one_file_needs_no_place(paths):
    assert query_files(paths[:1], "o.csv") == [QueryFile(paths[0], Path("o.csv"), None)]
    assert query_files(paths) == [QueryFile(path) for path in paths]


def test_a_file_that_is_given_twice_is_annotated_once(paths):
    assert query_files([paths[0], str(paths[0])], "o.csv") == [QueryFile(paths[0], Path("o.csv"))]


@pytest.mark.parametrize("option", ["output", "report"])
def test_two_queries_with_the_same_output_are_refused(paths, option):
    with pytest.raises(InputError, match=f"--{option}") as caught:
        query_files(paths, **{option: "out.html"})
    assert "{}.html" in caught.value.fix


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/outs/cells.h5", "b/outs/cells.h5", "b/other.h5"], ["a-cells", "b-cells", "other"]),
        (["a/x/cells.h5ad", "a/y/cells.h5"], ["x-cells", "y-cells"]),
        (["cells.h5ad", "a/cells.h5ad"], ["cells", "a-cells"]),
        (["a/b/cells.h5ad", "b/cells.h5ad", "c/b/cells.h5"], ["a-cells", "cells", "c-cells"]),
    ],
)
def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch, files, names):
    monkeypatch.chdir(tmp_path)
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    assert [str(f.output) for f in query_files(files, "{}.csv")] == [f"{name}.csv" for name in names]


def test_a_link_has_its_own_name(paths, tmp_path):
    (tmp_path / "mine.h5ad").symlink_to(paths[0])
    assert [f.output for f in query_files([tmp_path / "mine.h5ad"], "{}.csv")] == [Path("mine.csv")]


def test_two_forms_of_one_sample_are_refused(tmp_path):
    files = [tmp_path / "a.h5ad", tmp_path / "a.h5"]
    for file in files:
        file.touch()
    with pytest.raises(InputError, match="have the same") as caught:
        query_files(files, "{}.csv")
    assert "separate command" in caught.value.fix


def test_missing_files_are_reported_before_any_work(paths, tmp_path):
    with pytest.raises(InputError, match="1 of the 4 files") as caught:
        query_files([*paths, tmp_path / "four.h5ad"])
    assert caught.value.where.endswith("four.h5ad")


def test_notes_name_the_file():
    class Annotation:
        notes = ("warning: few genes", "no counts")

    found = AnnotatedFile(Path("x/one.h5ad"), Annotation())
    assert list(found.notes) == ["warning: one.h5ad: few genes", "one.h5ad: no counts"]
