"""Connections among a run's processes, by which each notices at once that another one ended.

Without them the other processes would wait in a collective until jax gives up after minutes, with a
stack dump. The operating system closes a process's connections however the process ends, so no
timeout is needed. The first process listens. Every other one connects to it, and the first process
forwards the end of any of them to the rest.
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
from collections.abc import Callable
from typing import Any, NoReturn

LOST = 75
"""Exit code (EX_TEMPFAIL) of a process whose run lost another process.

The same command continues the run.
"""

AGAIN = "start all of them again with the same command, which continues from what it last saved"

DONE = 0
TOKEN_BYTES = 32
MESSAGE = struct.Struct("!BI")
"""Format of a message: an exit code, and the index of the process that ended with it."""

CONNECT_SECONDS = 30.0
PLACE = "goat_jax/lifeline"
"""Key in jax's key-value store under which the first process publishes its port and token."""


class Lifeline:
    """Connections of this process: of the first to all others, of the others to the first.

    Args:
        index: the index of this process.
    """

    def __init__(self, index: int):
        self._index = index
        self._peers: dict[int, socket.socket] = {}
        self._ending = threading.Lock()

    def listen(self) -> str:
        """Lets the others connect to this, the first process; returns their port and token."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        token = secrets.token_bytes(TOKEN_BYTES)
        _in_background(self._accept, server, token)
        return f"{server.getsockname()[1]} {token.hex()}"

    def connect(self, host: str, place: str) -> None:
        """Connects to the first process.

        Args:
            host: the host of the first process.
            place: the port and the token, as its `listen` returned them.

        Raises:
            OSError: the first process cannot be reached.
        """
        port, token = place.split()
        peer = socket.create_connection((host, int(port)), CONNECT_SECONDS)
        peer.sendall(bytes.fromhex(token) + struct.pack("!I", self._index))
        self._watch_in_background(0, peer)

    def _accept(self, server: socket.socket, token: bytes) -> None:
        while True:
            peer, _ = server.accept()
            _in_background(self._admit, peer, token)

    def _admit(self, peer: socket.socket, token: bytes) -> None:
        """Watches a connection that sends the token; closes any other without further effect."""
        with contextlib.suppress(OSError):
            peer.settimeout(CONNECT_SECONDS)
            message = _receive(peer, TOKEN_BYTES + 4)
            if hmac.compare_digest(message[:TOKEN_BYTES], token):
                self._watch_in_background(struct.unpack("!I", message[TOKEN_BYTES:])[0], peer)
                return
        peer.close()

    def _watch_in_background(self, index: int, peer: socket.socket) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # notices a lost machine
        self._peers[index] = peer
        _in_background(self._watch, index, peer)

    def _watch(self, index: int, peer: socket.socket) -> None:
        message = b""
        with contextlib.suppress(OSError):
            message = _receive(peer, MESSAGE.size)
        code, ended = MESSAGE.unpack(message) if len(message) == MESSAGE.size else (LOST, index)
        if code != DONE:
            self._end_with(code, ended)

    def _end_with(self, code: int, ended: int) -> NoReturn:
        """Ends this process with one line of error and tells the others which process ended first.

        Args:
            code: the exit code; `LOST` if the process was killed or crashed.
            ended: the index of the process that ended first.
        """
        self._ending.acquire()  # never released, so that only one thread prints its line
        self._tell(code, ended)
        what = "was killed or crashed" if code == LOST else "has failed: see its message"
        print(f"goat-jax: error: process {ended} {what}", end="", file=sys.stderr)
        print(f": {AGAIN}" if code == LOST else "", file=sys.stderr, flush=True)
        os._exit(code)

    def fail(self, code: int) -> NoReturn:
        """Ends this process, after it has printed the reason, and the others with it."""
        self._ending.acquire()
        self._tell(code, self._index)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: at exit jax would wait for the others, which wait for this process.
        os._exit(code)

    def done(self) -> None:
        """Notifies the others that this process ends normally."""
        self._tell(DONE, self._index)

    def wait(self, seconds: float) -> None:
        """Waits, so that a watching thread can end this process with its line of error."""
        threading.Event().wait(seconds)

    def _tell(self, code: int, ended: int) -> None:
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.sendall(MESSAGE.pack(code, ended))


def _receive(peer: socket.socket, size: int) -> bytes:
    """Receives `size` bytes, or fewer if the connection ends before."""
    received = b""
    while len(received) < size and (piece := peer.recv(size - len(received))):
        received += piece
    return received


def _in_background(action: Callable[..., object], *args: Any) -> None:
    threading.Thread(target=action, args=args, daemon=True).start()
