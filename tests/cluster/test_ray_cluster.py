from __future__ import annotations

import socket

import pytest

from pybatch.machine.ray_cluster import ClusterError, connected, running_cluster

pytest.importorskip("ray", reason="Ray is not installed: pip install 'pybatch[ray]'")


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("address", ["nonsense", "host:", "host:port", ":6379", "ray://host:10001"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=f"ray: expected HOST:PORT.*got '{address}'"), connected(address):
        pass


def test_an_address_where_no_cluster_answers_is_told_at_once() -> None:
    address = free_address()
    with pytest.raises(ClusterError, match=f"no cluster answers at {address}: .*refused"), connected(address):
        pass


def test_auto_means_what_ray_address_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    assert running_cluster() == "there:6379"
