"""Names without a reference: marker lists of known types, named with weights learned on other data sets.

    python benchmarks/names.py                 # every data set and table left out in turn
    python benchmarks/names.py --parts         # and each part of the score left out
    python benchmarks/names.py --text v.npz    # and text of genes and cell types joined, and its control
    python benchmarks/names.py --families      # lists that name families of genes by one word
    python benchmarks/names.py --novel         # groups of cells of which the reference lacks the type
    python benchmarks/names.py --clusters      # unlabelled cells, clustered at several resolutions
    python benchmarks/names.py --labels        # labels whose markers are absent, and swapped labels
    python benchmarks/names.py --fit           # write scvec/data/naming.json, learned on all of them

Lists are made of two kinds of data in ../shared/data:

- cells: the most specific genes of each type of each data set (by its other types), 25 of them, and two
  lists of 5 to 20 of them in another order, with ribosomal genes, as papers print them. Genes that were
  measured and are not expressed are known for the first.
- tables of ../shared/data/markers: what one says of a type in a tissue. It is then no marker table, and
  cellconsensus, which may have read the same table, is none either.
- short lists: one to four genes of the others. Only the calibration is learned on them.

The weights are learned without cellconsensus: it may have read the papers of the cells, and the weights would
trust markers too much.

They are named by the shipped markers alone, and by all tables; with and without the tissue. Markers that
come from the same cells or the same table are left out. Weights and calibration are learned on the other data
sets (all of blood are one, both of Baron too, and each table) and reported on the one that was left out:
similarity of the first name to the true one (Jaccard index of the terms above them), how often it is on the
same lineage, the best similarity of five, how often the broad term is right, and the calibration error.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import re
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from unittest import mock

import anndata
import numpy as np
import scipy.sparse as sp
import torch

import scvec
from scvec.base.types import no_progress
from scvec.celltypes.markers import read_markers
from scvec.celltypes.naming import FALL, FEATURES, LINEAGE, MarkerIndex, NameFit, _doubts
from scvec.celltypes.naming import N_GENES as SCORED
from scvec.celltypes.terms import TermMatcher
from scvec.ingest.cells.source import CellSource
from scvec.model import known_markers
from scvec.model.calibration import expected_calibration_error
from scvec.model.known_markers import absent_markers, listed_genes, marker_rows, ortholog_key, shipped_tissues
from scvec.model.matching import match_genes
from scvec.workflows import name as name_module
from scvec.workflows.name import NameOptions, _named_groups, knowledge

SHARED = Path(os.environ.get("SCVEC_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
OUT = Path(scvec.__file__).parent / "data" / "naming.json"
#: Genes of a list of cells, and lists of each table.
N_GENES, N_LISTS = 25, 150
#: Part of the lists of tables that are made short, too.
FEW_TABLES = 0.3
#: Data sets of --novel, of Tabula Muris each tissue; cells of each type.
NOVEL_SETS = (
    ("brain_darmanis_human", ""),
    ("liver_aizarani_human", ""),
    ("pbmc3k_10x", ""),
    *(
        ("tabula_muris_facs_8tissues", tissue)
        for tissue in ("bladder", "brain", "heart", "kidney", "liver", "lung", "muscle", "skin")
    ),
    ("pancreas_baron_human", ""),
    ("pancreas_baron_mouse", ""),
    ("hnscc_puram_ref180_7943genes", ""),
)
MOST_CELLS = 40
#: Resolutions of --clusters.
RESOLUTIONS = (0.5, 1.0, 2.0, 5.0)
#: Limits of doubted labels that --labels tries, and the right labels that may be doubted.
LIMITS = list(itertools.product((0.1, 0.25, 0.4, 0.6), (0.05, 0.1, 0.2), (0.2, 0.34, 0.5), (3, 4, 6)))
MOST_FALSE = 0.02
SPECIES = {"Homo sapiens": "human", "Mus musculus": "mouse"}
STEPS, RATE, SHRINK = 150, 0.1, 1e-3
NEGATIVE = np.array([name in ("lacking", "negative") for name in FEATURES])
MODES = [(markers, place) for markers in ("shipped", "tables") for place in (False, True)]


@dataclass(frozen=True)
class Question:
    """A list of genes of a known type."""

    genes: list[str]
    tissue: str
    species: str
    truth: str
    source: str
    table: bool = False
    silent: frozenset[str] = frozenset()
    changed: bool = False
    short: bool = False

    @property
    def family(self) -> str:
        """What is left out together."""
        return next((name for name in ("pbmc", "baron") if name in self.source), self.source)


@dataclass
class World:
    """What is known: markers, terms and how genes are called."""

    rows: list
    labels: dict
    lineage: dict
    resolve: object
    matcher: TermMatcher
    resolver: object
    key: object
    indices: dict = field(default_factory=dict)

    @classmethod
    def load(cls) -> World:
        with knowledge(None) as (kb, resolver):
            key, matcher = ortholog_key(resolver), TermMatcher(kb.cl_names())
            rows = [(*row, "shipped") for row in marker_rows(kb.markers(), resolver, key)]
            for file in sorted((SHARED / "markers").glob("*.tsv.gz")):
                name = file.name.split(".")[0]
                found = [
                    (m.cl_id, m.tissue, m.species, m.gene, m.direction, m.weight, name)
                    for m in read_markers(file, matcher).markers
                ]
                rows += [(*row, name) for row in marker_rows(found, resolver, key)]
            labels = {cl_id: label for cl_id, label, own in kb.cl_names() if own}

            def resolve(symbols, species):
                found = resolver.resolve(list(symbols), species).gene_ids
                return {n: key(g) for n, g in zip(symbols, found, strict=True) if g is not None}

            return cls(rows, labels, kb.cl_lineage(), resolve, matcher, resolver, key)

    def index(self, question: Question, markers: str, agreed: bool = True) -> MarkerIndex:
        """Return the markers without those of the same cells or table, and without the agreed ones."""
        without = {question.source} if question.table else set()
        without |= {"Baron 2016"} if question.family == "baron" else set()
        without |= {known_markers.AGREED} if question.table or not agreed else set()
        if (markers, frozenset(without)) not in self.indices:
            kept = [
                row[:6]
                for row in self.rows
                if (markers == "tables" or row[6] == "shipped") and not without & {row[5], row[6]}
            ]
            self.indices[markers, frozenset(without)] = MarkerIndex(
                kept, self.labels, self.lineage, tissues=shipped_tissues()
            )
        return self.indices[markers, frozenset(without)]

    def above(self, term: str) -> frozenset[str]:
        return frozenset({term, *self.lineage.get(term, ())})


def lists_of_cells(world: World) -> list[Question]:
    found, rng = [], random.Random(0)
    for file in sorted(SHARED.glob("*.h5ad")):
        cells = anndata.read_h5ad(file)
        X = sp.csr_matrix(cells.X).astype(np.float64)
        if X.max() > 30:
            X = sp.diags(1e4 / np.maximum(np.asarray(X.sum(axis=1)).ravel(), 1)) @ X
            X.data = np.log1p(X.data)
        names = np.array([n.split("_ENSG")[0] for n in cells.var_names])
        ribosomal = [n for n in names if n.upper().startswith(("RPL", "RPS"))]
        species = SPECIES.get(str(cells.obs["species"].iloc[0]), str(cells.obs["species"].iloc[0]))
        called = world.resolve(names, species)
        tissues = cells.obs["tissue"].astype(str)
        several = "tabula" in file.name
        for tissue in sorted(tissues.unique()) if several else [tissues.iloc[0]]:
            here = (tissues == tissue).to_numpy() if several else np.ones(len(cells), bool)
            labels = cells.obs["cell_type"].astype(str).to_numpy()
            for label, match in world.matcher.match_all(sorted(set(labels[here])), [tissue]).items():
                own, rest = here & (labels == label), here & (labels != label)
                if not match.cl_id or own.sum() < 5 or rest.sum() < 5:
                    continue
                a, b = X[own].toarray(), X[rest].toarray()
                noise = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b)) + 0.05
                share = (a > 0).mean(0)
                score = (a.mean(0) - b.mean(0)) / noise * np.where(share > 0.2, 1, 0.3)
                top = [str(n) for n in names[np.argsort(-score, kind="stable")[:N_GENES]]]
                # Of two symbols of one gene, both must be silent.
                silent = {called[n] for n in names[share < 0.02] if n in called}
                silent -= {called[n] for n in names[share >= 0.02] if n in called}
                silent = silent if own.sum() >= 10 else set()
                question = Question(
                    [called[n] for n in top if n in called], tissue, species, match.cl_id, file.stem,
                    silent=frozenset(silent),
                )  # fmt: skip
                found.append(question)
                for _ in range(2):
                    some = top[: rng.choice([5, 8, 10, 15, 20])]
                    if rng.random() < 0.5:
                        rng.shuffle(some)
                    for gene in rng.sample(ribosomal, min(rng.choice([0, 0, 2, 5]), len(ribosomal))):
                        some.insert(rng.randrange(len(some) + 1), gene)
                    genes = [called[n] for n in some if n in called]
                    found.append(replace(question, genes=genes, silent=frozenset(), changed=True))
    return found


def lists_of_tables(world: World) -> list[Question]:
    found, rng = [], random.Random(0)
    genes = defaultdict(list)
    for cl_id, tissue, gene, direction, _, _, table in world.rows:
        if table != "shipped" and direction == "positive":
            genes[table, cl_id, tissue].append(gene)
    for table in sorted({table for table, *_ in genes}):
        groups = sorted(g for g, listed in genes.items() if g[0] == table and len(set(listed)) >= 3)
        for _, cl_id, tissue in rng.sample(groups, min(N_LISTS, len(groups))):
            listed = list(dict.fromkeys(genes[table, cl_id, tissue]))
            rng.shuffle(listed)
            found.append(Question(listed[:N_GENES], tissue, "human", cl_id, table, table=True))
    return found


def short_lists(questions: list[Question]) -> list[Question]:
    """Return lists of one to four of the first eight genes, one of each type of cells, and few of tables."""
    found, rng = [], random.Random(0)
    for q in questions:
        if not q.changed and (not q.table or rng.random() < FEW_TABLES):
            first = q.genes[:8]
            genes = rng.sample(first, min(rng.randint(1, 4), len(first)))
            found.append(replace(q, genes=genes, silent=frozenset(), short=True))
    return found


@dataclass
class Answers:
    """Features and truth of the terms of many questions; questions of all modes after each other."""

    X: torch.Tensor
    similar: torch.Tensor
    related: torch.Tensor
    inside: torch.Tensor
    mask: torch.Tensor
    where: list[tuple[Question, tuple[str, bool]]]
    rows: list
    #: The same of long lists without the agreed markers, on which weights are learned.
    plain: Answers | None = None

    @classmethod
    def of(cls, world: World, questions: list[Question], modes=MODES, extra=None, agreed=True) -> Answers:
        """Return the answers; ``extra`` (index, genes, rows) -> (n, m) gives more features."""
        parts, where, listed = [], [], []
        for mode in modes:
            for q in questions:
                index = world.index(q, mode[0], agreed)
                rows, values = index.features(q.genes, q.tissue if mode[1] else "", q.silent)
                if extra is not None and len(rows):
                    values = np.concatenate([values, extra(index, q.genes, rows)], axis=1)
                truth = world.above(q.truth)
                told = []
                for i in rows:
                    term = index.terms[i]
                    up = world.above(term)
                    told.append(
                        (len(up & truth) / len(up | truth), term in truth or q.truth in up, term in truth)
                    )
                parts.append((values, np.array(told, dtype=float).reshape(-1, 3)))
                where.append((q, mode))
                listed.append((index, rows))
        n, width = len(parts), max(len(v) for v, _ in parts)
        width_of = max(v.shape[1] for v, _ in parts)
        X, truth = torch.zeros(n, width, width_of), torch.zeros(n, width, 3)
        mask = torch.full((n, width), -1e9)
        mask[:, 0] = 0
        for k, (values, told) in enumerate(parts):
            X[k, : len(values), : values.shape[1]] = torch.tensor(values)
            truth[k, : len(told)] = torch.tensor(told)
            mask[k, : len(values)] = 0
        plain = [q for q in questions if not q.short]
        return cls(
            X, truth[..., 0], truth[..., 1], truth[..., 2], mask, where, listed,
            cls.of(world, plain, modes, extra, agreed=False) if agreed else None,
        )  # fmt: skip

    @property
    def families(self) -> np.ndarray:
        return np.array([q.family for q, _ in self.where])


def learned(answers: Answers, use: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
    """Return the weights that give the best expected name on some of the questions.

    ``parts`` says which features may count. Each family counts as the square root of its questions.
    """
    if answers.plain is not None:
        use = np.isin(answers.plain.families, answers.families[use])
        answers = answers.plain
    families = answers.families[use]
    size = {f: int((families == f).sum()) for f in set(families)}
    weight = torch.tensor([size[f] ** -0.5 for f in families], dtype=torch.float32)
    weight /= weight.sum()
    at = torch.tensor(np.flatnonzero(use))
    X, mask = answers.X[at], answers.mask[at]
    spread = answers.X[answers.mask == 0].std(0) + 1e-6
    X = X / spread
    good = (answers.similar[at] + LINEAGE * answers.related[at]) / (1 + LINEAGE)
    n = X.shape[2]
    free = torch.ones(n) if parts is None else torch.tensor(parts, dtype=torch.float32)
    least = torch.zeros(n)
    sign = torch.tensor([-1.0 if i < len(NEGATIVE) and NEGATIVE[i] else 1.0 for i in range(n)])
    w = torch.zeros(n, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        hoped = (torch.softmax(X @ (w * free) + mask, dim=1) * good).sum(1)
        loss = -(weight * (hoped + 0.3 * torch.log(hoped + 1e-3))).sum() + SHRINK * (w**2).sum()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            w.copy_(torch.maximum(w * sign, least) * sign * free)
    return (w.detach() / spread).numpy().astype(float)


def calibrated(answers: Answers, use: np.ndarray, weights: np.ndarray) -> tuple[tuple, tuple]:
    """Return the logistic regressions of the lineage of first names, and of broader terms."""
    from sklearn.linear_model import LogisticRegression

    sure, within = ([], []), ([], [])
    for k in np.flatnonzero(use):
        index, rows = answers.rows[k]
        if not len(rows):
            continue
        order, proba = ranked(answers, k, weights)
        values = answers.X[k, : len(rows)].numpy()[order]
        rows = rows[order]
        genes = answers.where[k][0].genes
        known = index.known(genes), min(len(set(genes)), SCORED)
        doubts = _doubts(index.on_lineage(rows, proba), values, *known)
        for j in range(min(2, len(rows))):
            sure[0].append(doubts[j])
            sure[1].append(bool(answers.related[k, order[j]]))
        held = index.within(rows, proba)
        doubts = _doubts(held, values, *known)
        for j in np.argsort(-held)[:15]:
            if len(index.lineage.get(index.terms[rows[j]], ())) >= 3:
                within[0].append(doubts[j])
                within[1].append(bool(answers.inside[k, order[j]]))
    fits = []
    for values, right in (sure, within):
        fit = LogisticRegression(C=1.0, fit_intercept=False, max_iter=500)
        fits.append(tuple(fit.fit(np.array(values), right).coef_[0].round(4).tolist()))
    return fits[0], fits[1]


def ranked(answers: Answers, k: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the terms of a question, and their softmax in it."""
    index, rows = answers.rows[k]
    return index.ranked(rows, answers.X[k, : len(rows)].numpy().astype(float) @ weights)


