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

    Dotted names also match by their last part, so that ``num_expert`` finds ``model.num_experts``.
    """
    known = list(candidates)
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not found:
        by_leaf: dict[str, str] = {}
        for candidate in known:
            by_leaf.setdefault(candidate.rsplit(".", 1)[-1], candidate)
        leaves = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.7)
        found = [by_leaf[leaf] for leaf in leaves]
    return f"; did you mean {found[0]!r}?" if found else ""
