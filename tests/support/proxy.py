"""A TCP proxy that can go deaf, be cut, be slow or fail one way, between a client and its server."""

from __future__ import annotations

import contextlib
import socket
import threading

CHUNK = 65536


class Way:
    """One direction through a proxy."""

    def __init__(self) -> None:
        """Begin open."""
        self.open = threading.Event()
        self.open.set()
        self.delay = 0.0

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass on what comes until there is no more, then end both connections."""
        with contextlib.suppress(OSError):
            more = True
            while more:
                data = source.recv(CHUNK)
                more = bool(data)
                # The end of a connection comes through no sooner than what was sent.
                if self.delay:
                    threading.Event().wait(self.delay)
                self.open.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Passes bytes on between clients and one server, until told not to."""

    def __init__(self, port: int) -> None:
        """Begin to listen on a port of its own, in front of another of the loopback address."""
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.to_server, self.to_client = Way(), Way()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._refusing = False
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    def deaf(self, *ways: Way) -> None:
        """Accept what comes and pass nothing on, in either direction or these, without closing anything."""
        for way in ways or (self.to_server, self.to_client):
            way.open.clear()

    def slow(self, seconds: float) -> None:
        """Pass on so much later, in either direction."""
        self.to_server.delay = self.to_client.delay = seconds

    def refuse(self) -> None:
        """Close every connection, and new ones as soon as they are made."""
        self._refusing = True
        self.cut()

    def restore(self) -> None:
        """Pass on again, also what came meanwhile."""
        self._refusing = False
        self.slow(0.0)
        for way in (self.to_server, self.to_client):
            way.open.set()

    def cut(self) -> None:
        """Close every connection; new ones may be made."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything."""
        self._closed = True
        # First, so that what is held back comes through no more.
        self.cut()
        self.restore()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._refusing or self._closed:
                    return
                self._open |= {client, server}
            try:
                back = threading.Thread(target=self.to_client.pump, args=(server, client), name="proxied", daemon=True)
                back.start()
                self.to_server.pump(client, server)
                back.join()
            finally:
                with self._lock:
                    self._open -= {client, server}
