"""Methods of the annotation benchmark: scvec, its controls, simple baselines, and what others use."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pairs import PROJECT

__all__ = ["DEFAULT", "METHODS", "Method", "chosen"]

HERE = Path(__file__).resolve().parent
#: The row that all others are compared with.
DEFAULT = "scvec"


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes
    ----------
    runner
        ``peers/run_RUNNER.py`` does the work, in the environment of that name.
    confidence
        ``probability``, ``score`` (it ranks cells, and means nothing else) or ``none``.
    seeded
        Whether another seed can give another answer.
    needs_counts
        Whether reference and query must have counts.
    rejects, learns
        Whether it is among those that are compared on types missing from the reference, and on the learning
        curves.
    """

    name: str
    family: str
    runner: str
    options: Mapping[str, Any] = field(default_factory=dict)
    confidence: str = "probability"
    seeded: bool = True
    needs_counts: bool = False
    rejects: bool = False
    learns: bool = False

    @property
    def python(self) -> Path:
        """Return the interpreter of its environment."""
        if self.runner in ("scvec", "simple"):
            return Path(sys.executable)
        root = os.environ.get("SCVEC_PEERS") or HERE / "peers" / "envs"
        return Path(root) / self.runner / "bin" / "python"

    @property
    def fingerprint(self) -> str:
        """Return a digest of what decides the answer: code, versions asked for, options."""
        parts = [json.dumps([self.runner, dict(self.options)], sort_keys=True), code_digest(self.runner)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def code_digest(runner: str) -> str:
    """Return a digest of the code behind a runner."""
    # Not peers/protocol.py: how a method is timed does not change its answer.
    package = PROJECT / "scvec"
    files = [HERE / "peers" / f"run_{runner}.py"]
    if runner == "scvec":
        files += sorted(package.rglob("*.py")) + sorted((package / "data" / "snapshot").glob("*"))
    elif runner == "simple":
        files += [HERE / "baselines.py", package / "model" / "resolvers.py"]
        files += [package / "data" / "snapshot" / "snapshot.json"]
    else:
        files.append(HERE / "peers" / f"{runner}.txt")
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()


def _scvec(name: str, family: str, query: Mapping[str, Any] | None = None, **ingest: Any) -> Method:
    options = {"ingest": ingest, "query": dict(query or {})}
    return Method(name, family, "scvec", options, rejects=name == DEFAULT, learns=name == DEFAULT)


def _simple(name: str, classifier: str, confidence: str = "probability", *, learns: bool = True) -> Method:
    options = {"classifier": classifier}
    return Method(name, "simple", "simple", options, confidence, seeded=False, rejects=True, learns=learns)


def _peer(name: str, runner: str, *, confidence: str = "probability", **facts: Any) -> Method:
    return Method(name, "peer", runner, confidence=confidence, **facts)


METHODS = [
    _scvec(DEFAULT, "scvec"),
    _scvec("scvec, head alone", "member", {"method": "head"}),
    _scvec("scvec, neighbours alone", "member", {"method": "knn"}),
    _scvec("scvec, no batches named", "member", no_batches=True),
    _scvec("encoder adapted (text)", "encoder", encoder="adapted"),
    _scvec("encoder weighted (GenePT-w)", "encoder", encoder="weighted"),
    _scvec("encoder weighted, neighbours", "encoder", {"method": "knn"}, encoder="weighted"),
    _scvec("encoder pca", "encoder", encoder="pca"),
    _scvec("control: residual only", "control", encoder="residual"),
    _scvec("control: residual only, head", "control", {"method": "head"}, encoder="residual"),
    _scvec("control: random vectors", "control", encoder="adapted", backbone="random:384"),
    _scvec(
        "control: random vectors, head",
        "control",
        {"method": "head"},
        encoder="adapted",
        backbone="random:384",
    ),
    _scvec("control: permuted text", "control", encoder="adapted", backbone="permuted:minilm"),
    _scvec(
        "control: permuted text, head",
        "control",
        {"method": "head"},
        encoder="adapted",
        backbone="permuted:minilm",
    ),
    _scvec("control: name-only text", "control", encoder="adapted", backbone="name:minilm"),
    _simple("PCA-50 + kNN", "pca_neighbors", learns=False),
    _simple("nearest centroid (cosine)", "nearest_centroid", confidence="score"),
    _simple("logistic regression, 2,000 HVG", "logistic_regression"),
    _peer("CellTypist", "celltypist", seeded=False, rejects=True),
    _peer("CellTypist, majority voting", "celltypist", options={"majority_voting": True}, seeded=False),
    _peer("CellTypist, feature selection", "celltypist", options={"feature_selection": True}, rejects=True),
    _peer(
        "CellTypist, feature selection, majority voting",
        "celltypist",
        options={"feature_selection": True, "majority_voting": True},
    ),
    _peer("SingleR", "singler", confidence="score", seeded=False, rejects=True, learns=True),
    _peer("scanpy ingest", "scanpy", confidence="none"),
    _peer("ACTINN", "actinn", rejects=True),
    _peer("scANVI", "scanvi", needs_counts=True),
]

GROUPS = {
    "default": [m for m in METHODS if m.name == DEFAULT],
    "quick": [m for m in METHODS if m.runner == "scvec" and not m.options["ingest"]],
    "scvec": [m for m in METHODS if m.runner == "scvec"],
    "controls": [m for m in METHODS if m.family == "control"],
    "simple": [m for m in METHODS if m.runner == "simple"],
    "peers": [m for m in METHODS if m.family == "peer"],
    "others": [m for m in METHODS if m.runner != "scvec"],
    "all": METHODS,
}


def chosen(words: str) -> list[Method]:
    """Return the methods that a comma-separated list of groups, names and runners stands for, each once.

    A comma inside a name is fine when the name is given in full: names may be separated by ``;`` instead.

    Raises
    ------
    SystemExit
        If a word is none of these.
    """
    found: dict[str, Method] = {}
    for word in (w.strip() for w in words.split(";" if ";" in words else ",") if w.strip()):
        some = GROUPS.get(word) or [m for m in METHODS if word in (m.name, m.runner)]
        if not some:
            names = "; ".join(m.name for m in METHODS)
            raise SystemExit(f"no method {word!r}: groups {', '.join(GROUPS)}; methods {names}")
        found |= {m.name: m for m in some}
    return list(found.values())
