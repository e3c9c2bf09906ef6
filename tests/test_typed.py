"""Declared types and ranges: every number of every configuration has one, and what is outside gets one short line."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.cli import VERBS
from gossamer.data.config import CorpusConfig, SetConfig
from gossamer.errors import UserError
from gossamer.infer.options import EngineOptions, SamplingOptions
from gossamer.model.config import ModelConfig
from gossamer.serve.options import ServeOptions
from gossamer.train.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from gossamer.typed import Range, check_fields, convert, shown

CONFIGURATIONS = (
    ModelConfig, CorpusConfig, SetConfig, OptimizerConfig, ScheduleConfig, TrainingConfig, ServeOptions, EngineOptions,
    SamplingOptions,
)  # fmt: skip
# Whole numbers that count from a list of the same configuration, which bounds them.
INDICES = {"mlp_only_layers"}
HOSTILE: list[Any] = [
    10**30, 2**63, -(2**63), 1e300, -1e300, int("9" * 4000), 10**5000, float("nan"), float("inf"), -float("inf"),
    "1", "", [], {}, [[1]],
]  # fmt: skip


def numbers(hint: Any, bounded: bool = False) -> list[bool]:
    """Of each number in a type, whether it has a range."""
    if hint in (int, float):
        return [bounded]
    if get_origin(hint) is Annotated:
        kind, *more = get_args(hint)
        return numbers(kind, any(isinstance(one, Range) for one in more))
    return [] if get_origin(hint) is Literal else [one for part in get_args(hint) for one in numbers(part)]


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_every_number_of_a_configuration_has_a_range(kind: type) -> None:
    hints = get_type_hints(kind, include_extras=True)
    assert [name for name, hint in hints.items() if not all(numbers(hint)) and name not in INDICES] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_number_of_the_command_line_has_a_range(verb: str) -> None:
    hints = get_type_hints(VERBS[verb], include_extras=True)
    assert {name for name, hint in hints.items() if not all(numbers(hint)) and name != "return"} == set()


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_what_no_value_can_be_is_refused_in_one_line(kind: type) -> None:
    hints = get_type_hints(kind, include_extras=True)
    for name in [name for name, hint in hints.items() if numbers(hint)]:
        for value in [*HOSTILE, True]:
            if value == [] and "tuple" in str(hints[name]):
                continue
            with pytest.raises(UserError) as caught:
                kind(**{name: value})
            assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@dataclass(frozen=True)
class Sample:
    share: Annotated[float, Range(0, 1, excludes_minimum=True)] = 0.5
    pair: tuple[Annotated[int, Range(-3, 3, excludes_maximum=True)], ...] = ()
    maybe: Annotated[int, Range(1, 5)] | None = None
    kind: Literal["short", "long"] = "short"

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, "share = 0: must be above 0 and at most 1"),
        ({"pair": [1, 3]}, "pair = 3: must be from -3 to below 3"),
        ({"pair": [1, 1.5]}, "pair = [1, 1.5]: expected a list, each a whole number"),
        ({"maybe": 6}, "maybe = 6: must be from 1 to 5"),
        ({"maybe": True}, "maybe = True: expected a whole number or null"),
        ({"kind": "shrt"}, "kind = 'shrt': expected one of short, long; did you mean 'short'?"),
    ],
)
def test_the_line_names_field_and_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Sample(**values)
    assert str(caught.value) == message


def test_fields_become_what_they_declare() -> None:
    made = Sample(share=1, pair=[1, 2], maybe=5)
    assert made == Sample(1.0, (1, 2), 5) and type(made.share) is float and type(made.pair) is tuple
    assert str(convert(-0.0, float, "x")) == "0.0"


@given(st.floats(allow_nan=False) | st.integers(), st.booleans(), st.booleans())
def test_a_range_is_an_interval(value: float, above: bool, below: bool) -> None:
    allowed = Range(-1, 2, above, below)
    assert (value in allowed) == (-1 <= value <= 2 and not (above and value == -1) and not (below and value == 2))


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.tuples(inner)))
def test_whatever_is_shown_is_short_and_printable(value: Any) -> None:
    assert len(shown(value)) <= 62
    shown(value).encode()
