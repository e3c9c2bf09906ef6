"""The help of a verb: a page of its flags, each with what it means, its range, unit and default.

Whatever a page says is read from the declarations: names, types and defaults from signatures and dataclasses, sentences
from their docstrings.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin

from gossamer import units
from gossamer.cli.arguments import Flags, flag_of, is_switch
from gossamer.errors import UserError, did_you_mean
from gossamer.options import Option, description_of, documented, plain_type, without_none
from gossamer.typed import Metavar, Range, hints_of

_MAX_COLUMN = 0.4  # of the width, where explanations begin at the latest
_MAX_WIDTH = 110  # of a line; longer ones are hard to read


def help_page(flags: Flags, words: Sequence[str]) -> str:
    """Return the page that the words ask for, which have a `--help` among them.

    Where a verb takes a recipe's values, a word after it may name one of the recipe's sections, or `all`. Defaults are
    those of the recipe that the words name.

    Raises:
        UserError: there is no such section.
    """
    if not flags.recipe:
        return "\n".join([*_heading(flags), *_own(flags)])
    from gossamer.train.recipe import Recipe

    names = dict.fromkeys(key.partition(".")[0] for key in flags.recipe)
    sections = {name: documented(Recipe)[name] for name in names}
    topic, defaults = _topic(words, sections), _recipe_defaults(flags, words)
    if topic in sections:
        usage = f"usage: {flags.prog} [--{topic}.NAME VALUE …]"
        return "\n".join([usage, *_section(flags.recipe, defaults, topic, sections[topic])])
    short = [_row(name, replace(option, default=defaults[option.name])) for name, option in flags.short.items()]
    lines = [*_heading(flags), *_own(flags), *_titled("Short flags for values of the recipe:", short)]
    if topic == "all":
        for section, text in sections.items():
            lines += _section(flags.recipe, defaults, section, text)
    else:
        topics = {**sections, "all": "all of them, and the options above"}
        title = "Every value of the recipe is an option by its dotted name, as in --training.steps 500:"
        lines += _titled(title, [(f"--help {name}", text) for name, text in topics.items()])
    return "\n".join(lines)


def _topic(words: Sequence[str], sections: Mapping[str, str]) -> str:
    """The section that is asked for, `all`, or nothing; of `--help model.num_experts` and of `--help --model`, too."""
    after = next(index for index, word in enumerate(words) if word in ("--help", "-h")) + 1
    word = "".join(words[after : after + 1])
    topic = word.strip("-").partition(".")[0]
    if topic in sections or topic == "all":
        return topic
    if word and not word.startswith("-"):
        hint = did_you_mean(topic, sections) or f" (one of {', '.join(sections)}, all)"
        raise UserError(f"--help {topic}: no section of a recipe{hint}")
    return ""


def _recipe_defaults(flags: Flags, words: Sequence[str]) -> dict[str, Any]:
    """The values of the recipe that the words name, by dotted name; a tuning has no recipe unless they name one."""
    from gossamer.train.recipe import DEFAULT_RECIPE, TUNING, flatten, load_recipe

    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", nargs="?")
    name = finder.parse_known_args(words)[0].recipe
    declared = {key: option.default for key, option in flags.recipe.items()}
    is_tuning = any(key.startswith(f"{TUNING}.") for key in flags.recipe)
    return declared if name is None and is_tuning else declared | flatten(load_recipe(name or DEFAULT_RECIPE))


# The layout.


def _width() -> int:
    return max(60, min(_MAX_WIDTH, shutil.get_terminal_size((_MAX_WIDTH, 24)).columns))


def _heading(flags: Flags) -> list[str]:
    names = [
        name.upper() + (" …" if get_origin(without_none(option.annotation)) is tuple else "")
        for name, option in flags.positional.items()
    ]
    usage = " ".join(["usage:", flags.prog, *names, "[options]"])
    paragraphs = [textwrap.wrap(text, _width()) for text in description_of(flags.function)]
    return [usage, *(line for paragraph in paragraphs for line in ("", *paragraph))]


def _own(flags: Flags) -> list[str]:
    """The lines of a verb's parameters: those given by position, those of its own, and those of each dataclass."""
    groups = {"": [(name.upper(), option.help) for name, option in flags.positional.items()]}
    groups["Options:"] = [_row(name, option) for name, option in flags.own.items() if option.owner is flags.function]
    for name, text in documented(flags.function).items():
        kind = plain_type(hints_of(flags.function)[name])
        if is_dataclass(kind):
            own = {key: option for key, option in flags.own.items() if option.owner is kind}
            groups[f"{text[0].upper()}{text[1:]}:"] = [_row(key, option) for key, option in own.items()]
    column = _column([name for rows in groups.values() for name, _ in rows])
    return [line for title, rows in groups.items() if rows for line in _titled(title, rows, column)]


