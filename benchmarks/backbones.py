"""Backbones and encoders beside each other and their controls, on the pancreas cells that ship with scvec.

    python benchmarks/backbones.py [--fits WORD...] [--pairs donors species] [--seeds 3] [--cells 300]
        [--epochs N] [--llm smollm2] [--endpoint MODEL --base-url URL] [--store NAME] [--publish]

Reference and query are stratified subsamples of ``--cells`` cells, since a language model takes its
time: labels are capped at the same number of cells. A row is an encoder, a backbone, and the voice that
hears with that encoder alone: its head, or the neighbours where nothing is trained. Each fit is a process of
its own, for its peak memory; what is done is kept in ``benchmarks/cache/backbones.jsonl``, so that a table
can be made in several sittings, and by several processes with a ``--store`` each. ``--fits`` takes names of
fits, or how they begin: ``--fits adapted "prompt paper"``. ``--endpoint`` adds a server's embeddings
(OpenAI's language; key and prices as for ``scvec``). All-mpnet needs its parts: benchmarks/mpnet.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from backbone_rows import BACKBONES, CACHE, ENDPOINT, FITS, PAIRS, Fit, one, texts
from compare import paired, sign_flip, values_of, wilcoxon
from results import THREADS
from tables import DOCS, markdown, publish

COLUMNS = (
    "pair", "encoder", "backbone", "voice", "n_seeds", "accuracy", "macro_f1", "sd_macro_f1", "ece",
    "text_s", "fit_s", "s_per_1000", "peak_mb", "cost",
)  # fmt: skip
TESTS = (
    "encoder", "backbone", "voice", "macro_f1", "adapted_minus", "p_wilcoxon", "p_sign_flip", "n", "verdict",
)  # fmt: skip
#: The row that all others are compared with.
DEFAULT = "adapted | minilm | head"
VOICES = {"both": "all", "knn": "neighbours"}
#: Differences that are needed for a two-sided p under 0.05.
ENOUGH = 6

Run = dict[str, Any]


def name_of(run: Run) -> str:
    """Return the row that a run belongs to, as ``encoder | backbone | voice``."""
    fit: Fit = FITS[run["fit"]]
    backbone = f"openai:{run['endpoint']}" if fit.backbone == ENDPOINT else fit.backbone
    # Trained for another time is another row.
    n = run.get("epochs") if fit.dear and "epochs" not in fit.options else None
    encoder = fit.shown if n is None else f"{fit.shown}, {n} epoch{'s' * (n != 1)}"
    return " | ".join((encoder, backbone, VOICES.get(run["voice"], run["voice"])))


def table(runs: list[Run], encoded: dict[tuple[str, str], Run]) -> list[dict[str, Any]]:
    """Return a row per pair, encoder, backbone and voice, best macro-F1 first.

    Parameters
    ----------
    encoded
        (pair, backbone) -> seconds and cost of the gene texts.
    """
    rows = []
    for pair in PAIRS:
        found: dict[str, list[Run]] = {}
        for run in runs:
            if run["pair"] == pair:
                found.setdefault(name_of(run), []).append(run)
        here = []
        for name, some in found.items():
            encoder, backbone, voice = name.split(" | ")
            scores = [r["macro_f1"] for r in some]
            fit = FITS[some[0]["fit"]]
            # A sentence is read cell by cell, and no gene text with it.
            read = fit.backbone.removeprefix("permuted ") if fit.encoder != "sentence" else ""
            of = encoded.get((pair, read), {})
            cost = of.get("cost") if "tokens" in of else "-"
            here.append(
                {
                    "pair": pair,
                    "encoder": encoder,
                    "backbone": backbone,
                    "voice": voice,
                    "n_seeds": len(some),
                    "accuracy": float(np.mean([r["accuracy"] for r in some])),
                    "macro_f1": float(np.mean(scores)),
                    "sd_macro_f1": float(np.std(scores, ddof=1)) if len(scores) > 1 else "-",
                    "ece": float(np.mean([r["ece"] for r in some])),
                    "text_s": f"{of['text_s_per_1000']:.1f}" if of else "-",
                    "fit_s": f"{np.median([r['fit_s'] for r in some]):.1f}",
                    "s_per_1000": f"{np.median([r['s_per_1000'] for r in some]):.1f}",
                    "peak_mb": f"{max(r['peak_mb'] for r in some):.0f}",
                    "cost": cost if cost == "-" else "not known" if cost is None else f"{cost:.4f}",
                }
            )
        rows += sorted(here, key=lambda row: -row["macro_f1"])
    return rows


def tests(runs: list[Run]) -> list[dict[str, Any]]:
    """Return a row per encoder, backbone and voice: its mean over pairs, and :data:`DEFAULT` minus it.

    All voices together are no match for one. Rows that have been run on every pair come first, best first.
    """
    values, pairs = _values(runs), {run["pair"] for run in runs}
    ours, rows = values.get(DEFAULT, {}), []
    for name in sorted(values, key=lambda n: (len(pairs) - len(values[n]), -_mean(values[n]))):
        mean = _mean(values[name])
        row = {
            **dict(zip(TESTS, name.split(" | "), strict=False)),
            "macro_f1": mean if set(values[name]) == pairs else f"{mean:.3f} ({', '.join(values[name])})",
            **dict.fromkeys(TESTS[4:], "-"),
        }
        differences = paired(ours, values[name])
        if name != DEFAULT and len(differences):
            row |= {"adapted_minus": float(differences.mean()), "n": len(differences)}
            row |= {"p_wilcoxon": wilcoxon(differences), "p_sign_flip": sign_flip(differences)}
            row["verdict"] = "too few" if len(differences) < ENOUGH else "not told apart"
            if _told(differences):
                row["verdict"] = "worse" if differences.mean() > 0 else "better"
        rows.append(row)
    return rows


def _values(runs: list[Run]) -> dict[str, Any]:
    named = [{**run, "method": name_of(run)} for run in runs if run["voice"] != "both"]
    return {n: values_of(named, n, "macro_f1") for n in dict.fromkeys(r["method"] for r in named)}


def _mean(values: dict[str, dict[int, float]]) -> float:
    return float(np.mean([np.mean(list(v.values())) for v in values.values()]))


def _told(differences: np.ndarray) -> bool:
    return len(differences) >= ENOUGH and max(wilcoxon(differences), sign_flip(differences)) < 0.05


def verdict(runs: list[Run]) -> str:
    """Name a winner, if there is one from which all others are told apart, or say that there is none."""
    values, pairs = _values(runs), {run["pair"] for run in runs}
    whole = [name for name in values if set(values[name]) == pairs]
    if len(whole) < 2:
        return "no two rows have been run on every pair"
    best = max(whole, key=lambda name: _mean(values[name]))
    shown = best.replace(" | ", ", ")
    differences = {name: paired(values[best], values[name]) for name in values if name != best}
    rivals = [name for name, found in differences.items() if not _told(found)]
    if not rivals:
        return f"winner: {shown}"
    return (
        f"no winner: {shown} has the highest mean; {len(rivals)} of {len(differences)} are not told from it"
    )


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw macro-F1 by row, a panel per pair."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "scvec"  # the same file on every run
    names = list(dict.fromkeys(row["pair"] for row in rows))
    most = max(sum(row["pair"] == name for row in rows) for name in names)
    size = (7 * len(names), 0.2 * most + 1)
    figure, panels = plt.subplots(1, len(names), figsize=size, squeeze=False)
    for axes, pair in zip(panels[0], names, strict=True):
        here = [row for row in rows if row["pair"] == pair][::-1]
        sds = [row["sd_macro_f1"] for row in here]
        axes.barh(
            range(len(here)),
            [row["macro_f1"] for row in here],
            xerr=[sd if isinstance(sd, float) else 0.0 for sd in sds],
            color=["#3b6ea8" if row["encoder"].startswith("prompt (") else "#cfd8e3" for row in here],
        )
        parts = [[row[c] for c in ("encoder", "backbone", "voice") if row[c] != "-"] for row in here]
        shown = [", ".join(some) for some in parts]
        axes.set_yticks(range(len(here)), shown, fontsize=6)
        axes.set_xlabel("macro-F1 (line: standard deviation over seeds)", fontsize=7)
        axes.set_xlim(0, 1)
        axes.set_title(f"{pair} ({PAIRS[pair]})", fontsize=9)
    figure.tight_layout()
    figure.savefig(DOCS / "benchmarks" / "backbones.svg", metadata={"Date": None})
    plt.close(figure)


class Kept:
    """What has been run: a line each, so that several processes can add to it."""

    def __init__(self) -> None:
        CACHE.mkdir(exist_ok=True)
        self.file = CACHE / "backbones.jsonl"

    def read(self) -> dict[str, list[Run]]:
        """Return key of a job -> what it gave."""
        if not self.file.exists():
            return {}
        lines = [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]
        return {line["key"]: line["found"] for line in lines}

    def add(self, key: str, found: list[Run]) -> None:
        """Write down what a job gave."""
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"key": key, "found": found}) + "\n")


def jobs(options: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Yield what is to be run: gene texts before the fits that need them."""
    # A whole name, or how names begin.
    begins = tuple(word for word in options.fits if word not in FITS)
    chosen = {n: f for n, f in FITS.items() if not options.fits or n in options.fits or n.startswith(begins)}
    given = {n: getattr(options, n) for n in ("cells", "llm", "endpoint", "base_url", "store")}
    spoken = {*BACKBONES, ENDPOINT} - {"random", "permuted minilm"}
    if not options.endpoint:
        chosen = {name: fit for name, fit in chosen.items() if fit.backbone != ENDPOINT}
    done: set[tuple[str, str]] = set()
    for name, fit in chosen.items():
        for pair in options.pairs:
            base = {**given, "pair": pair, "epochs": options.epochs if fit.dear else None}
            if fit.backbone in spoken and fit.encoder != "sentence" and (pair, fit.backbone) not in done:
                done.add((pair, fit.backbone))
                yield {**base, "kind": "texts", "backbone": fit.backbone, "seed": 0, "epochs": None}
            for seed in range(options.seeds if fit.drawn else 1):
                yield {**base, "kind": "fit", "fit": name, "seed": seed}


