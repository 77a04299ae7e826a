"""A server for vectors on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_openai import add_openai
from fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(extra=[add_openai]) as running:
        yield running