def left_out(
    answers: Answers, parts: np.ndarray | None = None, calibrate: bool = True
) -> dict[str, np.ndarray]:
    """Return similarity, lineage, best of five, ... of each question, its family left out of learning."""
    n = len(answers.where)
    found = {name: np.zeros(n) for name in ("similar", "lineage", "five", "sure")}
    found["broad"] = np.full(n, np.nan)
    for family in sorted(set(answers.families)):
        own = answers.families == family
        weights = learned(answers, ~own, parts)
        lineage, within = calibrated(answers, ~own, weights) if calibrate else ((), ())
        for k in np.flatnonzero(own):
            index, rows = answers.rows[k]
            if not len(rows):
                continue
            order, proba = ranked(answers, k, weights)
            values, rows = answers.X[k, : len(rows)].numpy()[order], rows[order]
            similar = answers.similar[k].numpy()[order]
            found["similar"][k], found["five"][k] = similar[0], similar[:5].max()
            found["lineage"][k] = answers.related[k, order[0]]
            if not calibrate:
                continue
            genes = answers.where[k][0].genes
            known = index.known(genes), min(len(set(genes)), SCORED)
            found["sure"][k] = _sure(lineage, _doubts(index.on_lineage(rows, proba), values, *known))[0]
            held = _sure(within, _doubts(index.within(rows, proba), values, *known))
            depth = np.array([len(index.lineage.get(index.terms[i], ())) for i in rows])
            deep = [j for j in range(len(rows)) if held[j] >= 0.8 and depth[j] >= 3]
            if deep:
                j = max(deep, key=lambda j: (depth[j], held[j], -j))
                found["broad"][k] = answers.inside[k, order[j]]
    return found


