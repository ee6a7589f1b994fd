"""Ctrl-C while octavo works: it waits until our own code has come to a place where it may stop.

A signal's handler may raise between any two bytecodes: inside of ``finally`` or ``__exit__``, or
half-way through torch.fx's patches of nn.Module. So calls of octavo are `held_back`: signals wait,
and go to the user's own handlers

- at once, while code of the user's runs (`let_through`): the model, data, a score;
- at every `check`, which stands in loops;
- when the call is over. If the handler raises then, the call has failed, and what it has changed
  is put back (`undo_with`).

Handlers that are not written in Python, such as the one that ends the process, stay in charge.
Python runs handlers in the main thread; in other threads no signal is touched.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

__all__ = ["check", "held_back", "let_through", "undo_with"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Signals whose handlers are known to raise: Ctrl-C, a wish to end, a time limit.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)
]


class _Thread(threading.local):
    """What octavo does with signals in this thread.

    Attributes:
        holds: whether signals wait.
        undo: takes back what the call of octavo has changed.
    """

    holds = False

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []


_thread = _Thread()
_waiting: list[tuple[_StandIn, int]] = []


class _StandIn:
    """The handler of a signal meanwhile; whoever keeps it for longer calls the user's by it."""

    def __init__(self, users: Callable[[int, FrameType | None], Any]) -> None:
        self.users = users

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _thread.holds:
            _waiting.append((self, number))
        else:
            self.users(number, frame)


def check() -> None:
    """A place where Ctrl-C may end what is going on."""
    if _waiting and threading.current_thread() is threading.main_thread():
        while _waiting:
            stand_in, number = _waiting.pop(0)
            stand_in.users(number, sys._getframe())


def let_through(function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """What a function of the user's returns. Ctrl-C may end it anywhere."""
    before = _thread.holds
    try:
        _thread.holds = False
        check()
        return function(*args, **kwargs)
    finally:
        # Python runs handlers behind calls and jumps back only, so none comes before this.
        _thread.holds = before


def undo_with(undo: Callable[[], None]) -> None:
    """Has ``undo`` called if the call of octavo around this one fails; the last one goes first."""
    _thread.undo.append(undo)


class held_back(contextlib.ContextDecorator):
    """Signals wait while it lasts; see the top of this file. May be nested."""

    def _recreate_cm(self) -> held_back:
        return held_back()

    def __enter__(self) -> None:
        self._held, self._undo = _thread.holds, _thread.undo
        self._stand_ins: list[tuple[int, _StandIn]] = []
        try:
            _thread.holds = True
            if threading.current_thread() is threading.main_thread():
                self._stand_in()
            _thread.undo = []
        except BaseException:
            self._restore()
            raise

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        undo, _thread.undo = _thread.undo, self._undo
        if kind is not None:
            _take_back(undo)
        try:
            self._restore()
        except BaseException:
            if kind is None:
                with held_back():
                    _take_back(undo)
            raise
        if kind is None and self._held:  # The call around it may fail yet.
            _thread.undo += undo

    def _stand_in(self) -> None:
        for number in _SIGNALS:
            users = signal.getsignal(number)
            if callable(users) and not isinstance(users, _StandIn):
                self._stand_ins.append((number, _StandIn(users)))
                signal.signal(*self._stand_ins[-1])

    def _restore(self) -> None:
        """Signals go where they went before; those that have waited go first."""
        try:
            if not self._held:
                check()
        finally:
            try:
                for number, stand_in in reversed(self._stand_ins):  # Ctrl-C is the last.
                    now: object = signal.getsignal(number)
                    if now is stand_in:  # Else the user has a new one.
                        signal.signal(number, stand_in.users)
            finally:
                _thread.holds = self._held
        if not self._held:
            check()


def _take_back(undo: list[Callable[[], None]]) -> None:
    for step in reversed(undo):
        step()
