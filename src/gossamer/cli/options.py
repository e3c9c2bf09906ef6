"""Options of a verb: from its signature, its docstring and the recipe's fields to a jsonargparse parser, and its words
for a mistake to one line.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser

from gossamer.cli.shared import Verb
from gossamer.errors import UserError, nearest
from gossamer.reading import parse_number, parse_yaml
from gossamer.typed import convert, count_of, expected

_LONGEST = 200  # characters of an option and its values in a message
# What `--help` cannot tell from the type alone.
_METAVARS = {
    "data": "PATH",
    "out": "DIR",
    "run": "RUN",
    "export.out": "OUT",
    "report.out": "FILE",
    "plan.out": "FILE",
    "keys": "FILE",
}


class _Number:
    """Reads a word as a number, as files are read; --help shows it as the type's name.

    jsonargparse, which calls it for its own results as well, would read 1:30 as 90.
    """

    def __init__(self, annotation: Any) -> None:
        options = get_args(annotation) or (annotation,)
        self._kinds = tuple(option for option in options if option is not NoneType)
        self._optional = NoneType in options

    def __repr__(self) -> str:
        return " | ".join([*(kind.__name__ for kind in self._kinds), *(["null"] if self._optional else [])])

    def __call__(self, word: Any) -> Any:
        value = parse_number(word) if isinstance(word, str) else word
        if word == "null" and self._optional:
            return None
        if value is None or (isinstance(value, float) and float not in self._kinds):
            raise ValueError
        return value


def _read_as(annotation: Any) -> Any:
    """What jsonargparse reads a word of such a type with."""
    options = {option for option in get_args(annotation) or (annotation,) if option is not NoneType}
    return _Number(annotation) if options and options <= {int, float} else annotation


def parse(verb: str, function: Verb, arguments: Sequence[str]) -> dict[str, Any]:
    """Read the words after a verb into the keyword arguments that were given.

    Words of an option's name may be joined by dashes as well as by underscores, which is how they are shown.

    A function with a parameter `overrides` takes every value of a recipe as an option too, and gets those that were
    given there, by dotted name. Its `--help` names the recipe's sections, `--help SECTION` lists one, `--help all` all.

    Raises:
        UserError: an unknown option, a value of another type, too many words or too few.
        SystemExit: after `--help`.
    """
    # An abbreviated option would change its meaning when another option is added.
    parser = ArgumentParser(
        prog=f"gossamer {verb}", description=_summary(function), exit_on_error=False, allow_abbrev=False
    )
    types = _add_parameters(parser, function)
    positional = [
        _METAVARS[name] + (" …" if get_origin(hint) is tuple else "")
        for name, hint in types.items()
        if f"--{name}" not in parser._option_string_actions
    ]
    parser.usage = " ".join([parser.prog, *positional, "[options]"])  # argparse would list a hundred options
    overridable = "overrides" in inspect.signature(function).parameters
    if overridable and {"--help", "-h"} & set(arguments):
        print(_recipe_help(parser, arguments))
        raise SystemExit(0)
    dotted: dict[str, Any] = {}
    if overridable:
        types |= _add_recipe(parser, arguments)
    arguments = _counted([_spelt(word, types) for word in arguments], types)
    rest = list(arguments)
    if overridable:
        dotted, rest = _take_mappings(parser, types, rest)
    try:
        given = parser.parse_args(rest, defaults=False)
    except ArgumentError as error:
        raise UserError(_one_line(error.message, parser, types, arguments)) from error
    values = {key: _plain(value, types[key], f"--{key}") for key, value in given.items()}
    dotted |= {key: values.pop(key) for key in list(values) if "." in key}
    return values | ({"overrides": dotted} if overridable else {})


def _spelt(word: str, types: dict[str, Any]) -> str:
    """An option with underscores where dashes were typed; other words, and names that are the user's, as they are."""
    option, equals, value = word.partition("=")
    if not option.startswith("--"):
        return word
    name = option[2:].replace("-", "_")
    if name in types:
        return f"--{name}{equals}{value}"
    for key, annotation in types.items():
        if get_origin(annotation) is dict and name.startswith(f"{key}."):
            own, dot, part = option[len(f"--{key}.") :].partition(".")
            return f"--{key}.{own}{dot}{part.replace('-', '_')}{equals}{value}"
    return word


def _counted(arguments: list[str], types: dict[str, Any]) -> list[str]:
    """The words, with numbers written out where one like 15T is given for an option that takes a number."""
    words = list[str]()
    for index, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option.startswith("--"):
            count = count_of(value, types.get(option[2:])) if equals else None
            words.append(word if count is None else f"{option}={count}")
        else:
            before = arguments[index - 1] if index else ""
            count = count_of(word, types.get(before[2:])) if before.startswith("--") else None
            words.append(word if count is None else str(count))
    return words


