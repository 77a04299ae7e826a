"""The whole package: its imports, its layers, and its shipped files."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "scvec"
SOURCES = sorted(PACKAGE.rglob("*.py"))

HEAVY = (
    "aiohttp anndata duckdb faiss h5py numpy openai pandas pyarrow rich scipy sentence_transformers "
    "sklearn torch transformers"
).split()

# Lower may not import higher, nor a neighbour. The same as [importlinter] in setup.cfg.
LAYERS = [
    {"cli"},
    {"web"},
    {"workflows"},
    {"report"},
    {"engines"},
    {"model"},
    {"celltypes"},
    {"encoders", "backbones"},
    {"stores", "ingest"},
    {"base"},
]


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(PROJECT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.mark.parametrize(
    "code",
    [
        "import scvec; dir(scvec); scvec.__version__",
        "from scvec.cli.main import cli; cli(['--help'])",
        "from scvec.cli.main import cli; cli(['ingest', 'cells', '--help'])",
        "from scvec.cli.main import cli; cli(['query', '--wrong'])",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    program = (
        "import sys\n"
        f"try:\n    exec({code!r})\nexcept SystemExit:\n    pass\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.stderr.write('LOADED ' + ' '.join(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=500, check=True
    )
    assert done.stderr.split("LOADED")[1].split() == []


def imported(path: Path) -> set[str]:
    """Parts of scvec that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("scvec.")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_layers(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part.startswith("__"):
        return
    [own] = [i for i, layer in enumerate(LAYERS) if part in layer]
    lowest = LAYERS[-1]
    allowed = {part}.union(*LAYERS[own + 1 :]) | (lowest if part in lowest else set())
    everything = set().union(*LAYERS)
    assert imported(path) & everything <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PROJECT)))
def test_library_sets_up_nothing_global(path):
    if path.is_relative_to(PACKAGE / "cli"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert on input"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name.split(".")[0] for a in node.names} | {
                str(getattr(node, "module", "")).split(".")[0]
            }
            is_unpickler = {a.name for a in node.names} <= {"UnpicklingError", "_Unpickler"}
            if path == PACKAGE / "workflows" / "import_legacy.py" and is_unpickler:
                names -= {"pickle"}  # it reads pickles without running them
            assert not names & {"pickle", "stores", "ingest"}, f"{where}: {names}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {
                "print",
                "logging.basicConfig",
                "warnings.filterwarnings",
                "warnings.simplefilter",
            } or _inside_catch_warnings(tree, node), f"{where}: {called}"


def _inside_catch_warnings(tree: ast.Module, call: ast.Call) -> bool:
    return any(
        isinstance(node, ast.With)
        and any("catch_warnings" in ast.unparse(item.context_expr) for item in node.items)
        and any(child is call for child in ast.walk(node))
        for node in ast.walk(tree)
    )


def test_the_links_at_the_top_are_the_packages():
    for name in ("stores", "ingest"):
        link = PROJECT / name
        assert link.is_symlink() and link.resolve() == PACKAGE / name


def test_setup_cfg_names_every_package_and_no_other():
    listed = config()["options"]["packages"].split()
    found = {
        ".".join(p.parent.relative_to(PROJECT).parts)
        for p in PACKAGE.rglob("__init__.py")
        if "data" not in p.parts
    }
    assert set(listed) == found


def test_every_data_file_is_packaged():
    patterns = config()["options.package_data"]["scvec"].split()
    packaged = {p for pattern in patterns for p in PACKAGE.glob(pattern)}
    files = {p for p in (PACKAGE / "data").rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert files <= packaged


def test_a_build_ships_data_and_code(tmp_path):
    pytest.importorskip("setuptools")
    # From a copy: setuptools writes beside the sources.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    shutil.copytree(PACKAGE, source / "scvec", ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path / "built"
    program = "import setuptools; setuptools.setup()"
    subprocess.run(
        [sys.executable, "-c", program, "-q", "build_py", "--build-lib", str(built)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=500,
    )
    wanted = {p.relative_to(source) for p in (source / "scvec").rglob("*") if p.is_file()}
    assert {p for p in wanted if not p.name.startswith(".")} <= {
        p.relative_to(built) for p in built.rglob("*") if p.is_file()
    }


def test_shipped_data_stays_small():
    cells = sum(p.stat().st_size for p in (PACKAGE / "data").glob("*.h5ad"))
    files = [p for p in (PACKAGE / "data" / "snapshot").rglob("*") if p.is_file()]
    vectors = sum(p.stat().st_size for p in files if p.name.startswith("gene_vector"))
    assert cells <= 16_000_000
    assert vectors <= 16_000_000
    assert sum(p.stat().st_size for p in files) - vectors <= 15_000_000


def test_constraints_pin_every_dependency_and_torch_first():
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert next(iter(pins.items())) == ("torch", "2.13.0")
    options = config()
    wanted = options["options"]["install_requires"].split()
    for extra in ("offline", "serve", "dev", "docs"):
        wanted += options["options.extras_require"][extra].split()
    names = {re.split(r"[<>=!]", w)[0].lower() for w in wanted if not w.startswith("#")}
    assert names <= {p.lower() for p in pins}


def test_public_names_exist():
    import scvec

    for name in scvec.__all__:
        assert getattr(scvec, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = scvec.nonsense
