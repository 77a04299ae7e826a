"""A library that does nothing but remember how it was called."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bad_inputs import REFERENCE, good_file
from bad_inputs.commands import FAST, contents
from bad_inputs.commands import scvec as run
from click.testing import CliRunner, Result

from scvec.base.results import NextStep
from scvec.model.explanation import Explanation, GeneEvidence, Voter
from scvec.report.evaluation import EvaluationReport
from scvec.workflows.admin import Check, CompactReport, DoctorReport, InfoReport, RmReport, VerifyReport
from scvec.workflows.complement import ComplementReport
from scvec.workflows.demo import DemoQuery, DemoReport
from scvec.workflows.diff import DiffReport
from scvec.workflows.embed_genes import EmbeddingsReport
from scvec.workflows.export import ExportReport, ImportReport
from scvec.workflows.import_legacy import LegacyReport
from scvec.workflows.ingest_cells import CellsReport
from scvec.workflows.ingest_census import CensusReport
from scvec.workflows.ingest_genes import GenesReport
from scvec.workflows.ingest_markers import MarkersReport
from scvec.workflows.live import Cost, FailedGene, LiveReport
from scvec.workflows.name import NamesReport
from scvec.workflows.pack import PackReport
from scvec.workflows.pull import PullReport
from scvec.workflows.search_cells import CellHit, CellHits, LabelHit
from scvec.workflows.search_genes import GeneHit, GeneHits


@dataclass
class FakeAnnotation:
    next_step: NextStep | None = None
    notes = ("12 cells have few counts",)

    def to_dict(self) -> dict[str, Any]:
        return {"n_cells": 2, "labels": {"beta": 2}, "mean_confidence": float("nan")}

    def lines(self) -> list[str]:
        return ["2 cells", "  beta  2"]


def explanation() -> Explanation:
    gene = GeneEvidence(
        gene_id="HGNC:6081",
        symbol="INS",
        contribution=2.0,
        expression=3.0,
        expected=3.0,
        expected_against=0.1,
    )
    return Explanation(
        reference="pancreas",
        label="beta",
        cell="",
        against={"alpha": 2},
        n_cells=2,
        n_labelled=2,
        confidence=0.9,
        log_odds=3.0,
        genes=[gene],
        n_genes=2,
        genes_total=2.5,
        neighbors_total=0.5,
        constant=0.0,
        undivided=0.0,
        members={"head": 2.5, "knn": 0.5},
        voters=[Voter(cell="", label="beta", dataset="d", donor="", n=30, distance=float("nan"))],
        completeness_error=0.0,
    )


def sample_reports() -> dict[str, Any]:
    """One result per library function."""
    return {
        "scvec.workflows.ingest_genes.ingest_genes": GenesReport(
            genes={"human": 3, "mouse": 2},
            descriptions={"composed": 4, "borrowed": 1},
            orthologs=2,
            source="snapshot",
            seconds=0.5,
            notes=["1 row was skipped"],
        ),
        "scvec.workflows.embed_genes.ingest_embeddings": EmbeddingsReport(
            space="0123456789abcdef",
            backbone="minilm",
            dim=384,
            n_genes=5,
            n_encoded=4,
            n_cached=1,
            seconds=2.0,
        ),
        "scvec.workflows.complement.ingest_complement": ComplementReport(
            model="gpt-4o-mini",
            live=LiveReport(
                source="gpt-4o-mini",
                n_wanted=3,
                n_known=1,
                n_asked=2,
                n_answered=1,
                failed=[FailedGene(gene="HGNC:1", reason="the answer is too short", final=False)],
                cost=Cost(requests=4, tokens_in=100, tokens_out=20, dollars=0.01, seconds=1.0),
            ),
            descriptions={"llm": 1},
        ),
        "scvec.workflows.import_legacy.import_legacy": LegacyReport(files=[], seconds=0.1),
        "scvec.workflows.diff.diff": DiffReport(
            old=3,
            new=4,
            old_command="ingest genes",
            new_command="ingest cells",
            genes=[],
            descriptions=[],
            facts=[],
            spaces=[],
            references={"added": ["pancreas"]},
            examples=[],
        ),
        "scvec.workflows.ingest_cells.ingest_cells": CellsReport(
            name="pancreas",
            n_cells=5,
            n_genes_matched=3,
            match_summary="3 of 4 genes matched: symbols, human",
            expression="raw counts in X",
            classes={"alpha": 2, "beta": 3},
            encoder="adapted",
            space="0123456789abcdef",
            calibration={"log_loss": 0.1, "ece": 0.02, "held_out": "by donor"},
            seconds={"train": 1.0},
        ),
        "scvec.workflows.query.query": FakeAnnotation(NextStep(("explain", "out.h5ad", "--label", "T cell"))),
        "scvec.workflows.explain.explain": explanation(),
        "scvec.workflows.labels.labels": FakeAnnotation(),
        "scvec.workflows.evaluate.evaluate": EvaluationReport(
            reference="pancreas",
            truth_key="cell_type",
            n_cells=3,
            n_scored=2,
            n_known=2,
            unknown_labels={},
            scores={"accuracy": 0.5, "ece": float("nan"), "aurc": 0.25, "risk_coverage": [[1.0, 0.5]]},
            reliability=[{"share": 1.0, "confidence": 0.6, "accuracy": 0.5}],
            status={"confident": {"share": 1.0, "accuracy": 0.5}},
            labels=[],
            confusion={"labels": ["alpha", "beta"], "counts": [[1, 0], [1, 0]]},
            novelty={"edges": [0.0, 1.0], "known": [2], "unknown": [0]},
        ),
        "scvec.workflows.search_genes.search_genes": GeneHits(
            query="insulin",
            species=["human"],
            space="0123456789abcdef",
            hits=[
                GeneHit(
                    gene_id="HGNC:6081",
                    symbol="INS",
                    species="human",
                    name="insulin",
                    gene_type="protein-coding",
                    score=1.0,
                    similarity=float("nan"),
                    keyword=None,
                    by=["name"],
                    terms=["insulin secretion"],
                    text="INS is a hormone.",
                    source="test",
                )
            ],
        ),
        "scvec.workflows.search_cells.search_cells": CellHits(
            query="insulin",
            like="",
            reference="pancreas",
            where="",
            n_searched=2,
            genes=[{"gene_id": "HGNC:6081", "symbol": "INS", "score": 1.0, "best_label": "beta"}],
            labels=[LabelHit(label="beta", score=float("nan"), n_cells=2, genes=["INS"])],
            hits=[CellHit(cell="cell1", row=0, score=0.5, label="beta", obs={"donor": "d1"})],
        ),
        "scvec.web.server.serve": None,
        "scvec.web.mcp.serve_mcp": None,
        "scvec.workflows.admin.info": InfoReport(
            store=Path("S"),
            generation="g1",
            format_version=1,
            size_bytes=2048,
            genes={"human": 3},
            spaces=[],
            references=[],
        ),
        "scvec.workflows.admin.verify": VerifyReport(
            store=Path("S"), generation="g1", n_files=3, n_bytes=10, seconds=0.1
        ),
        "scvec.workflows.admin.doctor": DoctorReport(checks=[Check(name="python", ok=True, detail="3.11")]),
        "scvec.workflows.export.import_vectors": ImportReport(
            kind="genes", name="f00", n_rows=3, n_new=1, columns=[]
        ),
        "scvec.workflows.export.export": ExportReport(
            reference="pancreas", to="parquet", files=[Path("o.parquet")], n_cells=5, size_bytes=100
        ),
        "scvec.workflows.ingest_census.ingest_census": CensusReport(
            name="lung-human",
            census={"version": "2026-01-01", "build_date": "2026-01-01", "organism": "human"},
            n_found=10,
            n_cells=5,
            n_genes=3,
            n_datasets=1,
            n_donors=1,
            classes={"T cell": 5},
            megabytes=1.0,
            minutes=0.1,
        ),
        "scvec.workflows.ingest_markers.ingest_markers": MarkersReport(
            n_markers=2, n_terms=1, n_stored=5, columns={"f.csv": {"gene": "Symbol"}}, unmapped={}
        ),
        "scvec.workflows.name.name": NamesReport(groups=[], n_terms=3, column="scvec_name"),
        "scvec.workflows.pack.pack": PackReport(
            name="pancreas",
            output="p.scvec",
            n_bytes=100,
            sha256="0" * 64,
            with_cells=False,
            n_cells=5,
            n_golden=4,
        ),
        "scvec.workflows.pull.pull": PullReport(
            name="mine",
            source="p.scvec",
            n_cells=5,
            with_cells=False,
            n_labels=2,
            n_golden=4,
            card=["# pancreas"],
            generation="g2",
            seconds={"check": 0.1},
        ),
        "scvec.workflows.admin.rm": RmReport(reference="pancreas", generation="g2", remaining=[]),
        "scvec.workflows.admin.compact": CompactReport(before_bytes=10, after_bytes=5, n_files_removed=1),
        "scvec.workflows.demo.demo": DemoReport(
            queries=[
                DemoQuery(name=name, n_cells=2, labels={"beta": 2}, accuracy=0.5, macro_f1=0.25, seconds=1.0)
                for name in ("donors 3-4", "mice")
            ],
            seconds={"ingest": 1.0},
            files=[Path("demo-out/a.h5ad")],
            store=Path("demo-out/store"),
        ),
    }


@dataclass
class FakeApi:
    """``api.calls`` are (function, args, kwargs); ``api.fail(error)`` makes every function raise."""

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    error: BaseException | None = None
    results: dict[str, Any] = field(default_factory=sample_reports)
    stages: tuple[str, ...] = ()

    def fail(self, error: BaseException) -> None:
        self.error = error

    def function(self, path: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((path.rsplit(".", 1)[1], args, kwargs))
            for stage in self.stages:
                kwargs["progress"](stage, 1, 2)
            if "announce" in kwargs:
                kwargs["announce"]("http://127.0.0.1:1/")
            if self.error is not None:
                raise self.error
            return self.results[path]

        return called


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    modules: dict[str, ModuleType] = {}
    for path in fake.results:
        module, name = path.rsplit(".", 1)
        modules.setdefault(module, ModuleType(module))
        setattr(modules[module], name, fake.function(path))
    for name, module_ in modules.items():
        monkeypatch.setitem(sys.modules, name, module_)
    return fake


@dataclass
class Scvec:
    """Runs the command line inside this process."""

    def __call__(self, *words: str, **kwargs: Any) -> Result:
        from scvec.cli.main import cli

        return CliRunner().invoke(cli, list(words), **kwargs)

    def json(self, *words: str, exit_code: int = 0) -> Any:
        result = self(*words, "--json")
        assert result.exit_code == exit_code, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def scvec() -> Scvec:
    return Scvec()


# -- a store that bad input meets -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad-inputs")


@pytest.fixture(scope="session")
def store(shelf: Path, new_store: Callable[[Path], Path]) -> Iterator[Path]:
    """A store with one reference, which no test changes."""
    store = new_store(shelf / "store")
    reference = good_file(shelf, "reference.h5ad")
    made = run(
        "--store", store, "ingest", "cells", reference, "--name", REFERENCE, "--label-key", "cell_type", *FAST
    )
    assert made.exit_code == 0, made.stderr
    before = contents(store)
    yield store
    assert contents(store) == before


@pytest.fixture(scope="session")
def scratch(store: Path, shelf: Path) -> Path:
    """A copy of the store, which tests may fill."""
    return shutil.copytree(store, shelf / "scratch")


@pytest.fixture(scope="session")
def good(shelf: Path) -> Path:
    return good_file(shelf, "good.h5ad", seed=1)
