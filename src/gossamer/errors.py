"""The exception for a user's mistake, the hint that names what was probably meant, and memory that ran out.

Everything may raise what this module holds, so it imports nothing of gossamer. A programmer's mistake is an assertion,
never one of these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "FieldError",
    "UnknownKeyError",
    "UserError",
    "did_you_mean",
    "did_you_mean_path",
    "exception_line",
    "is_out_of_memory",
    "shorten",
]

_MIN_SIMILARITY = 0.75
"""The likeness that a hint asks of two names, by difflib's ratio: one letter of four may be another. Below it, names
were offered that share a few letters and nothing else: eps for epochs, price for force, report for import."""

_OUT_OF_MEMORY = "out of memory|can't allocate memory|cannot allocate memory|bad_alloc|failed to map segment"


class UserError(ValueError):
    """A user's mistake: one line that names the thing and the remedy.

    The command line prints it as `gossamer: <message>` and exits with status 2, without a traceback unless `--debug` is
    given. Callers from Python get it as a `ValueError`.
    """


class FieldError(UserError):
    """A user's mistake in one field of a configuration, whose section whoever reads the whole of it can add.

    Args:
        name: the field's, with a dot after each section that it lies in
        problem: what is wrong, as it follows the name: ` = 3: must be from 4 to 5`
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        return f"{self.name}{self.problem}"

    def inside(self, section: str) -> FieldError:
        """The same mistake with the name of the section before the field's."""
        return type(self)(f"{section}.{self.name}", self.problem)


class UnknownKeyError(FieldError):
    """A key that no field has.

    Args:
        name: the key
        problem: the hint that names which key was probably meant, or nothing
    """

    def __str__(self) -> str:
        return f"unknown key {self.name!r}{self.problem}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left, on the host or on a device of any kind.

    So do the exceptions of a library that could not be mapped, and of a thread that found no room for its stack.
    """
    has_known_message = isinstance(error, RuntimeError | ImportError) and re.search(_OUT_OF_MEMORY, str(error), re.I)
    return isinstance(error, MemoryError) or bool(has_known_message)


def shorten(text: object, max_length: int = 80) -> str:
    """Return what others wrote as a message of one line may show it: printable and short.

    Args:
        text: whatever it is
        max_length: characters, after which a mark stands for the rest
    """
    line = " ".join(str(text).encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= max_length else f"{line[:max_length]} …"


def exception_line(error: BaseException, max_length: int = 200) -> str:
    """Return an exception as one line, `OSError: no such device`, shortened as `shorten` does.

    Args:
        error: the exception
        max_length: characters of the line
    """
    return shorten(f"{type(error).__name__}: {str(error).strip() or 'no message'}", max_length)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the candidate that is most like a name, or `""` when none is close.

    Dotted names are compared by their last part, the same one or its initials first, then within their own section:
    `steps` finds `training.steps`, `lr` finds `optimizer.learning_rate`, `num_expert` finds `model.num_experts`, and
    `training.zzz` finds nothing although all of `training` begins alike. The beginnings of words are enough: `seq_len`
    finds `training.sequence_length`. The dashes of options do not count.
    """
    section, leaf = _split(name)
    all_leaves, siblings, initials = dict[str, str](), dict[str, str](), dict[str, str]()
    for candidate in candidates:
        place, own = _split(candidate)
        all_leaves.setdefault(own, candidate)
        if place == section:
            siblings.setdefault(own, candidate)
        if "_" in own:
            initials.setdefault("".join(word[:1] for word in own.split("_")), candidate)
    found = siblings.get(leaf) or all_leaves.get(leaf) or initials.get(leaf)
    for pool in (siblings, all_leaves):
        if found is None and (close := _closest(leaf, pool)) is not None:
            found = pool[close]
    return _hint(found)


def did_you_mean_path(path: str, candidates: Iterable[str]) -> str:
    """Return the same hint for files and folders, whose own names are compared without their folders and endings.

    `runs/mien` finds `runs/mine`, and `a.jsonl` does not find `b.jsonl` for ending alike.
    """
    stems = {Path(candidate).stem: candidate for candidate in candidates}
    stem = Path(path).stem
    return _hint(stems.get(_closest(stem, stems) or stem))


def _closest(name: str, names: Iterable[str]) -> str | None:
    """The name that another is a slip or an abbreviation of."""
    known = list(names)
    if close := difflib.get_close_matches(name, known, n=1, cutoff=_MIN_SIMILARITY):
        return close[0]
    if len(name) == 3:  # a slip is a third of it
        for candidate in known:
            if len(candidate) == 3 and sum(map(str.__eq__, name, candidate)) == 2:
                return candidate
    longer = [candidate for candidate in known if len(name) > 2 and _abbreviates(name, candidate)]
    return min(longer, key=len, default=None)


def _abbreviates(name: str, candidate: str) -> bool:
    """Whether each word of a name begins one of the candidate's, in order."""
    words = iter(candidate.split("_"))
    return all(any(word.startswith(part) for word in words) for part in name.split("_"))


def _hint(found: str | None) -> str:
    return "" if found is None else f"; did you mean {shorten(repr(found))}?"


def _split(name: str) -> tuple[str, str]:
    """A dotted name's section and its last part, without an option's dashes."""
    section, _, leaf = name.lstrip("-").rpartition(".")
    return section, leaf
