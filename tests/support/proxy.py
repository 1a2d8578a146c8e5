"""A TCP proxy that can go deaf or be cut, between a client and its server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

CHUNK = 65536


class Proxy:
    """Passes bytes on between clients and one server, until told not to."""

    def __init__(self, port: int) -> None:
        """Begin to listen on a port of its own, in front of another of the loopback address."""
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._passing = threading.Event()
        self._passing.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    def deaf(self) -> None:
        """Accept what comes and pass nothing on, in either direction, without closing anything."""
        self._passing.clear()

    def restore(self) -> None:
        """Pass on again, also what came meanwhile."""
        self._passing.set()

    def cut(self) -> None:
        """Close every connection; new ones may be made."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything."""
        self._closed = True
        self._passing.set()
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
            with self._lock:
                self._open |= {client, server}
            try:
                self._pass(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._closed:
                for key, _ in selector.select():
                    data = key.fileobj.recv(CHUNK)  # type: ignore[union-attr]  # they are sockets
                    self._passing.wait()
                    if not data:
                        return
                    key.data.sendall(data)
