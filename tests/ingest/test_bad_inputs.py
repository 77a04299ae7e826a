"""Every bad file gets one message of at most three lines, fast; every odd one a note."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bad_inputs import CASES

from scvec.base.errors import ScvecError
from scvec.ingest.cells.source import CellSource
from scvec.ingest.cells.write import check_output
from scvec.model.training import Labelled


def _read(case, path: Path) -> list[str]:
    if "output" in case.options:
        check_output(path.parent / case.options["output"], path)
    with CellSource.open(path, layer=case.options.get("layer"), memory=case.options.get("memory")) as source:
        if case.command == "ingest":
            Labelled.read([source], case.options["label_key"], None)
        rows = sum(chunk.shape[0] for chunk in source.chunks(7))
        assert rows == source.n_obs
        return list(source.notes)


@pytest.mark.parametrize("case", [c for c in CASES if not c.needs], ids=lambda c: c.name)
def test_the_reader_gives_the_expected_error_or_note(case, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    before = path.read_bytes() if path.is_file() else None
    if case.outcome == "noted":
        notes = _read(case, path)
        assert any(re.search(case.message, note) for note in notes), notes
    else:
        with pytest.raises(ScvecError) as caught:
            _read(case, path)
        text = str(caught.value)
        assert re.search(case.message, text), text
        assert caught.value.exit_code == case.exit_code and caught.value.code == case.code
        assert len(text.splitlines()) <= 3
        assert caught.value.where or case.name.startswith("memory")
        assert caught.value.fix
    if before is not None:
        assert path.read_bytes() == before


@pytest.mark.parametrize("case", [c for c in CASES if c.needs in ("", "reference")], ids=lambda c: c.name)
def test_cases_can_be_built_and_named(case, tmp_path: Path) -> None:
    assert case.build(tmp_path).name
    assert re.compile(case.message)
    assert (case.exit_code == 0) == (case.outcome == "noted")


def test_there_are_fifty_and_their_names_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 50
