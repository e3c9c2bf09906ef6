"""The reference of all options as a document: `python -m gossamer.cli.reference > docs/options.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass

from gossamer.cli import VERBS
from gossamer.cli.arguments import flag_of, flags_of, is_switch
from gossamer.cli.help import default_of, metavar_of, numbers_of
from gossamer.cli.shared import Verb
from gossamer.options import Option, description_of, documented, plain_type
from gossamer.train.recipe import Recipe, recipe_options
from gossamer.typed import hints_of

_HEAD = """\
# Options

Every value of a recipe and every option of every verb. This page is written by `python -m gossamer.cli.reference`, from
the declarations in the code; `gossamer VERB --help` shows the same in the terminal.

Dashes and underscores in the name of a flag are the same: `--max-queue` and `--max_queue`. A flag for true or false may
stand without a value, which means true.

A recipe names the values of a section in YAML, and `gossamer train --training.steps 500` sets one on the command line.
Defaults are those of a recipe that says nothing. In the column "may change", R stands for a value that `gossamer train
--resume` may change, and B for one that `--budget` decides.
"""


def reference() -> str:
    """Write the document."""
    parts = [_HEAD]
    for section, text in documented(Recipe).items():
        own = {name: option for name, option in recipe_options(tuning=True).items() if name.startswith(f"{section}.")}
        if own:
            parts += [f"## {section}: {text}\n", _table(own, may_change=True)]
    for verb, function in VERBS.items():
        parts += [f"## gossamer {verb}\n", f"{description_of(function)[0]}\n", *_tables(verb, function)]
    return "\n".join(parts)


def _tables(verb: str, function: Verb) -> list[str]:
    """The tables of a verb: its own options, then those of each of its parameters that is a dataclass."""
    flags = flags_of(f"gossamer {verb}", function)
    own = flags.positional | {name: option for name, option in flags.own.items() if option.owner is function}
    parts = [_table(own, positional=flags.positional)] if own else []
    for name, text in documented(function).items():
        kind = plain_type(hints_of(function)[name])
        if is_dataclass(kind):
            fields = {key: option for key, option in flags.own.items() if option.owner is kind}
            parts += [f"{text[0].upper()}{text[1:]}:\n", _table(fields)]
    if flags.short:
        parts += ["Short flags for values of the recipe:\n", _table(flags.short)]
    return parts


def _table(
    options: Mapping[str, Option], may_change: bool = False, positional: Mapping[str, Option] | None = None
) -> str:
    """A table of options, with a column for what may change if that is asked for."""
    more = ["may change"] if may_change else []
    head = ["option", "values", "default", *more, "what it is"]
    lines = [_line(head), _line(["---"] * len(head))]
    for name, option in options.items():
        flag = name.upper() if name in (positional or {}) else flag_of(name)
        cells = [f"`{flag}`", *_values(option), *([_changes(option)] if may_change else []), option.help]
        lines.append(_line([cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells]))
    return "\n".join([*lines, ""])


def _values(option: Option) -> tuple[str, str]:
    """The values of an option, and its default."""
    return ("switch", "") if is_switch(option) else (numbers_of(option) or metavar_of(option), default_of(option))


def _changes(option: Option) -> str:
    letters = [("R", option.is_resumable), ("B", option.is_set_by_budget)]
    return " ".join(letter for letter, holds in letters if holds)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(reference(), end="")
