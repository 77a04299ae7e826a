"""Paths on the command line: ``~`` and ``$NAME`` stand for what a shell would put there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from scvec.base.errors import InputError
from scvec.cli.main import cli
from scvec.cli.options import FilePath, PathOrName

#: Words of a metavar or help that speak of a place of files.
PLACE = re.compile(r"\b(FILE|FOLDER|DIR|PATH|OUT|CSV|SPEC|[Ff]older|file)\b")
#: What speaks of files and takes none: sizes, names.
NO_PATHS = {
    "import-legacy: --name",
    "import: --reference",
    "mcp: --max-file",
    "serve: --max-upload",
}


def parameters(command: click.Command = cli, name: str = "") -> Iterator[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        for word, part in command.commands.items():
            yield from parameters(part, f"{name} {word}".strip())
    for parameter in command.params:
        yield f"{name}: {parameter.opts[-1]}", parameter


ALL = dict(parameters())


def kind(parameter: click.Parameter) -> str:
    if isinstance(parameter.type, click.Path):
        return "path"
    return "text" if isinstance(parameter.type, click.types.StringParamType | PathOrName) else ""


def test_commands_are_walked() -> None:
    assert len({name.split(":")[0] for name in ALL}) > 20 and len(ALL) > 100


@pytest.mark.parametrize("name", [n for n, p in ALL.items() if kind(p) == "path"])
def test_every_path_is_expanded(name, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    take = ALL[name].type
    assert take.convert("~/a b", None, None) == tmp_path / "a b"
    assert take.convert("$PLACE/${PLACE}.csv", None, None) == Path("here/here.csv")
    assert take.convert("plain.h5ad", None, None) == Path("plain.h5ad")


def test_a_file_of_that_name_is_itself(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("$HOME").write_text("")
    assert FilePath().convert("$HOME", None, None) == Path("$HOME")
    with pytest.raises(InputError) as error:
        FilePath().convert("$NO_SUCH_NAME/a", None, None)
    assert error.value.code == "file-not-found"


def test_texts_that_may_be_paths_are_expanded() -> None:
    texts = {n: f"{p.metavar} {getattr(p, 'help', '')}" for n, p in ALL.items() if kind(p) == "text"}
    told = [n for n, words in texts.items() if PLACE.search(words)]
    plain = [n for n in told if not isinstance(ALL[n].type, PathOrName)]
    assert set(plain) == NO_PATHS
    assert {"pull: source", "ingest census: --uri", "diff: old"} <= {
        n for n, p in ALL.items() if isinstance(p.type, PathOrName)
    }


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("~/m", "HOME/m"),
        ("st:~/m", "st:HOME/m"),
        ("permuted:st:$PLACE/m", "permuted:st:here/m"),
        ("name:hf:~/m", "name:hf:HOME/m"),
        ("hf:owner/name@0123:a.scvec", "hf:owner/name@0123:a.scvec"),
        ("https://host/~user/a.scvec#sha256=0", "https://host/~user/a.scvec#sha256=0"),
        ("s3://bucket/$x", "s3://bucket/$x"),
        ("openai:gpt-4o-mini", "openai:gpt-4o-mini"),
        ("minilm", "minilm"),
        ("pancreas@3", "pancreas@3"),
    ],
)
def test_names_and_addresses_stay(given, taken, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    assert PathOrName().convert(given, None, None) == taken.replace("HOME", str(tmp_path))
