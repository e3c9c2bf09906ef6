"""The one exception for mistakes of the user, and the hint that names what was probably meant.

This module lies at the bottom beside ``device``: everything may raise what it holds, it imports nothing of gossamer.
A programmer's mistake is an assertion, never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "nearest"]


class UserError(ValueError):
    """A user's mistake: one line that names the thing and the remedy.

    The command line prints it as ``gossamer: <message>`` and exits with status 2, without a traceback unless
    ``--debug`` is given. Callers from Python get it as a ``ValueError``.
    """


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate that resembles ``name`` most, or ``""`` when none is close.

    Dotted names are compared by their last part, within their own section first: ``num_expert`` finds
    ``model.num_experts``, and ``training.zzz`` finds nothing although all of ``training`` begins alike.
    """
    known = list(candidates)
    section, _, leaf = name.rpartition(".")
    siblings = [candidate for candidate in known if candidate.rpartition(".")[0] == section]
    for pool in (siblings, known):
        by_leaf: dict[str, str] = {}
        for candidate in pool:
            by_leaf.setdefault(candidate.rpartition(".")[2], candidate)
        if found := difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6):
            return f"; did you mean {by_leaf[found[0]]!r}?"
    return ""
