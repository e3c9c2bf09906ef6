"""What runs in the process of a chat template (see `isolated`): Jinja, in its immutable sandbox.

The sandbox keeps a template away from files and from Python. The limits of the process keep it from running for ever
and from filling the memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from gossamer.isolated import Handler, RefusedError

__all__ = ["MAX_PROMPT", "rendering"]

MAX_PROMPT = 16 << 20
"""Characters that a prompt may have."""


def rendering() -> Callable[[], Handler]:
    """Return a function that makes the handler of one checkpoint's templates; only the imports are done beforehand.

    The handler receives JSON: first `{"templates": {name: source}}`, then `{"template": name, "variables": {…}}`, which
    it answers with the text. With `"spans": true` the answer is JSON, `{"text": …, "spans": [[begin, end], …]}`: where
    in the text the blocks lie that `{% generation %}` marks as what is learned. With `"cuts": [[count, variables], …]`
    it is a JSON list of [text, null] or [null, refusal] for each beginning of the messages.
    """

    def begin() -> Handler:
        templates: dict[str, Template] = {}

        def handle(message: bytes) -> bytes:
            try:
                values = json.loads(message)
                if "templates" in values:
                    environment = _environment()
                    for name, source in values["templates"].items():
                        templates[name] = environment.from_string(source)
                    return b""
                template, variables = templates[values["template"]], values["variables"]
                if "cuts" in values:
                    texts = [_beginning(template, variables, count, more) for count, more in values["cuts"]]
                    return json.dumps(texts).encode()
                text, spans = _rendered(template, variables)
                answer = json.dumps({"text": text, "spans": spans}) if values.get("spans") else text
                return answer.encode(errors="surrogatepass")
            except RecursionError as error:
                raise RefusedError("nested too deeply") from error
            except TemplateError as error:
                raise RefusedError(_error_text(error)) from error

        return handle

    return begin


def _beginning(
    template: Template, variables: Mapping[str, Any], count: int, more: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """The text of the first messages, or why they are refused."""
    try:
        text, _ = _rendered(template, {**variables, **more, "messages": variables["messages"][:count]})
    except RecursionError:
        return None, "nested too deeply"
    except RefusedError as error:
        return None, str(error)
    except TemplateError as error:
        return None, _error_text(error)
    except Exception as error:  # as of any other answer
        return None, f"{type(error).__name__}: {error}"
    return text, None


def _rendered(template: Template, variables: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a template, and where the blocks lie in it that are learned from."""
    marked = template.environment.extensions[_Generation.identifier]
    assert isinstance(marked, _Generation)
    marked.begin()
    parts = []
    for part in template.generate(variables):
        marked.length += len(part)
        if marked.length > MAX_PROMPT:
            raise RefusedError(f"it makes a prompt of more than {MAX_PROMPT:,} characters")
        parts.append(part)
    return "".join(parts), marked.spans


def _error_text(error: TemplateError) -> str:
    name = type(error).__name__
    return f"{name}: {error.message or ''}" if name != "TemplateError" else str(error.message)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment of `chat_template_utils` in transformers, with all that templates use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    environment.globals["dict"] = _Dictionaries()
    environment.globals["namespace"] = _Namespace
    return environment


class _Generation(Extension):
    """The tags `{% generation %}` … `{% endgeneration %}` around what is learned from, which a prompt ignores.

    Attributes:
        length: of the text so far, outside of the block that is being rendered
        spans: where the blocks begin and end
    """

    tags = {"generation"}  # noqa: RUF012, as the class above declares it
    length: int
    spans: list[tuple[int, int]]

    def begin(self) -> None:
        """Forget the text before."""
        self.length, self.spans = 0, []

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block as a call that returns its text."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_block_text"), [], [], body).set_lineno(line)

    def _block_text(self, caller: Macro) -> str:
        text: str = caller()
        self.spans.append((self.length, self.length + len(text)))
        return text


class _Dictionaries:
    """The `dict` of templates: it makes dictionaries, and has none of the other attributes of Python's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Return a dictionary in which every key has the same value."""
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """The `namespace` of templates, which refuses names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a template may name an attribute self
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}; its name must not begin with an underscore")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write plain JSON, on which models are trained; Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)
