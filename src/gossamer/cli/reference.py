"""The reference of all options as a document: `python -m gossamer.cli.reference > docs/options.md`."""

from __future__ import annotations

from collections.abc import Iterable

from gossamer.cli.help import default_of, metavar_of, numbers_of
from gossamer.infer.options import EngineOptions
from gossamer.options import Option, description_of, documented, options_of
from gossamer.serve.options import ServeOptions
from gossamer.train.recipe import Recipe, recipe_options

_HEAD = """\
# Options

Every value of a recipe and every option of `gossamer serve`. This page is written by `python -m
gossamer.cli.reference`, from the declarations in the code; `gossamer VERB --help` shows the same in the terminal.

A recipe names the values of a section in YAML, and `gossamer train --training.steps 500` sets one on the command line.
Defaults are those of a recipe that says nothing. In the column "may change", R stands for a value that `gossamer train
--resume` may change, and B for one that `--budget` decides.
"""


def reference() -> str:
    """Write the document."""
    parts = [_HEAD]
    for section, text in documented(Recipe).items():
        own = [option for name, option in recipe_options().items() if name.startswith(f"{section}.")]
        if own:
            parts += [f"## {section}: {text}\n", _table(own, "may change")]
    parts.append("## gossamer serve\n")
    for kind in (ServeOptions, EngineOptions):
        parts += [f"{description_of(kind)[0]}\n", _table([one for one in options_of(kind).values() if one.has_flag])]
    return "\n".join(parts)


def _table(options: Iterable[Option], *more: str) -> str:
    """A table of options, with a column for what may change if that is asked for."""
    head = ["option", "values", "default", *more, "what it is"]
    lines = [_line(head), _line(["---"] * len(head))]
    for option in options:
        name = option.name if more else f"--{option.name}"
        may_change = [" ".join(letter for letter, holds in _changes(option) if holds)] if more else []
        cells = [f"`{name}`", numbers_of(option) or metavar_of(option), default_of(option), *may_change, option.help]
        lines.append(_line([cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells]))
    return "\n".join([*lines, ""])


def _changes(option: Option) -> list[tuple[str, bool]]:
    return [("R", option.is_resumable), ("B", option.is_set_by_budget)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(reference(), end="")