def _sure(weights, values) -> np.ndarray:
    return 1 / (1 + np.exp(-(values @ np.array(weights))))


def table(answers: Answers, found: dict[str, np.ndarray], kinds: bool = True) -> None:
    """Print the figures of each mode, for cells and tables, and of each family."""
    mode = np.array([f"{m} markers, tissue {'given' if p else 'not given'}" for _, (m, p) in answers.where])
    tables, short = np.array([(q.table, q.short) for q, _ in answers.where]).T
    print("| markers | lists | n | similarity | same lineage | best of five | broad (right) | calib. error |")
    print("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(mode):
        for kind, these in (("cells", ~tables & ~short), ("tables", tables & ~short), ("short", short)):
            _row(name, kind, (mode == name) & these, found)
    if kinds:
        for family in sorted(set(answers.families)):
            for markers in ("shipped", "tables"):
                name = f"{markers} markers, tissue given"
                _row(name, family, (mode == name) & (answers.families == family) & ~short, found)


def _row(name: str, kind: str, use: np.ndarray, found: dict[str, np.ndarray]) -> None:
    if not use.any():
        return
    broad = found["broad"][use]
    told = ~np.isnan(broad)
    error = expected_calibration_error(found["sure"][use], found["lineage"][use] > 0)
    right = f"{told.mean():.2f} ({np.nanmean(broad):.2f})" if told.any() else "0.00"
    print(
        f"| {name} | {kind} | {use.sum()} | {found['similar'][use].mean():.3f} | "
        f"{found['lineage'][use].mean():.3f} | {found['five'][use].mean():.3f} | {right} | {error:.3f} |",
        flush=True,
    )


def without_parts(answers: Answers) -> None:
    """Print the mean figures with each part of the score left out, learned again."""
    groups = {
        "nothing": (),
        "tissue": ("in tissue", "tissue part", "at home"),
        "terms above and below": ("pooled", "explained", "odds", "above", "below"),
        "what is not expressed": ("lacking", "negative"),
        "number of tables": ("tables",),
        "number of shared genes": ("shared",),
    }
    groups |= {name: (name,) for name in FEATURES[:7]}
    print("| left out | similarity | same lineage |\n|---|---|---|")
    for name, without in groups.items():
        found = left_out(answers, np.array([f not in without for f in FEATURES], dtype=float), False)
        print(f"| {name} | {found['similar'].mean():.3f} | {found['lineage'].mean():.3f} |", flush=True)


class Texts:
    """Text as one more feature: how like the genes of a list are to the definition of a term.

    It is the cosine of the mean vector of the texts of the genes (by place and rarity) and the vector of the
    definition, what all have in common taken out. Controls: ``random`` vectors for all of them, and
    definitions ``permuted`` among the terms; each by a seed.
    """

    def __init__(self, vectors: Path, control: str = "", seed: int = 0) -> None:
        """Read vectors of texts: an npz with ``genes, gene_vectors, terms, term_vectors``."""
        found = np.load(vectors, allow_pickle=False)
        self.row = {g: i for i, g in enumerate(found["genes"].tolist())}
        self.term = {t: i for i, t in enumerate(found["terms"].tolist())}
        genes, terms = found["gene_vectors"], found["term_vectors"]
        rng = np.random.default_rng(seed)
        if control == "random":
            genes, terms = (rng.normal(size=v.shape) for v in (genes, terms))
        elif control == "permuted":
            terms = rng.permutation(terms)
        self.genes, self.terms = _apart(genes), _apart(terms)

    def __call__(self, index: MarkerIndex, listed: list[str], rows: np.ndarray) -> np.ndarray:
        """Return (n, 1) the cosine for each term, 0 where it has no definition."""
        known = [(i, g) for i, g in enumerate(listed) if g in self.row]
        weight = np.array([(index._rarity_of(g) or 5.0) / (1 + i) ** FALL for i, g in known])
        mean = _unit((weight @ self.genes[[self.row[g] for _, g in known]])[None])[0]
        at = np.array([self.term.get(index.terms[i], -1) for i in rows])
        return ((self.terms[at] @ mean) * (at >= 0))[:, None]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9)


