"""schemathesis over the OpenAPI description: no 5xx, no status that is not described, no answer of another shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema_rs import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from gossamer.reading import parse_json
from live_service import Live, live

KEY = "a-key-that-only-the-fuzzer-knows"
# A body may be right by its description and still ask for too many tokens, another model or a tool that is not there.
EXCLUDED = [positive_data_acceptance]
answers: Counter[str] = Counter()


@pytest.fixture(scope="module")
def fuzzed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    ratings = keys.parent / "ratings.jsonl"
    with live(folder, build={"max_model_len": 400}, keys=keys, max_tokens=200, feedback=ratings) as service:
        yield service
        for line in ratings.read_text().splitlines():
            assert {"messages", "completion", "label", "model", "rating_id"} <= parse_json(line, "a rating").keys()
        print("\nanswers by operation and status:", *sorted(answers.items()), sep="\n  ")


def is_right(case: schemathesis.Case, description: dict[str, Any]) -> bool:
    """Whether a body keeps to its description: what was to be one kind of message may have become another."""
    if not isinstance(case.body, dict):
        return False
    schema = description["paths"][case.operation.path][case.method.lower()]["requestBody"]["content"][case.media_type]
    found: bool = Draft202012Validator(schema["schema"] | {"components": description["components"]}).is_valid(case.body)
    return found


def fuzz(service: Live, examples: int, mode: GenerationMode, **how: Any) -> None:
    """Send `examples` requests to every operation, made after its description (POSITIVE) or against it."""
    headers = {"Authorization": f"Bearer {KEY}"}
    description = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=headers)

    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and len(str(case.body)) % 2:
            case.body.pop("model", None)  # a made-up name would end every request at its door
        harmless = mode is GenerationMode.NEGATIVE and is_right(case, description.raw_schema)
        excluded = [*EXCLUDED, negative_data_rejection] if harmless else EXCLUDED
        answer = case.call_and_validate(headers=headers, excluded_checks=excluded)
        answers[f"{case.method} {case.operation.path} {answer.status_code}"] += 1
        assert service.service.engine.state == "ready"

    for result in description.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
            continue  # nothing that could be wrong
        few = settings(max_examples=examples, suppress_health_check=list(HealthCheck), phases=[Phase.generate], **how)
        few(given(operation.as_strategy(generation_mode=mode))(check))()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_a_little(fuzzed: Live, mode: GenerationMode) -> None:
    fuzz(fuzzed, 8, mode, derandomize=True)  # the same at every run; new ones are for the many


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_a_lot(fuzzed: Live, mode: GenerationMode) -> None:
    fuzz(fuzzed, 300, mode)
