"""Several processes that train together, and what each hears of the others."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

# A peer that says nothing for so long is taken for dead: JAX itself would wait for minutes.
SILENCE_SECONDS = 12.0
_BEAT_SECONDS = 1.0
_ALIVE, _BYE, _LOST = b".", b"bye", b"lost "


@contextlib.contextmanager
def watched_peers(host: str, on_lost: Callable[[str], NoReturn] | None = None) -> Iterator[None]:
    """Ends this process, with a clear line, when another one dies or stalls.

    A computation that waits for a dead process can't be interrupted, and JAX's own time-outs end it
    with an abort that no program can catch. So every process keeps a connection to process 0 beside
    JAX's: a process that dies closes it at once, one that stalls falls silent.

    Args:
      host: Where process 0 runs, as the others reach it.
      on_lost: Called in a thread with what happened; must end the process. By default, the line
        goes to standard error and the exit status is 1.

    Yields:
      Nothing; within, all processes must be alive. At its end each waits for all others.

    Raises:
      OSError: A connection can't be made.

    Example:
      >>> with watched_peers("localhost"):  # a process alone has no peers
      ...     pass
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(on_lost or _end)
    if jax.process_index() == 0:
        watch.gather(host)
    else:
        watch.join(host)
    threading.Thread(target=watch.beat, daemon=True).start()
    try:
        yield
        multihost_utils.sync_global_devices("vanishjax: the end")
    except BaseException as error:
        if isinstance(error, Exception):
            # A dead peer leaves errors of any type in a computation, a ValueError among them: the
            # watch, which knows which peer it is, speaks first.
            time.sleep(2.0)
        watch.fail()
        raise
    watch.leave()


def _end(reason: str) -> NoReturn:
    # Without delay and in one piece: when process 0 dies, JAX is about to abort with lines of its
    # own.
    line = f"vanishjax: error: {reason}; the run ends here\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
    os._exit(1)


class _Watch:
    """The connections of this process, by the number of the process at the other end."""

    def __init__(self, on_lost: Callable[[str], NoReturn]) -> None:
        self._on_lost = on_lost
        self._peers: dict[int, socket.socket] = {}
        self._gone: set[int] = set()
        self._lock = threading.Lock()

    def gather(self, host: str) -> None:
        """Process 0 waits for all others, each of which brings the word that only they know."""
        local = host in ("localhost", "127.0.0.1")
        with socket.create_server(("127.0.0.1" if local else "", 0)) as server:
            word = secrets.randbits(31)
            _broadcast([server.getsockname()[1], word])
            server.settimeout(60.0)
            while len(self._peers) < jax.process_count() - 1:
                peer, _ = server.accept()
                peer.settimeout(5.0)
                with contextlib.suppress(OSError, ValueError):
                    given, index = map(int, _read_line(peer).split())
                    if given == word:
                        self._listen(index, peer)
                        continue
                peer.close()

    def join(self, host: str) -> None:
        """Every other process connects to process 0."""
        port, word = _broadcast([0, 0])
        peer = socket.create_connection((host, port), timeout=60.0)
        peer.sendall(f"{word} {jax.process_index()}\n".encode())
        self._listen(0, peer)

    def beat(self) -> None:
        """Says again and again that this process lives."""
        while True:
            self._tell(_ALIVE)
            time.sleep(_BEAT_SECONDS)

    def fail(self) -> None:
        """Ends the others: this process can't go on."""
        self._tell(_LOST + f"process {jax.process_index()} has failed".encode())

    def leave(self) -> None:
        """Says goodbye, after which nobody misses this process."""
        self._gone.update(self._peers)
        self._tell(_BYE)

    def _listen(self, index: int, peer: socket.socket) -> None:
        peer.settimeout(SILENCE_SECONDS)
        self._peers[index] = peer
        threading.Thread(target=self._hear, args=(index, peer), daemon=True).start()

    def _hear(self, index: int, peer: socket.socket) -> None:
        try:
            while True:
                line = _read_line(peer)
                if line == _BYE:
                    self._gone.add(index)
                    return
                if line.startswith(_LOST):
                    self._lose(line.removeprefix(_LOST).decode())
        except TimeoutError:
            reason = f"process {index} has stopped answering"
        except OSError:
            reason = f"process {index} has died"
        if index not in self._gone:
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        with self._lock:  # never released: the first to speak ends the process
            self._tell(_LOST + reason.encode())
            if jax.process_index() == 0:
                # The others' JAX aborts when process 0 is gone: let them speak first.
                time.sleep(1.0)
            self._on_lost(reason)

    def _tell(self, line: bytes) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(line + b"\n")


def _read_line(peer: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = peer.recv(1)
        if not byte or len(line) > 1000:
            raise ConnectionError
        line += byte
    return bytes(line[:-1])


def _broadcast(numbers: list[int]) -> list[int]:
    told = multihost_utils.broadcast_one_to_all(np.array(numbers, np.int32))
    return [int(number) for number in told]