def _apart(vectors: np.ndarray) -> np.ndarray:
    """Return vectors without what they have in common: their mean and their two largest directions."""
    vectors = vectors - vectors.mean(axis=0)
    main = np.linalg.svd(vectors[::3], full_matrices=False)[2][:2]
    return _unit(vectors - (vectors @ main.T) @ main)


def encode_texts(world: World, questions: list[Question], ontology: Path, out: Path) -> None:
    """Write the vectors that :class:`Texts` reads, of the terms that may be named; it takes minutes."""
    from scvec.backbones import load_backbone, parse_spec
    from scvec.model.gene_vectors import gene_table
    from scvec.stores.store.vector_cache import ShippedVectors

    genes = sorted({row[2] for row in world.rows} | {g for q in questions for g in q.genes})
    with knowledge(None) as (kb, _):
        table = gene_table(kb, genes, "default")
    minilm, shipped = load_backbone(parse_spec("minilm"), device="cpu"), ShippedVectors()
    rows = shipped.rows(minilm.space, list(table["text_sha256"]))
    vectors = np.zeros((len(genes), 384), dtype=np.float32)
    vectors[rows >= 0] = shipped.take(rows[rows >= 0])
    terms = json.loads(gzip.decompress(ontology.read_bytes()))
    named = {up for row in world.rows for up in world.above(row[0])}
    alive = {i: terms[i] for i in sorted(named) if terms.get(i, {}).get("label")}
    texts = [f"{t['label']}. {t.get('description', '')}" for t in alive.values()]
    np.savez(
        out,
        genes=genes,
        gene_vectors=vectors,
        terms=list(alive),
        term_vectors=minilm.encode(texts),
    )


