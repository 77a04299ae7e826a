"""What it costs when OpenMP threads spin while they wait, on a machine that does something else too.

    python benchmarks/openmp_wait.py [--publish]

Trains one small reference in a process of its own, with one core kept busy beside it, under both policies.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.resources import files
from typing import Any

from tables import markdown, publish

COLUMNS = ("policy", "train_seconds", "ratio")
CHILD = """
import sys, scvec
report = scvec.ingest_cells(sys.argv[1], [sys.argv[2]], name="r", label_key="cell_type", batch_key="donor",
                            backbone="random:384")
print(report.seconds["train"])
"""


def train_seconds(policy: str, folder: str) -> float:
    """Return the seconds that training takes under a policy."""
    human = str(files("scvec") / "data" / "baron_human.h5ad")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, folder, human],
            env={**os.environ, "OMP_WAIT_POLICY": policy},
            check=True,
            capture_output=True,
            text=True,
        )
    finally:
        busy.kill()
    # An interpreter without a script makes DuckDB show its own progress bar first.
    return float(done.stdout.split()[-1])


def run() -> list[dict[str, Any]]:
    """Return the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = {policy: train_seconds(policy, folder) for policy in ("PASSIVE", "ACTIVE")}
    least = seconds["PASSIVE"]
    return [{"policy": p, "train_seconds": s, "ratio": s / least} for p, s in seconds.items()]


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    rows = run()
    print(markdown(COLUMNS, rows))
    if options.publish:
        publish("openmp_wait", "python benchmarks/openmp_wait.py --publish", COLUMNS, rows)


if __name__ == "__main__":
    main()
