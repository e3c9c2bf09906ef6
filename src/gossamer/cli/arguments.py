"""From the words after a verb to the keyword arguments of its function.

A verb's parameters are its flags, and a parameter without a default is given by position. A parameter that is a
dataclass stands for one flag for each of its fields. A parameter `overrides` stands for every value of a recipe, by
dotted name. argparse says which words belong to which flag; what they mean is said by the types that are declared.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from gossamer.cli.shared import TuningFlags, Verb
from gossamer.errors import FieldError, UserError, did_you_mean, shorten
from gossamer.options import Option, options_of, plain_type, without_none
from gossamer.reading import parse_number, user_path
from gossamer.typed import convert, expected, parse_suffixed_number
from gossamer.yaml_files import parse_yaml

_MAX_SHOWN = 200  # characters of a flag's values in a message


@dataclass
class Flags:
    """Everything that a verb takes.

    Attributes:
        prog: the words that call the verb
        function: the verb
        positional: parameters that are given by position
        own: parameters that are flags, and fields of parameters that are dataclasses, by the flag's name
        recipe: every value of a recipe by its dotted name; empty where the verb takes none
        short: the recipe's values that have a flag without the section, by that
    """

    prog: str
    function: Verb
    positional: dict[str, Option] = field(default_factory=dict)
    own: dict[str, Option] = field(default_factory=dict)
    recipe: dict[str, Option] = field(default_factory=dict)
    short: dict[str, Option] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, Option]:
        """Every flag by its name."""
        return self.own | self.short | self.recipe


def flag_of(name: str) -> str:
    """Return a flag as help and messages show it: dashes within a verb's own name, a recipe's name as in YAML.

    Both spellings are accepted everywhere.
    """
    return f"--{name}" if "." in name else f"--{name.replace('_', '-')}"


def flags_of(prog: str, function: Verb) -> Flags:
    """Return the flags that a verb declares.

    Args:
        prog: the words that call the verb
        function: the verb
    """
    flags = Flags(prog, function)
    for name, option in options_of(function).items():
        if name == "overrides":
            flags.recipe, flags.short = _recipe_flags(option.metadata(TuningFlags))
        elif is_dataclass(plain_type(option.annotation)):
            fields = options_of(plain_type(option.annotation))
            flags.own |= {key: value for key, value in fields.items() if value.has_flag}
        elif option.default is MISSING:
            flags.positional[name] = option
        else:
            flags.own[name] = option
    return flags


def _recipe_flags(tuning: TuningFlags | None) -> tuple[dict[str, Option], dict[str, Option]]:
    """Return the flags of a recipe's values by their dotted names, and the short ones by theirs."""
    from gossamer.train.recipe import TUNING, recipe_options

    options = recipe_options(tuning=tuning is not None).items()
    if tuning is None:
        every = {key: value for key, value in options if "." in key}
        return every, {value.short_flag: value for value in every.values() if value.short_flag}
    # What the base and the data decide has no default that could be shown.
    every = {
        key: value if key.startswith(f"{TUNING}.") else replace(value, default=None)
        for key, value in options
        if "." in key
    }
    short = {value.short_flag: value for key, value in every.items() if key.startswith(f"{TUNING}.")}
    return every, {name: every[key] for name, key in tuning.short.items()} | short


def parse(verb: str, function: Verb, words: Sequence[str]) -> dict[str, Any]:
    """Read the words after a verb into the keyword arguments of its function.

    Parameters that are not given are left out; those that are dataclasses are always there. The words of a flag's name
    may be joined by dashes as well as by underscores. A function that takes a recipe's values gets those that were
    given, by dotted name; its `--help` names the recipe's sections, `--help SECTION` lists one and `--help all` all of
    them.

    Raises:
        UserError: an unknown flag, a value of another type, too many words or too few.
        SystemExit: after `--help`.
    """
    flags = flags_of(f"gossamer {verb}", function)
    if {"--help", "-h"} & set(words):
        from gossamer.cli.help import help_page

        print(help_page(flags, words))
        raise SystemExit(0)
    end = list(words).index("--") if "--" in words else len(words)  # after it, nothing is a flag
    flags.recipe |= _parts_of_mappings(flags.recipe, words[:end])
    known = flags.all
    declared = [_with_underscores(word, known) for word in words[:end]]
    given, rest = _split(known, _with_values_of_booleans(declared, known))
    arguments = _positional(flags, rest, words[end + 1 :])
    overrides: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, texts in given.items():
        option = known[name]
        if name in flags.own:
            value = _read(texts, without_none(option.annotation), name)  # None stands for "not given"
            if option.owner is function:
                arguments[name] = convert(value, option.annotation, flag_of(name))
            else:
                values[name] = value
        elif option.name in overrides:
            short, dotted = (flag_of(key) for key in given if known[key] is option)
            raise UserError(f"{short} and {dotted} set the same value; give one of them")
        else:
            overrides[option.name] = _read(texts, option.annotation, name)
    arguments |= _sections(function, values)
    return arguments | ({"overrides": overrides} if flags.recipe else {})


