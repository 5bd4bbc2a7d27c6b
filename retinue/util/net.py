"""Find the address under which this machine is known."""

from __future__ import annotations

import socket

import retinue
from retinue.core.current import get_runtime

# No packet is sent: connecting a datagram socket only asks the kernel which source address it would use.
PROBE_ADDRESS = "8.8.8.8:53"
LOOPBACK = "127.0.0.1"


def get_node_ip_address(address: str | None = None) -> str:
    """Return the address of this node in the cluster or, outside of one, of this machine. Asks nobody.

    Without a cluster it is the source address of the route to `address` ("host:port", a public one unless
    given), or the loopback address on a machine without a route.
    """
    if retinue.is_initialized():
        return get_runtime().node_ip
    return _source_address(address or PROBE_ADDRESS)


def _source_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host.strip("[]"), int(port)))
            return str(probe.getsockname()[0])
    except OSError:
        return LOOPBACK
