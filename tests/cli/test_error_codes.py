"""The codes of errors: those of the source are those of docs/errors.md, and reach programs."""

from __future__ import annotations

import ast
import importlib
import pickle
import re
from pathlib import Path

import pytest

from scvec.base import errors
from scvec.base.errors import ScvecError

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "errors.md").read_text(encoding="utf-8")
MODULES = ("scvec.cli.main", "scvec.web.server")


def classes() -> dict[str, type[ScvecError]]:
    for module in MODULES:
        importlib.import_module(module)
    found, todo = {}, [ScvecError]
    while todo:
        found[todo[-1].__name__] = todo[-1]
        todo += todo.pop().__subclasses__()
    return found


def documented() -> dict[str, set[int]]:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([\d, ]+) \| [^|]+ \| [^|]+ \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == len({code for code, _ in rows}) == PAGE.count("\n| `")
    return {code: {int(number) for number in numbers.split(",")} for code, numbers in rows}


def in_source() -> dict[str, set[int]]:
    """Every ``code="..."`` of an error under scvec/, with the exit codes of its classes."""
    known = classes()
    found: dict[str, set[int]] = {}
    for cls in known.values():
        found.setdefault(cls.code, set()).add(cls.exit_code)
    for path in sorted((PROJECT / "scvec").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            for value in (k.value for k in node.keywords if k.arg == "code"):
                codes = {
                    c.value
                    for c in ast.walk(value)
                    if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                for code in codes:
                    found.setdefault(code, set()).update({known[name].exit_code} if name in known else set())
    return found


def test_the_page_lists_the_codes_of_the_source():
    page, source = documented(), in_source()
    assert set(page) == set(source)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in source)
    assert {code: page[code] for code, numbers in source.items() if numbers and numbers != page[code]} == {}


def test_a_raise_may_give_a_finer_code():
    assert errors.InputError("no column 'x'").code == "input"
    error = errors.InputError("no column 'x'", "a.h5ad", "give y", code="unknown-column")
    assert error.code == error.to_dict()["code"] == error.body()["code"] == "unknown-column"
    assert error.exit_code == 2 and errors.InputError.code == "input"
    # Ray and processes send errors to each other.
    assert pickle.loads(pickle.dumps(error)).to_dict() == error.to_dict()


CLASSES = {name: cls for name in errors.__all__ if isinstance(cls := getattr(errors, name), type)}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"ScvecError"}))
def test_every_class_has_a_code_of_its_own(name):
    others = [cls.code for other, cls in CLASSES.items() if other != name]
    assert CLASSES[name].code not in others
