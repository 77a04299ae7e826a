"""``--engine`` refuses invalid options before anything is read."""

from __future__ import annotations

import importlib.util
import socket

import pytest

import scvec
from scvec.base.errors import InputError, NetworkError
from scvec.engines import check_engine


def test_an_unknown_engine_is_refused():
    with pytest.raises(InputError, match="local, ray", check=lambda e: e.code == "unknown-choice"):
        check_engine("dask")


def test_an_address_needs_the_engine_ray():
    with pytest.raises(InputError, match="add --engine ray"):
        check_engine("local", "127.0.0.1:6379")


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        scvec.query(tmp_path, tmp_path / "new.h5ad", engine="ray")
    assert error.value.exit_code == 2
    assert "pip install 'scvec[ray]'" in error.value.fix
    with pytest.raises(InputError, check=lambda e: e.code == "extra-not-installed"):
        scvec.ingest_cells(tmp_path / "s", ["ref.h5ad"], name="a", label_key="b", engine="ray")


@pytest.mark.parametrize("address", ["somewhere", "host:", "host:0", "host:99999", "a b:1", "http://host:1"])
def test_invalid_addresses_are_refused(address, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, check=lambda e: e.code == "bad-address"):
        check_engine("ray", address)


def test_ray_clients_are_told_where_to_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="--ray-address auto", check=lambda e: e.code == "bad-address"):
        check_engine("ray", "ray://head:10001")


def test_a_cluster_that_does_not_answer_is_a_network_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(NetworkError, match=f"127.0.0.1:{port}") as error:
            check_engine("ray", f"127.0.0.1:{port}")
    assert error.value.code == "network" and error.value.exit_code == 4