def with_text(world: World, questions: list[Question], vectors: Path, n_seeds: int) -> None:
    """Print the figures with text joined, and with its controls, all learned again, tissue given.

    The gain is the mean over data sets that were left out, with its standard error.
    """
    modes = [("shipped", True), ("tables", True)]
    answers = Answers.of(world, questions, modes)
    tables = np.array([q.table for q, _ in answers.where])
    base = left_out(answers, calibrate=False)
    print("| joined | cells: similarity | lineage | gain | tables: similarity | lineage | gain |")
    print("|---" * 7 + "|")
    controls = [(c, seed) for c in ("random", "permuted") for seed in range(n_seeds)]
    for control, seed in (("nothing", 0), ("definitions", 0), *controls):
        found = base
        if control != "nothing":
            texts = Texts(vectors, control, seed)
            found = left_out(Answers.of(world, questions, modes, texts), calibrate=False)
        row = [f"{control} {seed}" if (control, seed) in controls else control]
        for these in (~tables, tables):
            gain = found["similar"] - base["similar"]
            families = answers.families
            each = np.array([gain[families == f].mean() for f in sorted(set(families[these]))])
            error = each.std(ddof=1) / len(each) ** 0.5
            row += [f"{found[x][these].mean():.4f}" for x in ("similar", "lineage")]
            row.append(f"{each.mean():+.4f} +- {error:.4f}")
        print(f"| {' | '.join(row)} |", flush=True)


