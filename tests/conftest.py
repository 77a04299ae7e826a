"""What all tests share: no network, no store but their own, and small cells."""

from __future__ import annotations

import atexit
import hashlib
import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# Before any library reads them. One thread, because tests run beside other work on small machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

# A shell that runs the tests in the background lets them, and all they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A developer's keys, config and request counts are not the tests' business.
for _name in (
    "NCBI_API_KEY",
    "NCBI_EMAIL",
    "NCBI_TOOL",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "SCVEC_MYGENE_URL",
    "SCVEC_NCBI_URL",
):
    os.environ.pop(_name, None)
_private = tempfile.mkdtemp(prefix="scvec-tests-")
atexit.register(shutil.rmtree, _private, ignore_errors=True)
os.environ["SCVEC_STATE"] = _private
os.environ["SCVEC_CONFIG"] = os.path.join(_private, "config.toml")
Path(os.environ["SCVEC_CONFIG"]).touch()

# Nothing is said of speed, which is the machine's. Developers search for new examples at each run; continuous
# integration repeats the same ones, so that it fails by a change and not by chance.
settings.register_profile(
    "scvec",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize="SCVEC_SAME_EXAMPLES" in os.environ,
)
settings.load_profile("scvec")

PROJECT = Path(__file__).resolve().parents[1]

# Human genes that everyone measures, by the cells that express them.
MARKERS: dict[str, tuple[str, ...]] = {
    "alpha": tuple(
        "GCG TTR IRX2 ARX LOXL4 GC DPP4 PCSK2 CHGB SCG2 TM4SF4 CRYBA2 FEV SLC7A2 FAP PLCE1 SMIM24 KCTD12 "
        "RGS4 SPOCK3".split()
    ),
    "beta": tuple(
        "INS IAPP MAFA DLK1 ADCYAP1 PDX1 NKX6-1 PCSK1 SLC30A8 G6PC2 HADH SYT13 RBP4 ERO1B PFKFB2 NPTX2 "
        "ENTPD3 GAD2 SLC6A6 SCGN".split()
    ),
    "acinar": tuple(
        "PRSS1 CPA1 CPA2 CELA3A CELA3B CTRB1 CTRB2 CTRC PNLIP REG1A REG1B REG3A CEL PLA2G1B SPINK1 AMY2A "
        "CLPS GP2 RBPJL KLK1".split()
    ),
    "ductal": tuple(
        "KRT19 KRT7 KRT8 KRT18 SPP1 CFTR MUC1 SOX9 ANXA4 CLDN1 CLDN4 TACSTD2 SLC4A4 ONECUT2 S100A14 CD24 "
        "LCN2 MMP7 SERPINA5 TSPAN8".split()
    ),
    "endothelial": tuple(
        "PECAM1 VWF CDH5 KDR FLT1 ESAM PLVAP ENG ERG CLDN5 CD93 EGFL7 ROBO4 TIE1 TEK EMCN ECSCR RAMP2 "
        "PODXL S1PR1".split()
    ),
}
COMMON = tuple(
    "ACTB GAPDH EEF1A1 TPT1 RPL3 RPL4 RPL5 RPL7 RPL10 RPL11 RPL13 RPS2 RPS3 RPS4X RPS6 RPS8 RPS18 RPLP0 "
    "RPLP1 FTH1 FTL TMSB4X TMSB10 UBC HSP90AB1 HSPA8 HSPA5 PABPC1 NACA EIF4A1 EIF1 MYL6 PFN1 CFL1 TUBA1B "
    "VIM S100A6 LGALS3 CD63 CD81 CD9 B2M HLA-A HLA-B HLA-C CANX CALR PDIA3 SOD1 PRDX1 LDHA ENO1 PGK1 "
    "ALDOA TPI1 PKM NDUFA4 COX4I1 ATP5F1B SLC25A5".split()
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the project, which a clone does not have."""
    path = PROJECT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the project")
    return path


#: Scripts of the benchmark of annotation.
BENCHMARK = ("compare", "methods", "pairs", "prepare", "results", "scores", "summary", "tables")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of the scripts, which import one another by bare names as scripts do."""
    folder = str(PROJECT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in BENCHMARK})
    finally:
        sys.path.remove(folder)
        for name in BENCHMARK:
            sys.modules.pop(name, None)


