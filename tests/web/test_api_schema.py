"""Tests of the API against its own schema, with requests that Schemathesis generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from web_parts import Shelf

from scvec.web.app import make_app
from scvec.web.jobs import Jobs, Searches
from scvec.web.process import Limits

OPERATIONS = 6


@pytest.mark.slow
def test_no_request_is_a_server_error(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed: make dev")
    monkeypatch.setattr(Jobs, "_work", lambda self: None)  # no job starts
    limits = Limits(jobs=5)
    jobs = Jobs(shelf.store, tmp_path, limits)
    searches = Searches(shelf.store, tmp_path, limits)
    schema = schemathesis.openapi.from_asgi(
        "/api/openapi.json", make_app(shelf.store, jobs, searches, limits)
    )
    seen: list[int] = []
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == OPERATIONS + 1
    for operation in operations:

        @settings(
            max_examples=6,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def asks(case: Any) -> None:
            answer = case.call(timeout=300)  # the default of Schemathesis is 10
            seen.append(answer.status_code)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert answer.json()["error"]["what"]

        asks()
    searches.close()
    jobs.close()
    assert 200 in seen and len(seen) >= 20