def _summary(function: Verb) -> str:
    return parse_docstring(inspect.getdoc(function) or "").short_description or ""


def _helps(documented: Any) -> dict[str, str]:
    """What a docstring's Args or Attributes say about each name."""
    found = parse_docstring(inspect.getdoc(documented) or "").params
    return {item.arg_name: " ".join((item.description or "").replace("`", "").split()) for item in found}


def _add_parameters(parser: ArgumentParser, function: Verb) -> dict[str, Any]:
    """Add the function's parameters: required ones by position, the others by name. Returns their types."""
    hints, declared, helps = get_type_hints(function), get_type_hints(function, include_extras=True), _helps(function)
    types: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "overrides":
            continue
        # None stands for an option that was not given, it cannot be typed.
        types[name], annotation = _without_none(declared[name]), _without_none(hints[name])
        shape: dict[str, Any] = {"type": _read_as(annotation)}
        if get_origin(annotation) is tuple:
            shape = {"type": _read_as(get_args(annotation)[0]), "nargs": "+"}
        if (metavar := _METAVARS.get(f"{function.__name__}.{name}", _METAVARS.get(name))) is not None:
            shape["metavar"] = metavar
        if parameter.default is parameter.empty:
            parser.add_argument(name, help=helps[name], **shape)
        elif annotation is bool:
            parser.add_argument(f"--{name}", action="store_true", help=helps[name])
        else:
            if "nargs" in shape:
                shape["action"] = "extend"
            shown = argparse.SUPPRESS if parameter.default in (None, (), "") else parameter.default
            parser.add_argument(f"--{name}", help=helps[name], default=shown, **shape)
    return types


