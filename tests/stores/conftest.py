"""Stores for the tests of this folder."""

from __future__ import annotations

import shutil

import pytest
from small_store import fill

from scvec.stores.store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return fill(Store.open(tmp_path_factory.mktemp("template") / "store", create=True)).path


@pytest.fixture
def filled(template, tmp_path):
    """Return a copy of a store with one space and one reference, because making one takes half a second."""
    shutil.copytree(template, tmp_path / "filled")
    return Store(tmp_path / "filled")