#: Files that take longest: they go first, so that no process works on one of them alone at the end.
LONG = (
    # of the lanes
    "encoders/test_prompt_training.py",
    "cli/test_demo.py",
    "cli/test_readme.py",
    "engines/test_ray_engine.py",
    "stores/test_crash.py",
    "test_real_llm.py",
    "web/test_server.py",
    "web/test_api_schema.py",
    "web/test_report_browser.py",
    "web/test_serve_browser.py",
    "model/test_model_encoders.py",
    "stores/test_journal_crash.py",
    "test_real_embeddings.py",
    "test_real_chat.py",
    # of make test
    "test_main_job.py",
    "workflows/test_name.py",
    "ingest/test_odd_exports.py",
    "workflows/test_pack.py",
    "workflows/test_shapes.py",
    "stores/test_store_trouble.py",
    "test_small_references.py",
    "workflows/test_copies.py",
    "cli/test_bad_inputs_cli.py",
    "workflows/test_query_many.py",
    "stores/test_ivf_index.py",
    "workflows/test_name_llm.py",
    "workflows/test_annotated_again.py",
    "workflows/test_search.py",
    "stores/test_shipped_vectors.py",
    "cli/test_live_cli.py",
    "workflows/test_explain.py",
    "test_any_species.py",
    "model/test_cell_index.py",
    "stores/test_knowledge.py",
    "workflows/test_live.py",
    "ingest/test_cellguide.py",
    "backbones/test_remote.py",
    "ingest/test_values.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = PROJECT / "tests"
    order = {tests / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Let a test that would be skipped fail where continuous integration installs what it needs."""
    report = yield
    for marker, variable in (("servers", "SCVEC_REQUIRE_SERVERS"), ("browser", "SCVEC_REQUIRE_BROWSER")):
        if report.skipped and item.get_closest_marker(marker) and os.environ.get(variable):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} needs what is not installed: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def tiny_adata() -> Callable[..., Any]:
    """A factory of small AnnData objects with real gene symbols.

    ``tiny_adata(n_cells=90, classes=3, seed=0, species="human", donors=2, depth=2000, genes=None)``:
    X is CSR float32 counts (Poisson), ``obs`` has ``cell_type`` and ``donor``; every class raises its
    own markers tenfold, so the classes can be told apart. Mouse symbols are the human ones in mouse
    spelling (most are right, some name no gene).
    """
    import anndata
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    def make(
        n_cells: int = 90,
        classes: int = 3,
        *,
        seed: int = 0,
        species: str = "human",
        donors: int = 2,
        depth: float = 2000.0,
        genes: int | None = None,
    ) -> Any:
        rng = np.random.default_rng(seed)
        names = [g for markers in MARKERS.values() for g in markers] + list(COMMON)
        # The level of a gene belongs to the gene: it is the same for every seed.
        level = np.random.default_rng(12345).gamma(0.7, 1.0, len(names)) + 0.05
        kinds = list(MARKERS)[:classes]
        label = np.arange(n_cells) % len(kinds)
        rate = np.tile(level, (n_cells, 1))
        for k, kind in enumerate(kinds):
            columns = [names.index(g) for g in MARKERS[kind]]
            rate[np.ix_(label == k, columns)] *= 10.0
        rate *= depth / rate.sum(axis=1, keepdims=True)
        counts = rng.poisson(rate).astype(np.float32)
        if species == "mouse":
            names = [g.capitalize() for g in names]
        keep = slice(None, genes)
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical([kinds[k] for k in label]),
                "donor": pd.Categorical([f"donor{i // len(kinds) % donors + 1}" for i in range(n_cells)]),
            },
            index=[f"cell{seed}-{i}" for i in range(n_cells)],
        )
        var = pd.DataFrame(index=pd.Index(names[keep], dtype=object))
        return anndata.AnnData(X=sp.csr_matrix(counts[:, keep]), obs=obs, var=var)

    return make


def _digest_of_code() -> str:
    """Digest of the files that decide what a store holds: code and shipped data."""
    digest = hashlib.sha256()
    for path in sorted((PROJECT / "scvec").rglob("*")):
        if path.is_file() and path.suffix not in (".pyc", ".h5ad"):
            digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def new_store(pytestconfig: pytest.Config) -> Callable[[Path], Path]:
    """A function that puts a store with the shipped knowledge of genes into a folder, and returns that.

    Loading it takes seconds of computing, copying what was loaded none. One process of a run makes the store
    and the others copy it. Later runs copy it too, until the code changes.
    """
    import scvec

    stores = pytestconfig.cache.mkdir("stores")
    made = stores / _digest_of_code()
    with FileLock(stores / "lock"):
        if not made.exists():
            part = stores / "part"
            for old in stores.glob("*/"):  # stores of older code that no run copies, and a part of a store
                if old == part or time.time() - old.stat().st_mtime > 3600:
                    shutil.rmtree(old)
            scvec.ingest_genes(part)
            part.rename(made)
    return lambda folder: shutil.copytree(made, folder)


@pytest.fixture(scope="session")
def names_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that puts a store of eight genes and a few cell types (small_names.py) into a folder."""
    from small_names import small_names

    made = small_names(tmp_path_factory.mktemp("small-names") / "store").path
    return lambda folder: shutil.copytree(made, folder)


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No test may read or write the store of whoever runs it.
    monkeypatch.setenv("SCVEC_STORE", str(tmp_path / "default-store"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"tests have no network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