def _recipe_help(parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """The help that is asked for: the verb's own options and the recipe's sections, the values of one, or everything.

    Raises:
        UserError: there is no such section.
    """
    from gossamer.train.recipe import Recipe, field_types

    sections = dict.fromkeys(key.partition(".")[0] for key in field_types() if "." in key)
    after = next(index for index, word in enumerate(arguments) if word in ("--help", "-h")) + 1
    word = "".join(arguments[after : after + 1])
    topic = word.strip("-").partition(".")[0]  # of --help model.num_experts, too
    if word.startswith("-") and topic not in sections:
        topic = ""
    if topic == "all":
        _add_recipe(parser, arguments)
        return parser.format_help()
    if topic in sections:
        own = ArgumentParser(prog=parser.prog, usage=f"{parser.prog} [--{topic}.NAME VALUE …]", add_help=False)
        _add_recipe(own, arguments, topic)
        return own.format_help()
    if topic:
        raise UserError(f"--help {topic}: no section of a recipe{nearest(topic, sections) or _one_of(sections)}")
    lines = [f"  {f'--help {name}':<18} {_helps(Recipe)[name]}" for name in sections]
    return "\n".join(
        [
            parser.format_help(),
            "values of the recipe, each an option by its dotted name, as --training.steps 500:",
            *lines,
            f"  {'--help all':<18} all of them, and the options above",
        ]
    )


def _one_of(names: Iterable[str]) -> str:
    return f" (one of {', '.join(names)}, all)"


def _add_recipe(parser: ArgumentParser, arguments: Sequence[str], only: str = "") -> dict[str, Any]:
    """Add every value of a recipe, or of one section, by its dotted name, with the chosen recipe's as defaults.

    Returns:
        Their types.
    """
    from gossamer.train.recipe import Recipe, field_types, flatten, recipe_from

    defaults = flatten(recipe_from(_chosen_recipe(arguments)))
    sections, types = get_type_hints(Recipe), field_types()
    groups: dict[str, Any] = {}
    helps: dict[str, dict[str, str]] = {}
    for key in [key for key in types if "." in key]:
        section, _, name = key.partition(".")
        if only and section != only:
            continue
        if section not in groups:
            groups[section] = parser.add_argument_group(section, _helps(Recipe)[section])
            helps[section] = _helps(sections[section])
        annotation = types[key]
        shape: dict[str, Any] = {"type": _read_as(annotation)}
        if get_origin(whole := _without_none(annotation)) is tuple:
            kinds = get_args(whole)
            shape = {"type": _read_as(kinds[0]), "nargs": "*" if kinds[-1] is Ellipsis else len(kinds)}
        elif get_origin(annotation) is dict:
            shape = {"type": str, "metavar": "YAML"}
        default = defaults[key] if defaults[key] != {} else None
        groups[section].add_argument(f"--{key}", help=helps[section][name], default=default, **shape)
    return {key: hint for key, hint in types.items() if "." in key}


def _take_mappings(
    parser: ArgumentParser, types: dict[str, Any], arguments: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Read the options that set a mapping from names, or a part of one, which jsonargparse takes for nested keys.

    `--corpus.sets.novels.weight` makes options of all fields of a set `novels`, so that a mistyped one has a nearest.

    Returns:
        The values by dotted name, and the words that are left.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    known: dict[str, Any] = {}
    for key, annotation in types.items():
        if get_origin(annotation) is dict:
            known[key] = annotation
            item = get_args(annotation)[1]
            for word in arguments:
                name, *part = word.split("=")[0].removeprefix(f"--{key}.").split(".")
                if word.startswith(f"--{key}.") and is_dataclass(item) and len(part) == 1:
                    known |= {f"{key}.{name}.{field}": hint for field, hint in get_type_hints(item).items()}
                elif word.startswith(f"--{key}.") and not part:
                    known[f"{key}.{name}"] = item
    for key, annotation in known.items():
        many = get_origin(annotation) is tuple
        finder.add_argument(f"--{key}", dest=key, nargs="*" if many else None, default=argparse.SUPPRESS)
    try:
        given, rest = finder.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(_one_line(str(error), parser, types, arguments)) from error
    values: dict[str, Any] = {}
    for key, value in vars(given).items():
        try:
            plain = parse_yaml(value, f"--{key}") if isinstance(value, str) else value
        except UserError as error:
            raise UserError(f"--{key} {value}: not YAML; write {{name: ...}}") from error
        values[key] = convert(plain, known[key], f"--{key}")
    for option in rest:
        begins = next((key for key in known if option.startswith(f"--{key}.")), None)
        if begins is not None:
            raise UserError(f"unknown option {option.split('=')[0]!r}{nearest(option, [f'--{key}' for key in known])}")
    return values, rest


def _chosen_recipe(arguments: Sequence[str]) -> dict[str, Any]:
    """The recipe that the command line names, for the defaults in `--help`; nothing where it names none."""
    from gossamer.train.recipe import DEFAULT_RECIPE, load_recipe

    if not {"--help", "-h"} & set(arguments):
        return {}
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe", nargs="?")
    return load_recipe(finder.parse_known_args(arguments)[0].recipe or DEFAULT_RECIPE)


def _without_none(annotation: Any) -> Any:
    options = [option for option in get_args(annotation) if option is not NoneType]
    return options[0] if NoneType in get_args(annotation) and len(options) == 1 else annotation


def _plain(value: Any, annotation: Any, key: str) -> Any:
    """`null` typed for an optional list arrives as a list of one word."""
    if value == ["null"] and NoneType in get_args(annotation):
        return None
    return convert(value, annotation, key)


def _one_line(message: str, parser: ArgumentParser, types: dict[str, Any], arguments: Sequence[str]) -> str:
    """Say jsonargparse's and argparse's complaint in one line that names the option and the remedy."""
    known = parser._option_string_actions
    if found := re.match(r'Parser key "([\w.]+)"', message) or re.match(r"argument --([\w.]+): invalid ", message):
        key = found.group(1)
        return f"{_as_typed(f'--{key}', arguments, types[key])}: expected {expected(types[key])}"
    if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        words = found.group(1).split()
        option = next((word.split("=")[0] for word in words if word.startswith("-")), None)
        if option is None:
            first = next(word for word in arguments if word and found.group(1).startswith(word))
            meant = f"; did you mean --prompt {shlex.quote(first)}?" if "--prompt" in known else _see(parser)
            return f"unexpected argument {first!r}{meant}"
        return f"unknown option {option!r}{nearest(option, known) or _see(parser)}"
    if found := re.match(r"the following arguments are required: (.*)", message):
        return f"missing {found.group(1).upper()}{_see(parser)}"
    if found := re.match(r"argument ([^:]*): ignored explicit argument (.*)", message):
        return f"{found.group(1)} takes no value, got {found.group(2)}"
    if found := re.match(r"argument ([^:]*): expected (.*)", message):
        option, wanted = found.group(1), found.group(2).replace("argument", "value")
        dash = f" (write {option}=-1 for one that begins with a dash)" if wanted == "one value" else ""
        return f"{option} needs {wanted}{dash}"
    return message


def _as_typed(option: str, arguments: Sequence[str], annotation: Any) -> str:
    """The option with its values, in the words of the command line."""
    most = None if get_origin(_without_none(annotation)) is tuple else 1
    for index, word in enumerate(arguments):
        if word.split("=")[0] == option:
            values = itertools.takewhile(lambda value: not value.startswith("--"), arguments[index + 1 :][:most])
            typed = word if "=" in word else " ".join([word, *values])
            return typed if len(typed) <= _LONGEST else f"{typed[:_LONGEST]} …"
    return option


def _see(parser: ArgumentParser) -> str:
    return f" ({parser.prog} --help)"