def novel(world: World, answers: Answers) -> None:
    """Print how the cells of a type are named that the reference lacks, for each type of four data sets.

    The cells of the type, given as one group beside half of the others, are named; so is the group that most
    of them are in, of those that ``query`` calls novel. Weights and calibration are learned without the data
    set, whose own markers are left out.
    """
    said, fits = defaultdict(list), {}
    print("| data set | type | cells | group | markers | name | similarity | lineage |\n" + "|---" * 8 + "|")
    for name, only in NOVEL_SETS:
        cells = anndata.read_h5ad(SHARED / f"{name}.h5ad")
        if only:
            cells = cells[cells.obs["tissue"].astype(str) == only].copy()
        each = cells.obs.groupby(cells.obs["cell_type"].astype(str), sort=True).cumcount()
        cells = cells[(each < MOST_CELLS).to_numpy()].copy()
        tissue = only or str(cells.obs["tissue"].iloc[0])
        labels = cells.obs["cell_type"].astype(str)
        terms = world.matcher.match_all(sorted(set(labels)), [tissue])
        half = np.random.default_rng(0).random(cells.n_obs) < 0.5
        asked = Question([], tissue, "", "", name)
        if asked.family not in fits:
            fits[asked.family] = fitted(answers, answers.families != asked.family)
        fit = fits[asked.family]
        indices = {m: replace_fit(world.index(asked, m), fit) for m in ("shipped", "tables")}
        for left in [t for t, n in labels.value_counts().items() if n >= 10 and terms[t].cl_id]:
            reference = cells[half & (labels != left).to_numpy()].copy()
            query = cells[~half | (labels == left).to_numpy()].copy()
            own = (query.obs["cell_type"].astype(str) == left).to_numpy()
            several = reference.obs["cell_type"].nunique() > 1  # one type makes no reference
            found = found_novel(reference, query, own) if several else None
            groups = {"given": np.where(own, left, None), "novel": found}
            for kind, group in groups.items():
                if group is None:
                    said[name, kind, "not found"].append((0.0, 0.0, 0.0))
                    continue
                for markers, best in named(world, query, group, indices, tissue).items():
                    truth, up = world.above(terms[left].cl_id), world.above(best.cl_id) if best else set()
                    right = best is not None and (best.cl_id in truth or terms[left].cl_id in up)
                    similar = len(up & truth) / len(up | truth)
                    sure = best.probability if best else 0.0
                    said[name, kind, markers].append((sure, right, similar))
                    spoken = f"{best.label} {sure:.2f}" if best else "unknown"
                    row = f"{name} {only} | {left} | {own.sum()} | {kind} | {markers} | {spoken}"
                    print(f"| {row} | {similar:.2f} | {right} |", flush=True)
    print("| data set | group | markers | types | similarity | same lineage | calibration error |")
    print("|---" * 7 + "|")
    for name in (*dict.fromkeys(n for n, _ in NOVEL_SETS), ""):
        for _, kind, markers in sorted({("", *key[1:]) for key in said}):
            rows = [
                r for key, rs in said.items() if key[1:] == (kind, markers) and name in key[0] for r in rs
            ]
            if rows:
                sure, right, similar = np.array(rows, dtype=float).T
                error = expected_calibration_error(sure, right > 0, 10)
                print(
                    f"| {name or 'all'} | {kind} | {markers} | {len(rows)} | {similar.mean():.3f} | "
                    f"{right.mean():.3f} | {error:.3f} |",
                    flush=True,
                )


def found_novel(reference, query, own: np.ndarray) -> np.ndarray | None:
    """Return the novel group that most of the left-out cells are in, None for other cells; or None."""
    with tempfile.TemporaryDirectory() as folder:
        scvec.ingest_cells(folder, [reference], name="r", label_key="cell_type", min_cells=5)
        group = scvec.query(folder, query, reference="r", name_novel=True).novel_group
    found = [g for g in group[own] if g is not None]
    most = max(sorted(set(found)), key=found.count) if found else None
    return None if most is None else np.array([g if g == most else None for g in group], dtype=object)


def named(world: World, cells, groups: np.ndarray, indices: dict, tissue: str) -> dict:
    """Return the first name of the one group of cells, for each index of markers."""
    asked = NameOptions(tissue=tissue)
    with CellSource.open(cells) as source:
        matched = match_genes(source, world.resolver, species="auto")
        return {
            markers: next(
                iter(_named_groups(matched, groups, index, world.key, asked, no_progress)[0].candidates), None
            )
            for markers, index in indices.items()
        }


