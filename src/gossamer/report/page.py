"""The page around a report: one HTML file with its styles, script and pictures in it.

Everything that comes from outside (names, configuration, a model's output) is escaped, and the page's own policy
forbids it to load anything.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer import units
from gossamer.errors import UserError
from gossamer.files import write_atomically
from gossamer.hub.find import RUN_CONFIG
from gossamer.reading import read_bytes
from gossamer.yaml_files import MAX_YAML, parse_yaml

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["configuration", "render", "sections", "visible", "write_page"]


_HOME = "gossamer.report"
_WRITERS = ("amount", "count", "duration", "energy", "flops", "hours", "money", "number", "percent", "size")

# Characters that HTML forbids or that would act on the text around them are shown as pictures of themselves.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


def render(template: str, package: str = _HOME, **values: Any) -> str:
    """Fill a template of a package's folder `pages`; it may extend and include the templates of this package.

    Args:
        template: file name of the template
        package: the package
        **values: what the template is filled with
    """
    from gossamer.report.chart import PALETTE
    from gossamer.report.heatmap import HEAT

    return _environment(package).get_template(template).render(palette=PALETTE | HEAT, **values)


@cache
def _environment(package: str) -> Environment:
    """The environment of a package's templates, each of which is compiled once in a process."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folders = [files(name).joinpath("pages") for name in dict.fromkeys([package, _HOME])]

    def load(name: str) -> str:
        return next(path for folder in folders if (path := folder.joinpath(name)).is_file()).read_text(encoding="utf-8")

    loader = FunctionLoader(load)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {name: getattr(units, name) for name in _WRITERS}
    return environment


def write_page(path: Path, page: str) -> Path:
    """Write a page, replacing an older one whole, and return its path.

    Raises:
        UserError: there is a folder of that name.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the page's file, such as {path / 'report.html'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def visible(text: str) -> str:
    """Return a text with its control characters made visible."""
    return text.translate(_VISIBLE)


def configuration(run: Path) -> tuple[dict[str, Any], str]:
    """Return the merged configuration of a run, parsed and as text; what cannot be parsed is still shown as text."""
    path = run / RUN_CONFIG
    if not path.is_file():
        return {}, ""
    text = visible(read_bytes(path, max_bytes=MAX_YAML).decode("utf-8", "replace"))
    try:
        config = parse_yaml(text, str(path))
    except UserError:
        return {}, text
    return (config if isinstance(config, dict) else {}), text


def sections(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return settings by section: nested names are joined by dots, values are written as in YAML."""
    plain = [(str(key), _shown(value)) for key, value in config.items() if not isinstance(value, dict)]
    nested = [(str(key), _flat(value)) for key, value in config.items() if isinstance(value, dict) and value]
    return ([("general", plain)] if plain else []) + nested


def _flat(section: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in section.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return str(value)