def key_of(job: dict[str, Any]) -> str:
    """Return the name of a job: all that its answer depends on."""
    # Where vectors are kept, and where a server is, change no answer.
    return json.dumps({k: v for k, v in job.items() if k not in ("store", "base_url")}, sort_keys=True)


def main() -> None:
    """Run what is missing and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fits", nargs="+", default=[])
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--endpoint")
    parser.add_argument("--base-url")
    parser.add_argument("--store", default="store")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--jobs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.jobs:
        for job in json.loads(options.jobs):
            print(json.dumps([texts(job)] if job["kind"] == "texts" else one(job)), flush=True)
        return
    kept = Kept()
    if not options.publish:
        run_missing(kept, jobs(options))
    found = [(json.loads(key), rows) for key, rows in kept.read().items()]
    found = [(job, rows) for job, rows in found if job["cells"] == options.cells]
    runs = [
        {**{k: job[k] for k in ("fit", "pair", "seed", "endpoint", "epochs")}, **row}
        for job, rows in found
        if job["kind"] == "fit"
        for row in rows
    ]
    encoded = {(job["pair"], job["backbone"]): rows[0] for job, rows in found if job["kind"] == "texts"}
    rows, compared = table(runs, encoded), tests(runs)
    print(markdown(COLUMNS, rows), markdown(TESTS, compared), verdict(runs), sep="\n\n")
    if options.publish:
        command = "python benchmarks/backbones.py && python benchmarks/backbones.py --publish"
        publish("backbones", command, COLUMNS, rows, runs=runs)
        publish("backbones_tests", command, TESTS, compared, verdict=verdict(runs))
        draw(rows)


def run_missing(kept: Kept, wanted: Iterable[dict[str, Any]]) -> None:
    """Do the jobs that have not been done; those that differ by the seed share a process, of one thread."""
    # Threads that wait do not spin, and seconds can be compared.
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "OMP_WAIT_POLICY": "PASSIVE"}
    alike: dict[str, list[dict[str, Any]]] = {}
    for job in wanted:
        alike.setdefault(key_of({**job, "seed": None}), []).append(job)
    for some in alike.values():
        known = kept.read()
        some = [job for job in some if key_of(job) not in known]
        if not some:
            continue
        command = [sys.executable, __file__, "--jobs", json.dumps(some)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            done = [json.loads(line) for line in process.stdout if line.startswith("[")]
        for job, found in zip(some, done, strict=False):
            kept.add(key_of(job), found)
            print(f"{shown(job)}: {found}", flush=True)
        for job in some[len(done) :]:
            print(f"{shown(job)}: failed", file=sys.stderr, flush=True)


def shown(job: dict[str, Any]) -> str:
    """Return a job for people."""
    return f"{job['kind']} {job.get('fit', job.get('backbone'))}, {job['pair']}, seed {job['seed']}"


if __name__ == "__main__":
    main()
