"""What runs in a chat template's own process (see ``infer.isolated``): Jinja, in its immutable sandbox.

The sandbox keeps a template away from files and from Python; it does not keep it from running for ever or from filling
the memory, which the process's limits do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gossamer.infer.isolated import Handler, Refused

__all__ = ["LONGEST", "rendering"]

LONGEST = 16 << 20
"""Characters of a prompt at most."""


def rendering() -> Callable[[], Handler]:
    """Prepare nothing but the imports; what is returned makes the handler of one checkpoint's templates.

    The handler takes JSON: ``{"templates": {name: source}}`` first, then ``{"template": name, "variables": {…}}``, to
    which it answers with the text.
    """

    def begin() -> Handler:
        templates: dict[str, Template] = {}

        def handle(message: bytes) -> bytes:
            try:
                asked = json.loads(message)
                if "templates" in asked:
                    environment = _environment()
                    for name, source in asked["templates"].items():
                        templates[name] = environment.from_string(source)
                    return b""
                return _text(templates[asked["template"]], asked["variables"]).encode(errors="surrogatepass")
            except RecursionError as error:
                raise Refused("nested too deeply") from error
            except TemplateError as error:
                raise Refused(_told(error)) from error

        return handle

    return begin


def _text(template: Template, variables: Mapping[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > LONGEST:
            raise Refused(f"it makes a prompt of more than {LONGEST:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _told(error: TemplateError) -> str:
    name = type(error).__name__
    return f"{name}: {error.message or ''}" if name != "TemplateError" else str(error.message)


def _environment() -> ImmutableSandboxedEnvironment:
    """As in transformers' ``chat_template_utils``: what its templates use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` mark what is learnt from; in a prompt they mean nothing."""

    tags = {"generation"}  # noqa: RUF012, as the class above declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block, as a call that gives its text."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Macro) -> str:
        text: str = caller()
        return text


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML; a model was trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)
