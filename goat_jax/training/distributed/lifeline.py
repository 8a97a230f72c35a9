"""Connections among the processes of a run, by which each notices at once that another one ended.

Without them the others would wait in a collective until jax gives up after minutes, with a dump.
The operating system closes the connections of a process however it ends, so no clock is involved.
The first process listens; every other one connects to it and hears from it of the rest.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import struct
import sys
import threading
from typing import Any, NoReturn

LOST = 75
"""Exit code of a process whose run lost another one: the same command continues (EX_TEMPFAIL)."""

AGAIN = "start all of them again with the same command, it continues from the last checkpoint"

DONE = 0
TOKEN_BYTES = 32
MESSAGE = struct.Struct("!BI")
"""Exit code, and number of the process that ended with it."""

CONNECT_SECONDS = 30.0
PLACE = "goat_jax/lifeline"
"""Key in jax's store under which the first process says where it listens."""


class Lifeline:
    """This process's connections to the others; to the first one only, unless it is that.

    Args:
        index: number of this process.
    """

    def __init__(self, index: int):
        self._index = index
        self._peers: dict[int, socket.socket] = {}
        self._ending = threading.Lock()

    def listen(self) -> str:
        """Lets the others connect, in the first process; returns what they need to know."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        token = secrets.token_bytes(TOKEN_BYTES)
        _in_background(self._accept, server, token)
        return f"{server.getsockname()[1]} {token.hex()}"

    def connect(self, host: str, told: str) -> None:
        """Connects to the first process.

        Args:
            host: of the first process.
            told: what its `listen` returned.

        Raises:
            OSError: it cannot be reached.
        """
        port, token = told.split()
        peer = socket.create_connection((host, int(port)), CONNECT_SECONDS)
        peer.sendall(bytes.fromhex(token) + struct.pack("!I", self._index))
        self._watch_in_background(0, peer)

    def _accept(self, server: socket.socket, token: bytes) -> None:
        while True:
            peer, _ = server.accept()
            _in_background(self._admit, peer, token)

    def _admit(self, peer: socket.socket, token: bytes) -> None:
        """Watches a connection that knows the token; others are closed and mean nothing."""
        with contextlib.suppress(OSError):
            peer.settimeout(CONNECT_SECONDS)
            said = _receive(peer, TOKEN_BYTES + 4)
            if hmac.compare_digest(said[:TOKEN_BYTES], token):
                self._watch_in_background(struct.unpack("!I", said[TOKEN_BYTES:])[0], peer)
                return
        peer.close()

    def _watch_in_background(self, index: int, peer: socket.socket) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # of machines that vanish
        self._peers[index] = peer
        _in_background(self._watch, index, peer)

    def _watch(self, index: int, peer: socket.socket) -> None:
        said = b""
        with contextlib.suppress(OSError):
            said = _receive(peer, MESSAGE.size)
        code, ended = MESSAGE.unpack(said) if len(said) == MESSAGE.size else (LOST, index)
        if code != DONE:
            self._end_with(code, ended)

    def _end_with(self, code: int, ended: int) -> NoReturn:
        """Ends this process with one line and tells the others which one was the first to end."""
        self._ending.acquire()  # and never released: one line is enough
        self._tell(code, ended)
        what = "was killed or crashed" if code == LOST else "has failed: see its message"
        print(f"goat-jax: error: process {ended} {what}", end="", file=sys.stderr)
        print(f": {AGAIN}" if code == LOST else "", file=sys.stderr, flush=True)
        os._exit(code)

    def fail(self, code: int) -> NoReturn:
        """Ends this process, which has printed why, and the others with it."""
        self._ending.acquire()
        self._tell(code, self._index)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: jax would wait at its end for the others, who wait for this one.
        os._exit(code)

    def done(self) -> None:
        """Tells the others that this process ends as it should."""
        self._tell(DONE, self._index)

    def wait(self, seconds: float) -> None:
        """Gives the threads that watch the others time to end this process with their line."""
        threading.Event().wait(seconds)

    def _tell(self, code: int, ended: int) -> None:
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.sendall(MESSAGE.pack(code, ended))


def _receive(peer: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer if the connection ends before."""
    said = b""
    while len(said) < size and (piece := peer.recv(size - len(said))):
        said += piece
    return said


def _in_background(action: Any, *args: Any) -> None:
    threading.Thread(target=action, args=args, daemon=True).start()
