"""The demo, as the program that a newcomer runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_works(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "scvec", "demo", "--out", "demo-out", "--json"],
        cwd=tmp_path,
        env={**os.environ, "SCVEC_STORE": str(tmp_path / "store"), "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (tmp_path / report["report"]).stat().st_size > 100_000
    human, mouse = report["queries"]
    assert human["n_cells"] == 1220 and mouse["n_cells"] == 1886
    assert human["accuracy"] >= 0.95 and human["macro_f1"] >= 0.88
    assert mouse["accuracy"] >= 0.90 and mouse["macro_f1"] >= 0.78
    assert sum(mouse["labels"].values()) == mouse["n_cells"]
    assert all((tmp_path / name).is_file() for name in report["files"]) and len(report["files"]) == 5