def _sections(function: Verb, values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are dataclasses, each made of the flags that were given for its fields."""
    instances = {}
    for name, option in options_of(function).items():
        kind = plain_type(option.annotation)
        if is_dataclass(kind) and isinstance(kind, type):
            try:
                instances[name] = kind(**{key: value for key, value in values.items() if key in options_of(kind)})
            except FieldError as error:
                raise FieldError(flag_of(error.name), error.problem) from None
    return instances


# Words.


def is_switch(option: Option) -> bool:
    """Whether help shows a flag without a value: true or false, false by default, outside a recipe."""
    return "." not in option.name and without_none(option.annotation) is bool


def _is_list(annotation: Any) -> bool:
    return get_origin(without_none(annotation)) is tuple


def _length(annotation: Any) -> int | None:
    """How many values a list has; None where it may have any number."""
    kinds = get_args(without_none(annotation))
    return None if kinds[-1] is Ellipsis else len(kinds)


def _split(known: Mapping[str, Option], words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Find which words belong to which flag.

    Returns:
        The words of each flag that was given, and the words that belong to none.
    """
    # An abbreviated flag would change its meaning when another one is added.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, option in known.items():
        if _is_list(option.annotation):
            extends = _length(option.annotation) is None
            shape: dict[str, Any] = {"nargs": "*", "action": "extend" if extends else "store"}
        else:
            shape = {"nargs": 1}
        parser.add_argument(f"--{name}", dest=name, default=argparse.SUPPRESS, **shape)
    try:
        given, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        flag = flag_of(str(error.argument_name).removeprefix("--"))
        raise UserError(f"{flag} needs one value (write {flag}=-1 for one that begins with a dash)") from None
    return vars(given), rest


def _with_values_of_booleans(words: Sequence[str], known: Mapping[str, Option]) -> list[str]:
    """Return the words with `=true` at each flag for true or false that is given without a value.

    After a verb's own switch only `true` and `false` are values, since what else follows may be given by position.
    """
    completed = []
    for word, following in pairwise([*words, "--"]):
        option = known.get(word.removeprefix("--")) if word.startswith("--") else None
        if option is not None and without_none(option.annotation) is bool:
            has_value = following in ("true", "false") if is_switch(option) else not following.startswith("--")
            word = word if has_value else f"{word}=true"
        completed.append(word)
    return completed


def _with_underscores(word: str, known: Mapping[str, Option]) -> str:
    """Return a flag as it is declared, whether dashes or underscores were typed, and other words as they are."""
    typed, equals, value = word.partition("=")
    if not typed.startswith("--"):
        return word
    name = typed[2:]
    alike = [key for key in known if key.replace("-", "_") == name.replace("-", "_")]
    # Several are alike where sets of text have names such as my-set and my_set.
    return f"--{max(alike, key=lambda key: sum(map(str.__eq__, key, name)))}{equals}{value}" if alike else word


def _parts_of_mappings(recipe: Mapping[str, Option], words: Iterable[str]) -> dict[str, Option]:
    """The flags of the parts of mappings that the words name.

    `--corpus.sets.novels.weight` makes flags of all fields of a set `novels`, so that a mistyped one gets a hint.
    """
    parts: dict[str, Option] = {}
    for key, option in recipe.items():
        if get_origin(without_none(option.annotation)) is not dict:
            continue
        item = get_args(without_none(option.annotation))[1]
        before = f"--{key.replace('_', '-')}."
        for word in words:
            typed = word.partition("=")[0]
            if not typed.replace("_", "-").startswith(before):
                continue
            name, dot, _ = typed[len(before) :].partition(".")
            if is_dataclass(item) and dot:
                parts |= options_of(item, f"{key}.{name}")
            elif not is_dataclass(item):
                parts[f"{key}.{name}"] = Option(f"{key}.{name}", item, (), option.owner)
    return parts


def _positional(flags: Flags, rest: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """Read the words that belong to no flag.

    Args:
        flags: what the verb takes
        rest: the words, among which may be unknown flags
        after: the words after `--`, none of which is a flag

    Raises:
        UserError: an unknown flag, too many words or too few.
    """
    for word in rest:
        if word.startswith("-") and len(word) > 1 and parse_number(word) is None and " " not in word:
            raise UserError(_unknown(word.partition("=")[0], flags))
    words = [*rest, *after]
    values: dict[str, Any] = {}
    for name, option in flags.positional.items():
        if not words:
            raise UserError(f"missing {name.upper()} ({flags.prog} --help)")
        if _is_list(option.annotation):
            values[name], words = tuple(words), []
        else:
            values[name] = words.pop(0)
    if words:
        meant = f"; did you mean --prompt {shlex.quote(words[0])}?" if "prompt" in flags.own else _see(flags)
        raise UserError(f"unexpected argument {words[0]!r}{meant}")
    return values


def _unknown(flag: str, flags: Flags) -> str:
    """Say that there is no such flag, and which one was probably meant."""
    name = flag.lstrip("-").replace("-", "_")
    for key, option in flags.all.items():
        if name in option.former_names:
            return f"{flag} is now called {flag_of(key)}"
    if flags.recipe and name.partition(".")[0] == "tuning":
        return f"{flag} is a value of gossamer tune, which teaches a model by examples (gossamer tune --help)"
    hint = did_you_mean(flag, [flag_of(key) for key in (*flags.all, "help")])
    return f"unknown option {flag!r}{hint or _see(flags)}"


def _see(flags: Flags) -> str:
    return f" ({flags.prog} --help)"


# Values.


class _Unreadable(Exception):
    """A word is no value of the declared type."""


def _read(texts: Sequence[str], annotation: Any, name: str) -> Any:
    """Read the words of a flag's value as a recipe in YAML would be read.

    Args:
        texts: the words
        annotation: the declared type
        name: the flag's, for the message

    Raises:
        UserError: they have another type; the line repeats what was typed.
    """
    kind = without_none(annotation)
    if NoneType in get_args(plain_type(annotation)) and list(texts) == ["null"]:
        return None
    if get_origin(kind) is tuple:
        if texts and _length(kind) not in (None, len(texts)):
            raise UserError(f"{flag_of(name)} needs {_length(kind)} values")
        if not texts and "." not in name:
            raise UserError(f"{flag_of(name)} needs at least one value")
    try:
        if get_origin(kind) is tuple:
            return tuple(_read_word(text, get_args(kind)[0]) for text in texts)
        return _read_mapping(texts[0], kind, name) if get_origin(kind) is dict else _read_word(texts[0], kind)
    except _Unreadable:
        typed = shorten(" ".join(texts), _MAX_SHOWN)
        raise UserError(f"{flag_of(name)} {typed}: expected {expected(annotation)}") from None


def _read_word(word: str, annotation: Any) -> Any:
    kind = plain_type(annotation)
    if get_origin(kind) in (Union, UnionType):
        for part in get_args(kind):
            try:
                return _read_word(word, part)
            except _Unreadable:
                continue
    elif kind in (int, float):
        count = parse_suffixed_number(word, kind)
        number = parse_number(word) if count is None else count
        if number is not None and (kind is float or isinstance(number, int)):
            return number
    elif kind is bool:
        return _read_truth(word)
    elif kind is str:
        return word
    elif kind is Path:
        return user_path(word)
    elif get_origin(kind) is Literal and word in get_args(kind):
        return word
    raise _Unreadable


def _read_truth(word: str) -> bool:
    try:
        value = parse_yaml(word, "")
    except UserError:
        raise _Unreadable from None
    if not isinstance(value, bool):
        raise _Unreadable
    return value


def _read_mapping(text: str, kind: Any, name: str) -> Any:
    try:
        value = parse_yaml(text, f"--{name}")
    except UserError as error:
        raise UserError(f"--{name} {text}: not YAML; write {{name: ...}}") from error
    return convert(value, kind, f"--{name}")