def of_clusters(world: World) -> None:
    """Print how many cells get a name of the right lineage where ``name`` makes the clusters.

    The shipped weights name the clusters; markers of the same data set are left out.
    """
    fit, said = NameFit.shipped(), defaultdict(list)
    for name, only in NOVEL_SETS:
        cells = anndata.read_h5ad(SHARED / f"{name}.h5ad")
        if only:
            cells = cells[cells.obs["tissue"].astype(str) == only].copy()
        cells = cells[np.sort(np.random.default_rng(0).permutation(cells.n_obs)[:3000])].copy()
        tissue = only or str(cells.obs["tissue"].iloc[0])
        labels = cells.obs["cell_type"].astype(str).to_numpy()
        terms = world.matcher.match_all(sorted(set(labels)), [tissue])
        asked = NameOptions(tissue=tissue)
        with CellSource.open(cells) as source:
            matched = match_genes(source, world.resolver, species="auto")
            for resolution in RESOLUTIONS:
                with mock.patch.object(name_module, "RESOLUTION", resolution):
                    made = name_module._clustered(matched, np.arange(cells.n_obs), no_progress)
                groups = np.array([str(k) for k in made], dtype=object)
                for markers in ("shipped", "tables"):
                    index = replace_fit(world.index(Question([], tissue, "", "", name), markers), fit)
                    named = _named_groups(matched, groups, index, world.key, asked, no_progress)
                    best = {g.group: g.candidates[0].cl_id if g.candidates else None for g in named}
                    right = [
                        best[g] is not None
                        and (best[g] in world.above(cl_id) or cl_id in world.above(best[g]))
                        for g, cl_id in zip(groups, (terms[label].cl_id for label in labels), strict=True)
                        if cl_id
                    ]
                    said[resolution, markers].append((np.mean(right), len(named)))
    print("| resolution | markers | data sets | clusters | cells of the right lineage |\n" + "|---" * 5 + "|")
    for (resolution, markers), rows in said.items():
        right, n = np.mean(rows, axis=0)
        print(f"| {resolution} | {markers} | {len(rows)} | {n:.1f} | {right:.3f} |", flush=True)


def as_families(world: World, questions: list[Question], answers: Answers) -> None:
    """Print how lists are named in which families of genes stand as one word (CD3), tissue given.

    Each gene of a list whose symbol is such a word, a letter and perhaps a digit is written as the word.
    """
    with knowledge(None) as (kb, _):
        symbols = dict(zip(*(kb.genes()[c] for c in ("gene_id", "symbol")), strict=True))
    plain = world.index(Question([], "", "", "", ""), "tables")
    members: dict[str, list[str]] = {}

    def word(gene: str) -> str:
        found = re.fullmatch(r"(.*[\d-].*?)[A-Z]\d?", symbols[gene])
        stem = found[1] if found else ""
        if stem and stem not in members:
            # One gene alone shows nothing of what the rest of a list would.
            spoken, _ = listed_genes([stem], "human", world.resolver, plain, world.key)
            members[stem] = list(spoken) if len(spoken) > 1 else []
        return stem if gene in members.get(stem, ()) else symbols[gene]

    said = defaultdict(list)
    for family in sorted(set(answers.families)):
        fit = replace(NameFit.shipped(), weights=told(learned(answers, answers.families != family)))
        for q in (q for q in questions if q.family == family):
            words = list(dict.fromkeys(word(g) for g in q.genes))
            if not any(w in members for w in words):
                continue
            own = {symbols[g]: [g] for g in q.genes}
            called = {g: w for w in words for g in members.get(w) or own[w]}
            truth = world.above(q.truth)
            for markers in ("shipped", "tables"):
                index = replace_fit(world.index(q, markers), fit)
                for how, genes, spoken in (
                    ("as its genes in the list", q.genes, {}),
                    ("each gene of the family as one", called, {}),
                    ("the family as one gene", called, called),
                ):
                    best = index.name("", list(genes), tissue=q.tissue, symbols=spoken, silent=q.silent)
                    up = world.above(best.candidates[0].cl_id) if best.candidates else frozenset()
                    right = bool(up) and (best.candidates[0].cl_id in truth or q.truth in up)
                    said[markers, "tables" if q.table else "cells", how].append(
                        (len(up & truth) / len(up | truth), right)
                    )
    print("| markers | lists | a family counts | n | similarity | same lineage |\n|---|---|---|---|---|---|")
    for key, rows in said.items():
        similar, right = np.array(rows, dtype=float).mean(axis=0)
        print(f"| {' | '.join(key)} | {len(rows)} | {similar:.3f} | {right:.3f} |")


def fitted(answers: Answers, use: np.ndarray) -> NameFit:
    """Return weights and calibration that are learned on some of the questions."""
    weights = learned(answers, use)
    return NameFit(told(weights), *calibrated(answers, use, weights))


def told(weights: np.ndarray) -> dict[str, float]:
    return {name: round(w, 4) for name, w in zip(FEATURES, weights.tolist(), strict=True)}


def replace_fit(index: MarkerIndex, fit: NameFit) -> MarkerIndex:
    index.fit = fit
    return index


