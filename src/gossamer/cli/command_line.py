"""A command line as a whole: the verb that it calls, and one line and an exit status for whatever that raises."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from gossamer import __version__
from gossamer.cli.memory_limit import memory_limit, require_memory
from gossamer.cli.shared import Verb
from gossamer.errors import UserError, did_you_mean, is_out_of_memory, shorten
from gossamer.streams import ReaderGone, usable_streams

_MAX_LENGTH = 2000  # characters of a message


def run(verbs: Mapping[str, Verb], argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    Args:
        verbs: the functions that can be called, by the verb's name
        argv: the words of the command line; the process's own if None

    Raises:
        Exception: what a verb raises that is neither a user's mistake nor a failure of the machine.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    with usable_streams():
        return _run(verbs, [argument for argument in arguments if argument != "--debug"], debug)


def _run(verbs: Mapping[str, Verb], arguments: Sequence[str], debug: bool) -> int:
    try:
        status = _call(verbs, arguments)
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # --help of a verb
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail(130, "interrupted", debug)
    except ReaderGone:
        return 141
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        return _fail(2, reason, debug)


def _call(verbs: Mapping[str, Verb], arguments: Sequence[str]) -> int:
    """Call the verb that the words ask for and return its exit status, 0 if it returns none."""
    if not arguments:
        raise UserError(f"which verb? one of {', '.join(verbs)} (gossamer --help)")
    verb, *rest = arguments
    if verb in ("--help", "-h"):
        print(_help(verbs))
    elif verb == "--version":
        print(f"gossamer {__version__}")
    elif verb in verbs:
        if not {"--help", "-h"} & set(rest):
            require_memory()
        from gossamer.cli.arguments import parse

        return verbs[verb](**parse(verb, verbs[verb], rest)) or 0
    else:
        what = "option" if verb.startswith("-") else "verb"
        hint = did_you_mean(verb, [*verbs, "--help", "--version", "--debug"]) or f"; there are {', '.join(verbs)}"
        raise UserError(f"unknown {what} {verb!r}{hint}")
    return 0


def _help(verbs: Mapping[str, Verb]) -> str:
    """The page of `gossamer --help`: a line for each verb, the first sentence of its docstring."""
    lines = [f"  {name:<8} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in verbs.items()]
    return "\n".join(
        [
            "usage: gossamer VERB [options]",
            "",
            "Train and serve Qwen3-Next-class language models at the lowest cost, on the chips you have.",
            "",
            *lines,
            "",
            "  gossamer VERB --help  list the options of a verb, with their ranges, units and defaults",
            "                        (dashes and underscores in their names are the same)",
            "  --version             print the version",
            "  --debug               after any verb, show the traceback of an error",
        ]
    )


def _fail(status: int, message: str, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print("gossamer:", shorten(message, _MAX_LENGTH), file=sys.stderr)
    return status


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str | None:
    """Return one line for an error that is not a programmer's mistake; None for one that is."""
    if isinstance(error, UserError):
        return str(error)
    if "No space left on device" in str(error):  # OSError from Python, other types from libraries that write weights
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if "can't start new thread" in str(error):
        return f"no more threads can be started: {memory_limit() or 'their number is limited (ulimit -u)'}; raise it"
    if missing := re.search(r"Could not run '(\S+)' with arguments from the '(\w+)' backend", str(error)):
        return f"{missing[2]!r} has no operator {missing[1]}; docs/new-chip.md says what to do about it"
    if any(map(is_out_of_memory, _chain(error))):
        if limited := memory_limit():
            return f"out of memory: {limited}; raise it"
        return "out of memory; training needs less with a smaller --training.batch_size or --training.sequence_length"
    return None
