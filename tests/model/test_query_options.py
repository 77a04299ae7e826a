"""Tests of the options of a query: validation, the command line, and keywords."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import scvec
from scvec.base.errors import InputError
from scvec.base.options import options_of
from scvec.model.query_options import QueryOptions
from scvec.workflows.complement import ComplementOptions
from scvec.workflows.embed_genes import EmbeddingsOptions
from scvec.workflows.ingest_genes import GenesOptions
from scvec.workflows.ingest_options import AppendOptions, IngestOptions
from scvec.workflows.search_genes import GeneSearchOptions, SearchOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "vote"},
        {"novelty": "some"},
        {"columns": "seurat"},
        {"unmatched_genes": "guess"},
        {"device": "gpu"},
        {"values": "log3"},
        {"coverage": 90},
        {"recall": 1.0},
        {"false_novel_rate": 0.0},
        {"n_neighbors": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_impossible_values_are_refused_before_anything_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        QueryOptions(**wrong)
    [name] = wrong
    if name != "values":
        assert caught.value.where == f"--{name.replace('_', '-')}"
    with pytest.raises(InputError):
        scvec.query("no-store", "no-file.h5ad", **wrong)


def test_an_unknown_keyword_names_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match="'n_neighbors'"):
        scvec.query("store", "new.h5ad", n_neigbors=5)
    with pytest.raises(TypeError, match="QueryOptions"):
        scvec.query("store", "new.h5ad", {"n_neighbors": 5})  # type: ignore[arg-type]


OPTIONS = {
    scvec.ingest_genes: (GenesOptions, ()),
    scvec.ingest_complement: (ComplementOptions, ()),
    scvec.ingest_embeddings: (EmbeddingsOptions, ()),
    scvec.ingest_cells: (IngestOptions, ([],)),
    scvec.append_cells: (AppendOptions, ([],)),
    scvec.search_genes: (GeneSearchOptions, ("insulin",)),
    scvec.search_cells: (SearchOptions, ("insulin",)),
}


@pytest.mark.parametrize("function", OPTIONS, ids=lambda function: function.__name__)
def test_all_options_are_given_in_the_same_way(function: Any) -> None:
    kind, args = OPTIONS[function]
    shown = inspect.signature(function).parameters
    fields = inspect.signature(kind).parameters
    assert set(fields) <= set(shown) and "keywords" not in shown
    assert all(shown[n].default == (... if p.default is p.empty else p.default) for n, p in fields.items())
    near = "device" if "device" in fields else "concurrency"
    with pytest.raises(TypeError, match=f"'{near}'"):
        function("store", *args, **{near[:-2] + near[-1]: 1})
    with pytest.raises(TypeError, match=kind.__name__):
        function("store", *args, {"seed": 1})


def test_a_field_that_is_needed_may_be_in_the_object() -> None:
    with pytest.raises(TypeError, match="'label_key'"):
        options_of(IngestOptions, None, {"name": "r"})
    shared = IngestOptions(name="r", label_key="cell_type")
    assert options_of(IngestOptions, shared, {"seed": 3}).label_key == "cell_type"


def test_keywords_stand_in_place_of_the_fields_of_an_object() -> None:
    shared = QueryOptions(reference="r", n_neighbors=7)
    assert options_of(QueryOptions, shared, {"n_neighbors": 3}) == QueryOptions(reference="r", n_neighbors=3)
    assert options_of(QueryOptions, None, {}) == QueryOptions()


def test_signatures_show_every_option() -> None:
    fields = set(inspect.signature(QueryOptions).parameters)
    for function in (scvec.query, scvec.annotate, scvec.evaluate):
        shown = inspect.signature(function).parameters
        assert fields <= set(shown) and "keywords" not in shown
        assert shown["n_neighbors"].default == QueryOptions().n_neighbors


def test_the_command_is_quoted() -> None:
    options = QueryOptions(where="donor = 'a'", exact=True, title="not an option of the command")
    line = options.command_line("my cells; rm -rf.h5ad", "s")
    assert line == "scvec query 'my cells; rm -rf.h5ad' --store s --where 'donor = '\"'\"'a'\"'\"'' --exact"


def test_the_command_makes_the_same_options() -> None:
    import shlex

    from scvec.cli.query import query

    options = QueryOptions(
        reference="r",
        n_neighbors=3,
        coverage=0.9,
        majority_vote=True,
        layer="counts",
        memory="4G",
        recall=0.5,
    )
    words = shlex.split(options.command_line("new.h5ad"))[2:]
    given = query.make_context("query", words).params
    assert (given.pop("queries"), given.pop("output"), given.pop("report")) == (
        (Path("new.h5ad"),),
        None,
        None,
    )
    assert QueryOptions(**given) == options


def test_what_is_changed_is_json_and_makes_the_same_options_in_another_process() -> None:
    options = QueryOptions(reference="r", species="mouse", values="counts")
    assert options.changed() == {"reference": "r", "species": "mouse", "values": "counts"}
    assert QueryOptions(**json.loads(json.dumps(options.changed()))) == options
    assert pickle.loads(pickle.dumps(options)) == options
