from __future__ import annotations

import ipaddress
import socket

import pytest

import retinue
from retinue.util import get_node_ip_address, list_named_actors, net


@pytest.fixture
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retinue, "is_initialized", lambda: False, raising=False)


@pytest.mark.usefixtures("_outside")
def test_it_is_the_source_address_of_a_route() -> None:
    assert get_node_ip_address("127.0.0.1:1") == "127.0.0.1"
    ipaddress.ip_address(get_node_ip_address())


@pytest.mark.usefixtures("_outside")
def test_without_a_route_it_is_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError("no route")

    monkeypatch.setattr(net.socket, "socket", Unreachable)
    assert get_node_ip_address() == "127.0.0.1"


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_in_a_cluster_it_is_the_nodes_own() -> None:
    assert get_node_ip_address() in {node["NodeManagerAddress"] for node in retinue.nodes()}
    assert retinue.get(retinue.remote(get_node_ip_address).remote()) == get_node_ip_address()


@pytest.mark.e2e
@pytest.mark.usefixtures("cluster")
def test_named_actors_are_listed() -> None:
    class Actor:
        def ready(self) -> bool:
            return True

    here = retinue.remote(Actor).options(name="listed").remote()
    there = retinue.remote(Actor).options(name="elsewhere", namespace="other").remote()
    retinue.get([here.ready.remote(), there.ready.remote()])
    assert "listed" in list_named_actors()
    assert "elsewhere" not in list_named_actors()
    everywhere = list_named_actors(all_namespaces=True)
    assert {"name": "elsewhere", "namespace": "other"} in everywhere
    retinue.kill(here)
    retinue.kill(there)
