"""Whether the proxies' port can be had, before anything is started.

Lives here: that look. Does not: listening (`core.doors.open_listener`).
"""

from __future__ import annotations

import errno
import socket

from retinue.serve.config import HTTPOptions
from retinue.serve.exceptions import RetinueServeException


class PortTakenError(RetinueServeException):
    """Another program listens where the proxies should."""

    fault = "caller"
    http_status = 409


def check_port_is_free(options: HTTPOptions | None) -> None:
    """Raises PortTakenError if somebody listens on the HTTP proxies' port before serve has started.

    The node's own attempt would not notice another cluster of the same user: proxies share their port.
    """
    options = options or HTTPOptions()
    if options.host is None or options.port == 0:
        return
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortTakenError(
                f"port {options.port} is taken: another program listens on {options.host}; "
                "give another in http_options.port, or with --http-port (0: a free one)",
            ) from None
