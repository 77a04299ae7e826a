"""Tables and verdicts of the annotation benchmark."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from compare import interval, paired, sign_flip, values_of, wilcoxon
from methods import DEFAULT, HERE, METHODS, Method
from pairs import CURVE_BASES, CURVES, GROUPS, LEAVE_ONE_OUT, OLD, PAIRS, PER_TYPE, SIX, SIX_FACTS, rotation
from results import Results, Run
from tables import publish

__all__ = ["changes", "each_pair", "learning", "publish_all", "rotated", "tables", "verdict"]

Row = dict[str, Any]
Table = tuple[Sequence[str], list[Row]]
PEER_FAMILIES = ("peer", "simple")
OVERALL = (
    "method", "macro_f1", "accuracy", "ontology", "ece", "brier", "aurc", "fit_s", "predict_s", "peak_mb",
    "default_minus", "p_wilcoxon", "p_sign_flip", "n_pairs", "n_seeds",
)  # fmt: skip
#: Column of the table -> column of a run.
MEANS = {
    "macro_f1": "macro_f1",
    "accuracy": "accuracy",
    "ontology": "ontology",
    "ece": "ece",
    "brier": "brier",
    "aurc": "aurc",
    "fit_s": "fit_cpu_seconds",
    "predict_s": "predict_cpu_seconds",
    "peak_mb": "peak_mb",
}


def _order(rows: Iterable[Row]) -> list[str]:
    there = {row["method"] for row in rows}
    return [m.name for m in METHODS if m.name in there]


def _pair_order(rows: Iterable[Row]) -> list[str]:
    there = {row["pair"] for row in rows}
    return [p.name for p in (*PAIRS, *LEAVE_ONE_OUT, *CURVES) if p.name in there]


def _mean(rows: list[Row], method: str, column: str) -> float | str:
    table = values_of(rows, method, column)
    return float(np.mean([np.mean(list(v.values())) for v in table.values()])) if table else "-"


def overall(rows: list[Row]) -> Table:
    """Return one row a method: means over the old and the six pairs, and paired tests against the default.

    A method that cannot be run on some pairs (scANVI without counts) has its mean over the others; the
    difference and the tests are over the pairs that it has.
    """
    # By name: without the data of the six, a published record still counts them.
    counted = {p.name for p in (*OLD, *SIX)} | set(SIX_FACTS)
    rows = [r for r in rows if r["pair"] in counted]
    ours = values_of(rows, DEFAULT, "macro_f1")
    out = []
    for method in _order(rows):
        theirs = values_of(rows, method, "macro_f1")
        row: Row = {"method": method, **{k: _mean(rows, method, v) for k, v in MEANS.items()}}
        mean, half = interval(theirs, list(theirs))
        if half is not None:
            row["macro_f1"] = f"{mean:.3f} ± {half:.3f}"
        for column in ("fit_s", "predict_s", "peak_mb"):
            if isinstance(row[column], float):
                row[column] = f"{row[column]:.1f}" if column != "peak_mb" else f"{row[column]:.0f}"
        differences = paired(ours, theirs) if method != DEFAULT else np.array([])
        row["default_minus"] = float(differences.mean()) if len(differences) else "-"
        row["p_wilcoxon"] = wilcoxon(differences) if len(differences) else "-"
        row["p_sign_flip"] = sign_flip(differences) if len(differences) else "-"
        row["n_pairs"] = len(theirs)
        row["n_seeds"] = max((len(v) for v in theirs.values()), default=0)
        out.append(row)
    return OVERALL, out


def per_pair(rows: list[Row], column: str, *, title: str = "method") -> Table:
    """Return one row a method and one column a pair, then the means of each group of pairs and of all."""
    names = _pair_order(rows)
    groups = {g: [p.name for p in GROUPS[g] if p.name in names] for g in ("old", "six", "tissues")}
    groups = {g: some for g, some in groups.items() if some}
    if len(groups) < 2:
        groups = {}
    out = []
    for method in _order(rows):
        values = _means(rows, method, column)
        if values:
            means = {g: _over(values, some) for g, some in groups.items()}
            by_pair = {p: values.get(p, "-") for p in names}
            out.append({title: method, **by_pair, **means, "mean": _over(values, names)})
    return (title, *names, *groups, "mean"), out


def _means(rows: list[Row], method: str, column: str) -> dict[str, float]:
    """Return pair -> mean over seeds."""
    return {p: float(np.mean(list(v.values()))) for p, v in values_of(rows, method, column).items()}


def _over(values: dict[str, float], pairs: Iterable[str]) -> float | str:
    """Return the mean over those of the pairs that there are."""
    some = [values[p] for p in pairs if p in values]
    return float(np.mean(some)) if some else "-"


def each_pair(rows: list[Row]) -> Table:
    """Return one row a pair: the default beside the best other row, and what it calls new and confident."""
    columns = (
        "pair", "n", "n_novel", "best_row", "best", "scvec", "under_best", "best_auroc", "auroc",
        "known_novel", "right_confident", "confident_accuracy",
    )  # fmt: skip
    others = [m for m in _order(rows) if m != DEFAULT]
    scores = {m: _means(rows, m, "macro_f1") for m in (*others, DEFAULT)}
    found = {m: _means(rows, m, "novelty_auroc") for m in (*others, DEFAULT)}
    said = {c: _means(rows, DEFAULT, c) for c in columns[-3:]}
    peers = {m.name for m in METHODS if m.family in PEER_FAMILIES}
    out = []
    for pair in _pair_order(rows):
        first = next(r for r in rows if r["pair"] == pair)
        best = max((m for m in others if pair in scores[m]), key=lambda m: scores[m][pair], default="-")
        value = scores[best][pair] if best != "-" else "-"
        ours = scores[DEFAULT].get(pair, "-")
        auroc = [found[m][pair] for m in others if m in peers and pair in found[m]]
        out.append(
            {
                "pair": pair,
                "n": first["n"],
                "n_novel": first["n_novel"],
                "best_row": best,
                "best": value,
                "scvec": ours,
                "under_best": "-" if "-" in (value, ours) else value - ours,
                "best_auroc": max(auroc, default="-"),
                "auroc": found[DEFAULT].get(pair, "-"),
                **{c: said[c].get(pair, "-") for c in columns[-3:]},
            }
        )
    return columns, out


def learning(rows: list[Row]) -> Table:
    """Return the learning curves: one row a method and pair, one column a number of cells a type."""
    sizes = (*(str(n) for n in PER_TYPE), "all")
    there = set(_pair_order(rows))
    bases = [b for b in CURVE_BASES if any(f"{b}-cells{n}" in there for n in PER_TYPE)]
    out = []
    for method in _order(r for r in rows if r["pair"] not in bases):
        values = _means(rows, method, "macro_f1")
        curves = [[values.get(f"{b}-cells{n}") for n in PER_TYPE] + [values.get(b)] for b in bases]
        curves += [[float(np.mean(c)) if None not in c else None for c in zip(*curves, strict=True)]]
        for base, curve in zip((*bases, "mean"), curves, strict=True):
            if any(v is not None for v in curve):
                shown = ["-" if v is None else v for v in curve]
                out.append({"pair": base, "method": method, **dict(zip(sizes, shown, strict=True))})
    order = (*bases, "mean")
    return ("pair", "method", *sizes), sorted(out, key=lambda r: order.index(r["pair"]))


def rotated(rows: list[Row]) -> Table:
    """Return one row a tissue: the method best on pairs of other tissues, and its mean on those of this one.

    Methods that lack a pair are left out. ``hindsight`` is the largest mean of any method on the tissue.
    """
    columns = ("tissue", "n_chosen_on", "n_reported", "chosen", "chosen_mean", "macro_f1", "hindsight")
    there = set(_pair_order(rows))
    pairs = [p for p in PAIRS if p.name in there]
    values = {m: _means(rows, m, "macro_f1") for m in _order(rows)}
    values = {m: v for m, v in values.items() if all(p.name in v for p in pairs)}
    out: list[Row] = []
    sums = np.zeros(2)
    for tissue, chosen_on, reported in rotation(pairs) if values else ():
        if not chosen_on:
            continue
        means = {m: np.mean([v[p.name] for p in chosen_on]) for m, v in values.items()}
        best = max(means, key=lambda m: means[m])
        here = {m: float(np.mean([v[p.name] for p in reported])) for m, v in values.items()}
        out.append(
            {
                "tissue": tissue,
                "n_chosen_on": len(chosen_on),
                "n_reported": len(reported),
                "chosen": best,
                "chosen_mean": float(means[best]),
                "macro_f1": here[best],
                "hindsight": max(here.values()),
            }
        )
        sums += len(reported) * np.array([here[best], max(here.values())])
    n = sum(r["n_reported"] for r in out)
    if n:
        total = dict(zip(("macro_f1", "hindsight"), (sums / n).tolist(), strict=True))
        out.append(dict.fromkeys(columns, "-") | {"tissue": "mean of pairs", "n_reported": n} | total)
    return columns, out


def novelty(rows: list[Row]) -> Table:
    """Return one row a type that was left out: AUROC of all methods, the default's FPR at 95% sensitivity."""
    columns = [m for m in _order(rows) if values_of(rows, m, "novelty_auroc")]
    out = []
    for pair in _pair_order(rows):
        row: Row = {"left out": pair, "n_novel": next(r["n_novel"] for r in rows if r["pair"] == pair)}
        for method in columns:
            values = values_of(rows, method, "novelty_auroc").get(pair)
            row[method] = float(np.mean(list(values.values()))) if values else "-"
        fpr = values_of(rows, DEFAULT, "fpr95").get(pair)
        row["fpr95 of scvec"] = float(np.mean(list(fpr.values()))) if fpr else "-"
        out.append(row)
    for name in ("pancreas", "blood"):
        some = [r for r in out if name in r["left out"]]
        if some:
            mean: Row = {"left out": f"mean, {name}", "n_novel": sum(r["n_novel"] for r in some)}
            for column in (*columns, "fpr95 of scvec"):
                values = [r[column] for r in some]
                mean[column] = float(np.mean(values)) if "-" not in values else "-"
            out.append(mean)
    return ("left out", "n_novel", *columns, "fpr95 of scvec"), out