def _section(recipe: Mapping[str, Option], defaults: Mapping[str, Any], section: str, text: str) -> list[str]:
    """The lines of a section of the recipe."""
    own = {key: option for key, option in recipe.items() if key.startswith(f"{section}.")}
    rows = [_row(key, replace(option, default=defaults[key])) for key, option in own.items()]
    return _titled(f"{section}: {text}", rows)


def _titled(title: str, rows: Sequence[tuple[str, str]], column: int = 0) -> list[str]:
    """Write rows under a title, after an empty line."""
    return ["", *textwrap.wrap(title, _width()), *_lines(rows, column)]


def _row(name: str, option: Option) -> tuple[str, str]:
    """An option with its values, and what it means."""
    flag = flag_of(name) if is_switch(option) else f"{flag_of(name)} {metavar_of(option)}"
    return flag, f"{option.help}{_remark(name, option)}"


def _column(names: Sequence[str]) -> int:
    """The column where explanations begin, beside all names but unusually long ones."""
    return min(int(_MAX_COLUMN * _width()), max((len(name) for name in names), default=0) + 4)


def _lines(rows: Sequence[tuple[str, str]], column: int = 0) -> list[str]:
    """Write rows as a table of two columns, each row in as many lines as it takes."""
    column = column or _column([name for name, _ in rows])
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, _width() - column, break_on_hyphens=False)
        if len(name) + 4 > column:  # no room beside it
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name}".ljust(column) + wrapped.pop(0))
        lines += [" " * column + line for line in wrapped]
    return lines


# What there is to say of an option.


def metavar_of(option: Option) -> str:
    """The words that stand for an option's values."""
    kind = without_none(option.annotation)
    if get_origin(kind) is tuple:
        word = _word(option, plain_type(get_args(kind)[0]))
        return f"{word} …" if get_args(kind)[-1] is Ellipsis else " ".join([word] * len(get_args(kind)))
    return _word(option, kind)


def _word(option: Option, kind: Any) -> str:
    if get_origin(kind) is dict:
        return "YAML"
    if (metavar := option.metadata(Metavar)) is not None:
        return metavar.text
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if kind is bool:
        return "{true,false}"
    if option.unit:
        return option.unit.upper()
    if _is_number(kind):
        return "N" if _is_whole(kind) else "X"
    return option.name.rpartition(".")[2].rpartition("_")[2].upper()


def _is_number(kind: Any) -> bool:
    return kind in (int, float) or any(plain_type(part) in (int, float) for part in get_args(kind))


def _is_whole(kind: Any) -> bool:
    return float not in (kind, *map(plain_type, get_args(kind)))


def _remark(name: str, option: Option) -> str:
    """The type, range, unit and default of an option, in brackets after what it means."""
    if is_switch(option):
        return ""
    default = default_of(option)
    facts = [
        numbers_of(option),
        f"default {default}" if default else "",
        f"the same as {flag_of(option.name)}" if name != option.name else "",
    ]
    return f" [{', '.join(fact for fact in facts if fact)}]" if any(facts) else ""


def numbers_of(option: Option) -> str:
    """The type, range and unit of an option that is a number, or a list of them; nothing for others."""
    kind = without_none(option.annotation)
    if get_origin(kind) is tuple:
        kind = plain_type(get_args(kind)[0])
    if not _is_number(kind):
        return ""
    interval = f"{_interval(option.range)} {option.unit}".strip()
    return ", ".join(part for part in ("int" if _is_whole(kind) else "float", interval) if part)


def default_of(option: Option) -> str:
    """The default of an option as it would be typed; nothing where it is empty, or the help describes it in words."""
    return "" if option.default in (None, MISSING, (), "", {}) else _value(option.default)


def _interval(allowed: Range | None) -> str:
    """A range in short: `0 to 1`, or `above 0 to 1.1T`."""
    if allowed is None:
        return ""
    above, below = "above " if allowed.excludes_minimum else "", "below " if allowed.excludes_maximum else ""
    return f"{above}{_number(allowed.minimum)} to {below}{_number(allowed.maximum)}"


def _number(value: float) -> str:
    """A number in full where it is not long: 65,535, 0.1, 1.1T, 9.2e18."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return f"{value:,}" if isinstance(value, int) else f"{value:,g}"
    return units.human(value) if abs(value) < 1e15 else f"{value:.2g}".replace("e+", "e")


def _value(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(_value, value))
    if isinstance(value, float):
        return _number(value).replace(",", "")
    return repr(value) if isinstance(value, str) and " " in value else str(value)
