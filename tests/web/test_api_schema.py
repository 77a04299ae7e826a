"""The API against its own description, by requests that Schemathesis makes up."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from web_parts import Shelf

schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed: make dev")

from scvec.web.app import make_app  # noqa: E402
from scvec.web.jobs import Jobs  # noqa: E402
from scvec.web.limits import Limits  # noqa: E402


@pytest.fixture(scope="module")
def api_schema(shelf: Shelf) -> Iterator[Any]:
    """The schema of the application, whose jobs are never begun."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "_work", lambda self: None)
        limits = Limits(jobs=5)
        jobs = Jobs(shelf.store, Path(name), limits)
        yield schemathesis.openapi.from_asgi(
            "/api/openapi.json", make_app(shelf.store, jobs, Path(name), limits)
        )
        jobs.close()


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_a_server_error(case: Any):
    answer = case.call()
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.status_code != 405:
        assert answer.json()["error"]["what"]
