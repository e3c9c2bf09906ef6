"""Requests that the engine died of: who asks the same again must not take the others' answers along again."""

from __future__ import annotations

import hashlib
import signal
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict

from gossamer.infer.request import Request

__all__ = ["Suspects"]

FORGET = 3600.0
"""Seconds after which a request may be tried again."""
MANY = 1024
"""Requests that are remembered."""
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
"""Signals that a process brings upon itself."""


class Suspects:
    """Requests that were with the engine when it died.

    One that was there alone, when the engine crashed by itself, has done it. Of several nobody knows which, and a
    process may be killed for what it has not done: such a request is held for guilty when it is there a second time.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, tuple[float, int]] = OrderedDict()  # by digest: when last, how surely

    def died(self, requests: Sequence[Request], crashed: bool) -> None:
        """The engine has died or failed with these; ``crashed``: by itself."""
        digests = set(map(_digest, requests))
        sure = 2 if crashed and len(digests) == 1 else 1
        for digest in digests:
            _, before = self._found.pop(digest, (0.0, 0))
            self._found[digest] = time.monotonic(), before + sure
        while len(self._found) > MANY:
            self._found.popitem(last=False)

    def answered(self, request: Request) -> None:
        """The engine has answered this: it does not die of it."""
        if self._found:
            self._found.pop(_digest(request), None)

    def is_guilty(self, request: Request) -> bool:
        """Whether the engine had better not be given this."""
        if not self._found:
            return False
        when, sure = self._found.get(_digest(request), (0.0, 0))
        return sure >= 2 and time.monotonic() - when < FORGET


def _digest(request: Request) -> bytes:
    """Equal for equal prompts with equal parameters, whatever the seed: it is new for each of several answers."""
    parameters = asdict(request.sampling) | {"seed": None}
    return hashlib.blake2b(array("q", request.prompt).tobytes() + repr(parameters).encode()).digest()
