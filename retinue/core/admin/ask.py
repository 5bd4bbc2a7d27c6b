"""Ask a cluster: its head, and the agents of its nodes, side by side and within one deadline.

Lives here: finding the cluster, the connections, the wait. Does not: what the answers mean (`rows`).
It needs no runtime: tools ask clusters that they do not join. A process that is connected asks its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from retinue.core import current
from retinue.core import session as sessions
from retinue.core.admin.rows import LOOPBACK, NodeAnswer
from retinue.core.cluster import parse_address
from retinue.core.errors import RetinueError
from retinue.core.transport.blocking import BlockingClient
from retinue.core.wire.messages import Address, ListNodes, NodeCall, NodeInfo, Query

ADDRESS_VARIABLE = "RETINUE_ADDRESS"
MAX_ASKED_AT_ONCE = 16
NO_ID = b"\xff" * 16


class RetinueStateApiException(RetinueError):
    """The cluster's state could not be told: nobody answered, or what was asked for makes no sense."""

    fault = "caller"


class ServerUnavailable(RetinueStateApiException):
    """The head did not answer."""

    fault = "system"


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster that can be asked."""

    head: Address
    token: bytes
    session_dir: str = ""


@dataclass(slots=True)
class Answers:
    """What the nodes said, and why others said nothing."""

    answers: list[NodeAnswer] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def find_target(address: str | None = None, temp_dir: str | None = None) -> Target:
    """The cluster that is meant: by its head's "host:port", or (None or "auto") the nearest one.

    That is the one that this process is connected to, the one in RETINUE_ADDRESS, or this user's newest
    on this machine; one that belongs to a driver only if there is no other. Raises ConnectionError.
    """
    if address in (None, "auto"):
        runtime = current.runtime_or_none()
        if runtime is not None:
            return Target(runtime.head.address, runtime.token, runtime.session_dir)
        address = os.environ.get(ADDRESS_VARIABLE) or "auto"
    if address in ("auto", "local"):
        found = sessions.find_cluster(temp_dir) or sessions.find_cluster(temp_dir, include_private=True)
        if found is None:
            raise ConnectionError(
                "no running cluster of this user was found on this machine; "
                "start one with `retinue start --head`, or name one with --address"
            )
        return Target(found.head, sessions.cluster_token(found), found.session_dir)
    assert address is not None
    return _named_target(address, temp_dir)


def _named_target(address: str, temp_dir: str | None) -> Target:
    found = sessions.find_cluster_at(address, temp_dir)
    if found is not None:
        return Target(found.head, sessions.cluster_token(found), found.session_dir)
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise ConnectionError(f"{error}; no cluster on this machine goes by that name") from None
    token = sessions.token_from_environment()
    if token is None:
        raise ConnectionError(
            f"the token of the cluster at {address} is not known here: set "
            f"{sessions.TOKEN_VARIABLE} or {sessions.TOKEN_FILE_VARIABLE}"
        )
    return Target(Address(NO_ID, NO_ID, "", host, port), token)


class Asker:
    """Asks one cluster; `timeout_s` is the time for everything that is asked of it, counted from here."""

    def __init__(self, target: Target, *, timeout_s: float) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._nodes: list[NodeInfo] | None = None

    def left_s(self) -> float:
        """Raises ServerUnavailable when the time is over."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ServerUnavailable(f"the cluster did not answer within {self._timeout_s:g} s")
        return left

    def ask_head(self, message: Any) -> Any:
        """The head's answer to a request; a Query's as its document. Raises ServerUnavailable."""
        answer, payload = self.request_head(message)
        return msgspec.msgpack.decode(payload) if isinstance(message, Query) else answer

    def request_head(self, message: Any) -> tuple[Any, bytes]:
        """The head's answer to a request, and what came with it. Raises ServerUnavailable."""
        try:
            with BlockingClient(self.target.head, self.target.token, timeout_s=self.left_s()) as client:
                return client.request(message)
        except (OSError, TimeoutError) as error:
            where = self.target.head.path or f"{self.target.head.host}:{self.target.head.port}"
            raise ServerUnavailable(f"the head at {where} does not answer: {error}") from error

    def nodes(self) -> list[NodeInfo]:
        """All nodes that the head knows; asked once."""
        if self._nodes is None:
            self._nodes = self.ask_head(ListNodes(0)).nodes
        return self._nodes

    def ask_node(self, node: NodeInfo, what: str, arguments: Mapping[str, str] | None = None) -> Any:
        """The document with which the node's agent answers. Raises OSError, or what the agent says."""
        request = NodeCall(0, what, dict(arguments or {}))
        address, token = node.address, self.target.token
        with BlockingClient(address, token, kind="tool", timeout_s=self.left_s()) as client:
            _, payload = client.request(request)
        return msgspec.msgpack.decode(payload)

    def ask_nodes(
        self,
        what: str,
        arguments: Mapping[str, str] | None = None,
        *,
        nodes: Sequence[NodeInfo] | None = None,
    ) -> Answers:
        """Ask all living nodes (or these), side by side; those that fail are named in `missing`."""
        asked = [node for node in (self.nodes() if nodes is None else nodes) if node.alive]
        result = Answers()
        if not asked:
            return result
        with ThreadPoolExecutor(min(len(asked), MAX_ASKED_AT_ONCE)) as pool:
            waiting = [(node, pool.submit(self.ask_node, node, what, arguments)) for node in asked]
        for node, future in waiting:
            error = future.exception()
            if error is None:
                answer = NodeAnswer(node.node_id.hex(), node.address.host or LOOPBACK, future.result())
                result.answers.append(answer)
            elif isinstance(error, (OSError, RetinueError)):
                result.missing.append(f"node {node.node_id.hex()[:12]}: {error}")
            else:
                raise error
        return result
