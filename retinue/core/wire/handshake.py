"""Prove on a TCP connection, in both directions, that each side holds the cluster's token.

    client -> server   magic, client nonce
    server -> client   server nonce, HMAC(token, "server" + both nonces)
    client -> server   HMAC(token, "client" + both nonces)

The token itself never travels, and nothing is decoded or unpickled before the proof (SHA-256, RFC 2104).
Lives here: the two state machines, sans I/O. Does not: sockets, or where the token comes from. Unix
sockets need none: their folder is 0700.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from retinue.core.errors import AuthenticationError

MAGIC = b"retinue1"
NONCE_BYTES = 32
PROOF_BYTES = 32
FIRST_BYTES = len(MAGIC) + NONCE_BYTES
HANDSHAKE_TIMEOUT_S = 10.0
CLOSED_IN_HANDSHAKE = "the other side closed the connection during the handshake: another token?"


def _proof(token: bytes, side: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    return hmac.digest(token, side + client_nonce + server_nonce, hashlib.sha256)


class ServerHandshake:
    """Feed it what came; it returns what to send. After `is_done`, `rest` holds bytes of frames."""

    def __init__(self, token: bytes, *, nonce: bytes | None = None) -> None:
        self._token = token
        self._nonce = nonce or os.urandom(NONCE_BYTES)
        self._client_nonce = b""
        self._data = b""
        self.is_done = False
        self.rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Raises AuthenticationError if the other side speaks another protocol or has another token."""
        self._data += chunk
        if not self._client_nonce:
            if not MAGIC.startswith(self._data[: len(MAGIC)]):
                raise AuthenticationError("the other side does not speak Retinue's protocol")
            if len(self._data) < FIRST_BYTES:
                return b""
            self._client_nonce = self._data[len(MAGIC) : FIRST_BYTES]
            self._data = self._data[FIRST_BYTES:]
            return self._nonce + _proof(self._token, b"server", self._client_nonce, self._nonce)
        if len(self._data) >= PROOF_BYTES:
            expected = _proof(self._token, b"client", self._client_nonce, self._nonce)
            if not hmac.compare_digest(expected, self._data[:PROOF_BYTES]):
                raise AuthenticationError("the other side has another cluster token")
            self.is_done = True
            self.rest = self._data[PROOF_BYTES:]
        return b""


class ClientHandshake:
    """`start()` gives the first bytes; then feed it what came until `is_done`."""

    def __init__(self, token: bytes, *, nonce: bytes | None = None) -> None:
        self._token = token
        self._nonce = nonce or os.urandom(NONCE_BYTES)
        self._data = b""
        self.is_done = False
        self.rest = b""

    def start(self) -> bytes:
        return MAGIC + self._nonce

    def feed(self, chunk: bytes) -> bytes:
        """Raises AuthenticationError if the server has another token."""
        self._data += chunk
        if len(self._data) < NONCE_BYTES + PROOF_BYTES:
            return b""
        server_nonce = self._data[:NONCE_BYTES]
        proof = self._data[NONCE_BYTES : NONCE_BYTES + PROOF_BYTES]
        if not hmac.compare_digest(_proof(self._token, b"server", self._nonce, server_nonce), proof):
            raise AuthenticationError(
                "the server has another cluster token (see RETINUE_TOKEN, RETINUE_TOKEN_FILE)"
            )
        self.is_done = True
        self.rest = self._data[NONCE_BYTES + PROOF_BYTES :]
        return _proof(self._token, b"client", self._nonce, server_nonce)
