"""Find the address under which this machine is known."""

from __future__ import annotations

import functools
import socket

import retinue

# No packet is sent: connecting a datagram socket only asks the kernel which source address it would use.
PROBE_ADDRESS = "8.8.8.8:53"
LOOPBACK = "127.0.0.1"


def get_node_ip_address(address: str | None = None) -> str:
    """Return the address of this node in the cluster or, outside of one, of this machine.

    Without a cluster it is the source address of the route to `address` ("host:port", a public one unless
    given), or the loopback address on a machine without a route.
    """
    if retinue.is_initialized():
        return _address_of_node(retinue.get_runtime_context().get_node_id())
    return _source_address(address or PROBE_ADDRESS)


@functools.lru_cache(maxsize=16)
def _address_of_node(node_id: str) -> str:
    for node in retinue.nodes():
        if node["NodeID"] == node_id:
            return str(node["NodeManagerAddress"])
    raise RuntimeError(f"node {node_id}, on which this process runs, is not in the cluster's list of nodes")


def _source_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host.strip("[]"), int(port)))
            return str(probe.getsockname()[0])
    except OSError:
        return LOOPBACK
