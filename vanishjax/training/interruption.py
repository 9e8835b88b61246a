"""Signals that ask a run to end: Ctrl-C, SIGTERM (Slurm, Kubernetes) and SIGHUP."""

import _thread
import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """A signal that asks for the end, with its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.signal = int(number)


def signal_of(error: KeyboardInterrupt) -> int:
    """The number of the signal behind an exception.

    Example:
      >>> signal_of(KeyboardInterrupt()), signal_of(Interrupted(signal.SIGTERM))
      (2, 15)
    """
    return getattr(error, "signal", int(signal.SIGINT))


@dataclasses.dataclass
class Stop:
    """Which signal asked for the end first; 0 if none has.

    Attributes:
      signal: Its number.
      on_signal: Called with the number of every signal, inside the handler.
    """

    signal: int = 0
    on_signal: Callable[[int], None] | None = None

    def note(self, number: int) -> bool:
        """Takes a signal in; returns whether it is the first."""
        first = not self.signal
        self.signal = self.signal or int(number)
        if self.on_signal is not None:
            self.on_signal(number)
        return first


@contextlib.contextmanager
def interruptible(on_signal: Callable[[int], None] | None = None) -> Iterator[Stop]:
    """Makes every signal an `Interrupted`, raised wherever the program stands, or after an import.

    A second Ctrl-C raises another one, and a third is left to the kernel. A second SIGTERM or
    SIGHUP changes nothing: shells and schedulers may send more than one. A signal that is ignored,
    as under nohup, stays ignored. Outside the main thread nothing happens.

    Args:
      on_signal: Called with the number of every signal, inside the handler.

    Yields:
      What has been asked for.

    Example:
      >>> with interruptible() as stop:
      ...     try:
      ...         signal.raise_signal(signal.SIGTERM)
      ...     except KeyboardInterrupt:
      ...         print(stop.signal)
      15
    """
    stop = Stop(on_signal=on_signal)
    handler = _Raise(stop)
    with (
        _handled(handler, [n for n in _NUMBERS if _known(signal.getsignal(n))]),
        _nothing_swallowed(handler),
    ):
        yield stop


@contextlib.contextmanager
def deferred() -> Iterator[Stop]:
    """Makes the first signal a note, so that it never lands in the middle of something.

    A second Ctrl-C goes to the handler that was there before. SIGTERM and SIGHUP are left to a
    handler of the user's own, and a signal that is ignored stays ignored. One inside another, or
    inside `interruptible`, shares its note. Outside the main thread nothing happens.

    Yields:
      The note, to be looked at where it's safe to end.

    Example:
      >>> with deferred() as stop:
      ...     signal.raise_signal(signal.SIGTERM)
      ...     print("still here", stop.signal)
      still here 15
    """
    handlers = {number: signal.getsignal(number) for number in _NUMBERS}
    ours = [handler for handler in handlers.values() if isinstance(handler, _Raise | _Note)]
    stop = ours[0].stop if ours else Stop()
    taken = {}
    if not stop.signal:
        taken = {number: h for number, h in handlers.items() if _may_take(number, h)}
    with _handled(_Note(stop, taken), taken):
        yield stop


class _Raise:
    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self._again = False
        self._imports = _imports(sys._getframe())

    def __call__(self, number: int, frame: Any) -> None:
        first = self.stop.note(number) or self._again
        self._again = False
        if not first:
            if number != signal.SIGINT:
                return
            signal.signal(number, signal.SIG_DFL)
        if _imports(frame) > self._imports:
            # Compiled modules abort the process where an exception reaches them as they load.
            if first:
                self.later(number)
            else:
                signal.raise_signal(number)
            return
        raise Interrupted(number)

    def later(self, number: int) -> None:
        """Sends a signal again, a moment later."""
        self._again = True
        timer = threading.Timer(0.01, _thread.interrupt_main, (number,))
        timer.daemon = True
        timer.start()


def _imports(frame: Any) -> int:
    """How many of the calls that led here belong to an import."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count


class _Note:
    def __init__(self, stop: Stop, previous: dict[int, Any]) -> None:
        self.stop, self._previous = stop, previous

    def __call__(self, number: int, frame: Any) -> None:
        del frame
        self.stop.note(number)
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])


def _known(handler: Any) -> bool:
    """Whether a handler may be replaced: it is Python's to restore, and not told to ignore."""
    return handler not in (None, signal.SIG_IGN)


def _may_take(number: int, handler: Any) -> bool:
    if isinstance(handler, _Raise):
        return True
    if isinstance(handler, _Note):
        return False
    # A handler of the script waits for SIGTERM; Ctrl-C must not land while a state is donated.
    return callable(handler) if number == signal.SIGINT else handler is signal.SIG_DFL


@contextlib.contextmanager
def _nothing_swallowed(handler: _Raise) -> Iterator[None]:
    """Sends a signal again where its exception came to nothing.

    Python prints what is raised in a callback of its garbage collector, as JAX has one, and goes
    on.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            handler.later(unraisable.exc_value.signal)
        else:
            previous(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


@contextlib.contextmanager
def _handled(handler: Any, numbers: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in previous:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
