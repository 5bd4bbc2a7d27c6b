from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.errors import AuthenticationError
from retinue.core.wire.handshake import FIRST_BYTES, MAGIC, ClientHandshake, ServerHandshake

TOKENS = st.binary(min_size=1, max_size=40)


def run(client: ClientHandshake, server: ServerHandshake, sizes: list[int], tail: bytes = b"") -> None:
    """Carry bytes between the two in pieces of these sizes, then of any; `tail` follows the proof."""
    to_server, to_client = client.start(), b""
    sizes = [*sizes, *[1 << 20] * 100]
    while not (client.is_done and server.is_done):
        size = sizes.pop(0)
        piece, to_server = to_server[:size], to_server[size:]
        if piece:
            to_client += server.feed(piece)
        piece, to_client = to_client[:size], to_client[size:]
        if piece:
            answer = client.feed(piece)
            to_server += answer + (tail if answer else b"")
    if to_server:
        server.rest += to_server


@given(TOKENS, st.lists(st.integers(1, 30), max_size=20), st.binary(max_size=50))
def test_same_token_proves_both_sides_in_any_pieces_and_keeps_what_follows(token, sizes, tail):
    client, server = ClientHandshake(token), ServerHandshake(token)
    run(client, server, sizes, tail)
    assert server.rest == tail
    assert client.rest == b""


@given(TOKENS, TOKENS)
def test_client_refuses_a_server_with_another_token_before_it_proves_itself(ours, theirs):
    if ours == theirs:
        return
    client, server = ClientHandshake(ours), ServerHandshake(theirs)
    with pytest.raises(AuthenticationError, match="another cluster token"):
        client.feed(server.feed(client.start()))
    assert not client.is_done


def test_server_refuses_a_client_that_ignores_the_servers_proof():
    class Careless(ClientHandshake):
        def proof(self, server_nonce: bytes) -> bytes:
            from retinue.core.wire import handshake

            return handshake._proof(self._token, b"client", self._nonce, server_nonce)

    client, server = Careless(b"wrong"), ServerHandshake(b"right")
    answer = server.feed(client.start())
    with pytest.raises(AuthenticationError, match="another cluster token"):
        server.feed(client.proof(answer[:32]))
    assert not server.is_done


@given(st.binary(min_size=1, max_size=200))
def test_server_takes_no_garbage(garbage):
    server = ServerHandshake(b"token")
    if MAGIC.startswith(garbage[: len(MAGIC)]):
        return
    with pytest.raises(AuthenticationError, match="does not speak"):
        server.feed(garbage)
    assert not server.is_done


def test_server_says_nothing_before_the_whole_greeting():
    server = ServerHandshake(b"token")
    greeting = ClientHandshake(b"token").start()
    assert server.feed(greeting[: FIRST_BYTES - 1]) == b""
    assert server.feed(greeting[FIRST_BYTES - 1 :]) != b""


def test_the_servers_own_proof_does_not_pass_as_the_clients():
    server = ServerHandshake(b"token")
    answer = server.feed(ClientHandshake(b"token").start())
    with pytest.raises(AuthenticationError):
        server.feed(answer[32:])


def test_a_recorded_proof_is_worthless_against_another_nonce():
    first = ServerHandshake(b"token", nonce=b"a" * 32)
    client = ClientHandshake(b"token", nonce=b"c" * 32)
    proof = client.feed(first.feed(client.start()))
    second = ServerHandshake(b"token", nonce=b"b" * 32)
    second.feed(client.start())
    with pytest.raises(AuthenticationError):
        second.feed(proof)


def test_frames_that_follow_the_proof_at_once_are_kept_for_the_decoder():
    client, server = ClientHandshake(b"token"), ServerHandshake(b"token")
    proof = client.feed(server.feed(client.start()))
    assert server.feed(proof + b"hello") == b""
    assert server.is_done
    assert server.rest == b"hello"


def test_server_that_is_flooded_before_the_proof_refuses_soon():
    # What comes behind the greeting is measured against the proof, not collected.
    server = ServerHandshake(b"token")
    server.feed(ClientHandshake(b"token").start())
    with pytest.raises(AuthenticationError):
        server.feed(b"x" * 100_000)