def of_labels(world: World) -> None:
    """Print how many right labels are doubted, and pairs of swapped labels, by limits of other data sets.

    Of the limits that doubt at most :data:`MOST_FALSE` of the right labels, those are chosen that doubt most
    swapped pairs (one of the two labels, mean over data sets).
    """
    rows = [row[:6] for row in world.rows if row[6] == "shipped" and row[5] != known_markers.AGREED]
    index = MarkerIndex(rows, world.labels, world.lineage)
    told: dict[str, np.ndarray] = {}
    for file in sorted(SHARED.glob("*.h5ad")):
        family = next((name for name in ("pbmc", "baron") if name in file.stem), file.stem)
        told[family] = told.get(family, 0) + doubted(world, index, anndata.read_h5ad(file))
    found = np.array([told[family] for family in sorted(told)])

    def chosen(sets: np.ndarray) -> int:
        false, labels, swapped, pairs = np.moveaxis(found[sets], 2, 0)
        few = false.sum(axis=0) <= MOST_FALSE * labels.sum(axis=0)
        return int(np.argmax(np.where(few, (swapped / np.maximum(pairs, 1)).mean(axis=0), -1)))

    print("| data set | absent, expressed, few, least | right labels doubted | swapped pairs doubted |")
    print("|---|---|---|---|")
    for k, family in enumerate(sorted(told)):
        at = chosen(np.arange(len(found)) != k)
        false, labels, swapped, pairs = found[k, at].astype(int)
        print(f"| {family} | {LIMITS[at]} | {false} of {labels} | {swapped} of {pairs} |")
    print(f"chosen on all of them: {LIMITS[chosen(np.ones(len(found), dtype=bool))]}")


def doubted(world: World, index: MarkerIndex, cells) -> np.ndarray:
    """Return (n_limits, 4): right labels doubted, labels, swapped pairs doubted, pairs of a data set."""
    X = sp.csr_matrix(cells.X).astype(np.float32)
    if X.max() > 30:
        X = sp.diags(1e4 / np.maximum(np.asarray(X.sum(axis=1)).ravel(), 1)) @ X
        X.data = np.log1p(X.data)
    names = [n.split("_ENSG")[0] for n in cells.var_names]
    species = SPECIES.get(str(cells.obs["species"].iloc[0]), str(cells.obs["species"].iloc[0]))
    called = world.resolve(names, species)
    ids = [called.get(n, f"none {i}") for i, n in enumerate(names)]
    labels = cells.obs["cell_type"].astype(str)
    large = sorted(label for label, n in labels.value_counts().items() if n >= known_markers.CELLS)
    matched = world.matcher.match_all(large, [str(cells.obs["tissue"].iloc[0])])
    means = {label: X[(labels == label).to_numpy()].mean(axis=0).A1 for label in large}
    terms = {label: matched[label].cl_id for label in large if matched[label].cl_id}
    marks = set(index.genes)
    kept = [i for i, g in enumerate(ids) if g in marks]
    values = np.array([mean[kept] for mean in means.values()])
    own = [list(means).index(label) for label in terms]
    rows = []
    before = {name: getattr(known_markers, name) for name in ("ABSENT", "EXPRESSED", "FEW", "LEAST")}
    for limits in LIMITS:
        vars(known_markers).update(zip(before, limits, strict=True))
        doubts = {}
        for term in set(terms.values()):
            as_term = absent_markers(index, dict.fromkeys(means, term), values, [ids[i] for i in kept])
            doubts[term] = {list(means).index(label) for label, _ in as_term}
        false = sum(row in doubts[term] for row, term in zip(own, terms.values(), strict=True))
        pairs = [
            (a in doubts[v]) or (b in doubts[u])
            for (a, u), (b, v) in itertools.combinations(zip(own, terms.values(), strict=True), 2)
            if u != v
        ]
        rows.append((false, len(terms), sum(pairs), len(pairs)))
    vars(known_markers).update(before)
    return np.array(rows, dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("parts", "families", "novel", "clusters", "labels", "fit"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--text", type=Path, metavar="NPZ", help="vectors of texts; made if absent")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each control of the text")
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = World.load()
    if args.labels:
        of_labels(world)
        return
    if args.clusters:
        of_clusters(world)
        return
    questions = [*lists_of_cells(world), *lists_of_tables(world)]
    if args.text:
        if not args.text.exists():
            ontology = SHARED / "genes" / "cl_cellxgene_v2026-03-26.json.gz"
            encode_texts(world, questions, ontology, args.text)
        with_text(world, questions, args.text, args.seeds)
        return
    questions += short_lists(questions)
    answers = Answers.of(world, questions, MODES[1::2] if args.parts else MODES)
    if args.fit:
        fit = fitted(answers, np.ones(len(answers.where), dtype=bool))
        OUT.write_text(json.dumps(asdict(fit), indent=1) + "\n")
        print(OUT.read_text())
        return
    if args.novel:
        novel(world, answers)
        return
    if args.families:
        as_families(world, questions, answers)
        return
    if args.parts:
        without_parts(answers)
        return
    table(answers, left_out(answers))


if __name__ == "__main__":
    main()
