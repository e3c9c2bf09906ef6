"""The one exception for mistakes of the user, the hint that names what was probably meant, and memory that ran out.

This module lies at the bottom beside ``device``: everything may raise what it holds, it imports nothing of gossamer.
A programmer's mistake is an assertion, never one of these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["UserError", "is_out_of_memory", "nearest"]


class UserError(ValueError):
    """A user's mistake: one line that names the thing and the remedy.

    The command line prints it as ``gossamer: <message>`` and exits with status 2, without a traceback unless
    ``--debug`` is given. Callers from Python get it as a ``ValueError``.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left, on the host or on a device of whatever kind."""
    starved = isinstance(error, RuntimeError) and re.search("out of memory|can't allocate memory", str(error), re.I)
    return isinstance(error, MemoryError) or bool(starved)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate that resembles ``name`` most, or ``""`` when none is close.

    Dotted names are compared by their last part, the same one or its initials first, then within their own section:
    ``steps`` finds ``training.steps``, ``lr`` finds ``optimizer.learning_rate``, ``num_expert`` finds
    ``model.num_experts``, and ``training.zzz`` finds nothing although all of ``training`` begins alike. The dashes of
    options count for nothing.
    """
    known = list(candidates)
    section, leaf = _split(name)
    all_leaves, siblings, initials = dict[str, str](), dict[str, str](), dict[str, str]()
    for candidate in known:
        place, own = _split(candidate)
        all_leaves.setdefault(own, candidate)
        if place == section:
            siblings.setdefault(own, candidate)
        if "_" in own:
            initials.setdefault("".join(word[:1] for word in own.split("_")), candidate)
    found = siblings.get(leaf) or all_leaves.get(leaf) or initials.get(leaf)
    for pool in (siblings, all_leaves):
        if found is None and (close := difflib.get_close_matches(leaf, pool, n=1, cutoff=0.6)):
            found = pool[close[0]]
    return "" if found is None else f"; did you mean {found!r}?"


def _split(name: str) -> tuple[str, str]:
    """A dotted name's section and its last part, without an option's dashes."""
    section, _, leaf = name.lstrip("-").rpartition(".")
    return section, leaf
