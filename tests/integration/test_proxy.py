"""The proxy that tests put between a client and its server."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually
from tests.support.proxy import Proxy

SOON = 30.0
LITTLE = 0.2


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets."""

    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Give a proxy in front of a server that sends everything back."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        proxy = Proxy(server.server_address[1])
        try:
            yield proxy
        finally:
            proxy.close()
            server.shutdown()
            thread.join()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), SOON)


def answer(connection: socket.socket, within: float = SOON) -> bytes:
    connection.settimeout(within)
    return connection.recv(1024)


def test_proxy_passes_on_both_ways(proxy: Proxy) -> None:
    """In both directions, for any number of clients."""
    with connect(proxy) as one, connect(proxy) as other:
        one.sendall(b"one")
        other.sendall(b"other")
        assert answer(one) == b"one"
        assert answer(other) == b"other"


def test_deaf_proxy_accepts_and_never_answers(proxy: Proxy) -> None:
    """Neither those who were there nor those who come."""
    with connect(proxy) as early:
        early.sendall(b"before")
        assert answer(early) == b"before"
        proxy.deaf()
        with connect(proxy) as late:
            for client in (early, late):
                client.sendall(b"anybody?")
                with pytest.raises(TimeoutError):
                    answer(client, within=LITTLE)
            proxy.restore()
            assert answer(early) == b"anybody?"
            assert answer(late) == b"anybody?"


def test_proxy_can_be_deaf_one_way(proxy: Proxy) -> None:
    """What goes the other way arrives."""
    with connect(proxy) as client:
        proxy.deaf(proxy.to_client)
        client.sendall(b"heard")
        with pytest.raises(TimeoutError):
            answer(client, within=LITTLE)
        proxy.restore()
        assert answer(client) == b"heard"


def test_slow_proxy_passes_on_later(proxy: Proxy) -> None:
    """In both directions."""
    with connect(proxy) as client:
        proxy.slow(LITTLE)
        began = time.monotonic()
        client.sendall(b"late")
        assert answer(client) == b"late"
        assert time.monotonic() - began >= 2 * LITTLE


def test_refusing_proxy_closes_every_connection(proxy: Proxy) -> None:
    """Neither those who were there nor those who come, until it is restored."""
    with connect(proxy) as early:
        proxy.refuse()
        assert answer(early) == b""
    with connect(proxy) as refused:
        assert answer(refused) == b""
    proxy.restore()
    with connect(proxy) as late:
        late.sendall(b"after")
        assert answer(late) == b"after"


def test_cut_proxy_closes_open_connections(proxy: Proxy) -> None:
    """And lets new connections in."""
    with connect(proxy) as early:
        early.sendall(b"before")
        assert answer(early) == b"before"
        proxy.cut()
        assert answer(early) == b""
    with connect(proxy) as late:
        late.sendall(b"after")
        assert answer(late) == b"after"


def test_deaf_proxy_can_be_cut(proxy: Proxy) -> None:
    """As a network that first goes silent and then tells so."""
    with connect(proxy) as client:
        client.sendall(b"before")
        assert answer(client) == b"before"
        proxy.deaf()
        client.sendall(b"anybody?")
        proxy.cut()
        assert answer(client) == b""


def test_closed_proxy_refuses_connections(proxy: Proxy) -> None:
    """As a host without the server."""
    proxy.close()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)


def test_closed_proxy_leaves_no_thread(proxy: Proxy) -> None:
    """Not even of clients that it kept waiting."""
    proxy.deaf()
    with connect(proxy) as client:
        client.sendall(b"anybody?")
        proxy.close()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name in {"proxy", "proxied"}])
