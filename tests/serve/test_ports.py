from __future__ import annotations

import socket

import pytest

from retinue.serve.config import HTTPOptions
from retinue.serve.ports import PortTakenError, check_port_is_free


def test_a_port_that_somebody_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} is taken"):
            check_port_is_free(HTTPOptions(port=port))
    check_port_is_free(HTTPOptions(port=port))


def test_any_free_port_and_no_http_need_no_look() -> None:
    check_port_is_free(HTTPOptions(port=0))
    check_port_is_free(HTTPOptions(host=None))