def _split(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the rows of pairs as they are, of those with a type left out, and of the learning curves.

    The last have those of their pairs as they are too, where a method was run with few cells as well.
    """
    kinds = {p.name: p.kind for p in GROUPS["all"]}
    main, out, few = ([r for r in rows if kinds[r["pair"]] == kind] for kind in ("main", "out", "curve"))
    learns = {r["method"] for r in few}
    few += [r for r in main if r["pair"] in CURVE_BASES and r["method"] in learns]
    return main, out, few


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    main, out, few = _split(rows)
    found: list[Table] = []
    if main:
        found.append(overall(main))
        found += [per_pair(main, c, title=c) for c in ("macro_f1", "accuracy", "ece")]
        with_novel = [r for r in main if r["n_novel"]]
        if with_novel:
            found.append(per_pair(with_novel, "novelty_auroc", title="novelty_auroc"))
        found.append(each_pair(main))
    if out:
        found.append(novelty(out))
    if few:
        found.append(learning(few))
    return found


def verdict(rows: list[Row]) -> list[str]:
    """Return, for people: the default against the best peer on each pair, and on average."""
    main, _, _ = _split(rows)
    ours = values_of(main, DEFAULT, "macro_f1")
    peers = {m.name: values_of(main, m.name, "macro_f1") for m in METHODS if m.family in PEER_FAMILIES}
    peers = {name: table for name, table in peers.items() if table}
    if not ours or not peers:
        return []
    lines = ["macro-F1 of the default against the best peer (bar: -0.030 on each pair, +0.050 on average)"]
    for pair in _pair_order(main):
        here = {n: float(np.mean(list(t[pair].values()))) for n, t in peers.items() if pair in t}
        if pair not in ours or not here:
            continue
        best = max(here, key=lambda n: here[n])
        mine = float(np.mean(list(ours[pair].values())))
        short = "" if mine - here[best] >= -0.03 else "   <- short"
        lines.append(f"  {pair:<24} {mine:.3f}  {mine - here[best]:+.3f} to {best} ({here[best]:.3f}){short}")
    whole = {n: t for n, t in peers.items() if set(ours) <= set(t)}
    if whole:
        means = {n: float(np.mean([np.mean(list(t[p].values())) for p in ours])) for n, t in whole.items()}
        best = max(means, key=lambda n: means[n])
        mine = float(np.mean([np.mean(list(v.values())) for v in ours.values()]))
        short = "" if mine - means[best] >= 0.05 else "   <- short"
        gap = f"{mine - means[best]:+.3f} to {best} ({means[best]:.3f})"
        lines.append(f"  {'mean of ' + str(len(ours)) + ' pairs':<24} {mine:.3f}  {gap}{short}")
    return lines


def changes(results: Results, runs: list[Run]) -> list[str]:
    """Return, for people: how the default did before the last change of code."""
    lines = []
    for run in runs:
        if run.method.name != DEFAULT:
            continue
        now, before = results.scored(run), results.before(run)
        if now is None or before is None or "error" in now:
            continue
        parts = [
            f"{column} {before[column]:.3f} -> {now[column]:.3f} ({now[column] - before[column]:+.3f})"
            for column in ("macro_f1", "accuracy", "ece", "novelty_auroc")
            if column in now and column in before
        ]
        lines.append(f"  {run.pair.name:<34} seed {run.seed}: " + ", ".join(parts))
    return ["change of the default since the code before:", *lines] if lines else []


def publish_all(rows: list[Row], command: str) -> None:
    """Write docs/benchmarks: the tables with their runs, and the plots."""
    rows = [_slim(r) for r in rows]
    main, out, few = _split(rows)
    command += " --publish"
    publish("annotate", command, *overall(main), runs=rows)
    publish("annotate_pairs", command, *per_pair(main, "macro_f1"))
    publish("annotate_accuracy", command, *per_pair(main, "accuracy"))
    publish("annotate_ece", command, *per_pair(main, "ece"))
    publish("annotate_each", command, *each_pair(main))
    publish("annotate_rotation", command, *rotated(main))
    if out:
        publish("annotate_novelty", command, *novelty(out))
    if few:
        publish("annotate_curve", command, *learning(few))
    python = Method("plots", "plots", "plots").python
    if python.exists():
        subprocess.run([str(python), str(HERE / "plots.py")], check=True)
    else:
        print("no plots: make peers")


def _slim(row: Row) -> Row:
    """Return a run without what only its own machine needs, and five decimals."""
    kept = {k: v for k, v in row.items() if k not in ("key", "family", "at", "shift", "held_out")}
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in kept.items()}
