"""Rules that keep the package easy to carry on: no circles, small folders, short functions, shared files.

Each rule is a function that names its offenders. ``KNOWN`` lists the offenders that wait for their repair. It
may only shrink: an entry without an offender fails too.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

MODULES_A_FOLDER = 12
LINES = 80
PARAMETERS = 8
#: Folders where a file is one verb, or one part of the method. They may hold more modules.
LARGE_FOLDERS = {"scvec.workflows", "scvec.model"}
#: A room whose parts only its door puts together, one concern of a server each: connections, uploads, jobs.
PUT_TOGETHER = "scvec.web."

KNOWN: dict[str, set[str]] = {
    "circles": set(),
    "folders": set(),
    "lines": set(),
    "parameters": set(),
    "names": set(),
    "importers": set(),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((PROJECT / "scvec").rglob("*.py"))}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_package(module: str) -> bool:
    return FILES[module].stem == "__init__"


def room_of(module: str) -> str:
    return module if is_package(module) else module.rpartition(".")[0]


def imports(module: str) -> set[str]:
    """Modules of scvec that a module imports, at its top or in its functions, but for TYPE_CHECKING."""
    found: set[str] = set()
    left: list[ast.AST] = [trees()[module]]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            left += node.orelse
            continue
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in inner.values()}
    return found & set(FILES) - {module}


def table_entries(module: str) -> set[str]:
    """Modules that a module names in strings: a table of names, which imports an entry when it is used."""
    strings = {
        node.value.partition(":")[0]
        for node in ast.walk(trees()[module])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return (strings | {f"{room_of(module)}.{name}" for name in strings}) & set(FILES) - {module}


@cache
def all_imports() -> dict[str, set[str]]:
    return {module: imports(module) for module in FILES}


def functions() -> Iterator[tuple[str, Function]]:
    left: list[tuple[str, ast.AST]] = list(trees().items())
    while left:
        name, node = left.pop()
        if isinstance(node, ast.ClassDef | Function):
            name = f"{name}.{node.name}"
        if isinstance(node, Function):
            yield name, node
        left += [(name, child) for child in ast.iter_child_nodes(node)]


def circles() -> set[str]:
    """Groups of files that import one another, directly or through others."""
    reach = all_imports()
    while (wider := {m: seen.union(*(reach[n] for n in seen)) for m, seen in reach.items()}) != reach:
        reach = wider
    return {" ".join(sorted(n for n in reach[m] if m in reach[n])) for m in FILES if m in reach[m]}


def folders() -> set[str]:
    """Folders with too many modules."""
    counts = Counter(room_of(module) for module in FILES if not is_package(module))
    return {room for room, n in counts.items() if n > MODULES_A_FOLDER and room not in LARGE_FOLDERS}


def lines() -> set[str]:
    """Functions with too many lines. A docstring is documentation and does not count."""
    found = set()
    for name, function in functions():
        code = function.body[1:] if ast.get_docstring(function) is not None else function.body
        head = function.body[0].lineno - function.lineno
        if code and head + (function.end_lineno or 0) - code[0].lineno + 1 > LINES:
            found.add(name)
    return found


def is_command(function: Function) -> bool:
    """Whether click calls it: its parameters are the options of a command."""
    called = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(isinstance(f, ast.Attribute) and f.attr in ("command", "group") for f in called)


def only_builds_options(function: Function) -> bool:
    """Whether it turns its keywords into an options object, in at most two statements, and passes that on."""
    code = function.body[1:] if ast.get_docstring(function) is not None else function.body
    code = [node for node in code if not isinstance(node, ast.Import | ast.ImportFrom)]
    if len(code) > 2 or not all(isinstance(node, ast.Assign | ast.Return) for node in code):
        return False
    called = [ast.unparse(n.func) for part in code for n in ast.walk(part) if isinstance(n, ast.Call)]
    return any(name.endswith("Options") for name in called)


def parameters() -> set[str]:
    """Functions with too many parameters.

    Exempt are the commands of click, and public functions that only build an options object.
    """
    found = set()
    for name, function in functions():
        given = function.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        n = sum(a.arg not in ("self", "cls") for a in named) + bool(given.vararg) + bool(given.kwarg)
        exempt = is_command(function) or (function.name[0] != "_" and only_builds_options(function))
        if n > PARAMETERS and not exempt:
            found.add(name)
    return found


def names() -> set[str]:
    """Base names that several files have. A file of cli/ has the name of the workflow that it calls."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, path in FILES.items():
        if not path.stem.startswith("__") and not module.startswith("scvec.cli."):
            found[path.stem].append(module)
    return {" ".join(modules) for modules in found.values() if len(modules) > 1}


def importers() -> set[str]:
    """Modules that only one other module imports, and whose code should be in that module.

    One importer is enough for a verb of workflows/ or cli/, and for the door of a room: the only file of a
    folder that other folders import. An entry of a table of names needs none, nor a part of the server.
    """
    of = {module: {m for m, found in all_imports().items() if module in found} for module in FILES}
    tables = set().union(*(table_entries(module) for module in FILES))
    entered: dict[str, set[str]] = defaultdict(set)
    for module, found_by in of.items():
        room = room_of(module)
        if any(not f"{by}.".startswith(f"{room}.") for by in found_by):
            entered[room].add(module)
    found = set()
    for module in FILES:
        room = room_of(module)
        enough = 1 if room in ("scvec.workflows", "scvec.cli") or entered[room] == {module} else 2
        exempt = is_package(module) or module == "scvec.__main__" or module in tables
        exempt = exempt or module.startswith(PUT_TOGETHER)
        if len(of[module]) < enough and not exempt:
            found.add(module)
    return found


RULES = [circles, folders, lines, parameters, names, importers]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules_of_the_house(rule):
    found, known = rule(), KNOWN[rule.__name__]
    assert not found - known, "new offenders: repair them, and do not list them in KNOWN"
    assert not known - found, "these are repaired: take them out of KNOWN"
