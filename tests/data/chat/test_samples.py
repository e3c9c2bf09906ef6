"""Samples: contexts are the prompts of serving, targets what is generated there, and nothing else is learned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine_double import write_tokenizer
from family_templates import TEMPLATES, write_family_tokenizer
from gossamer.data.chat.forms import form_of, read_record
from gossamer.data.chat.records import Records
from gossamer.data.chat.samples import Examples, Sample, build_examples
from gossamer.data.chat.template import ChatTemplate
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError

USER = {"role": "user", "content": "q"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d"}}]


def answer(text: str = "a", reasoning: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"reasoning_content": reasoning} if reasoning else {}), **more}


def records_of(*lines: dict[str, Any]) -> Records:
    places = [f"F:{number}" for number in range(1, len(lines) + 1)]
    found = [read_record(form_of(place, line), place, line, {}) for place, line in zip(places, lines, strict=True)]
    return Records(form_of("F:1", lines[0]).method, tuple(found), (), 0, ())


def build(tokenizer: Tokenizer, *lines: dict[str, Any], context: int = 4096, **options: Any) -> Examples:
    return build_examples(records_of(*lines), tokenizer, context=context, **options)


def spans(tokenizer: Tokenizer, sample: Sample) -> list[tuple[bool, str]]:
    """The text of a sample, cut where learned and other tokens meet."""
    cuts = np.flatnonzero(np.diff(sample.labels != -100)) + 1
    parts = zip(np.split(sample.input_ids, cuts), np.split(sample.labels, cuts), strict=True)
    return [(bool(labels[0] != -100), tokenizer.decode(ids.tolist(), special=True)) for ids, labels in parts]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    made = {}
    for form in TEMPLATES:
        tokenizer = Tokenizer.load(write_family_tokenizer(tmp_path_factory.mktemp(form), form))
        made[form] = SimpleNamespace(tokenizer=tokenizer, template=ChatTemplate(tokenizer))
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer as those that are trained here, without a chat template."""
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("base"), form=None))


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize("form", TEMPLATES)
def test_contexts_are_prompts_of_serving_and_targets_follow(families, form):
    tokenizer, template = families[form].tokenizer, families[form].template
    messages = [
        USER,
        answer("", tool_calls=[CALL]),
        {"role": "tool", "content": "7"},
        answer("b", "r"),
        USER,
        answer("c"),
    ]
    made = build(tokenizer, {"messages": messages, "tools": TOOLS})
    plain, thought = ({"enable_thinking": wish} for wish in (False, True))
    wanted = [
        (messages[:1], plain),
        (messages[:3], thought),
        (messages[:5], plain),
    ]
    contexts = [list(template.render(said, TOOLS, variables).ids) for said, variables in wanted]
    found = []
    for example in made.examples:
        (sample,) = example.samples
        starts = np.flatnonzero(np.diff((sample.labels != -100).astype(int)) == 1) + 1
        found += [sample.input_ids[:start].tolist() for start in starts]
        assert sample.input_ids[-1] == sample.labels[-1] == tokenizer.special_tokens["<|im_end|>"]
    assert found == contexts
    targets = [
        text for example in made.examples for is_target, text in spans(tokenizer, example.samples[0]) if is_target
    ]
    thought_text = "r\n</think>\n\nb<|im_end|>"
    assert targets[1:] == [thought_text if form == "qwen3_5" else f"<think>\n{thought_text}", "c<|im_end|>"]
    assert "tool_call" in targets[0] and targets[0].endswith("</tool_call><|im_end|>")
    assert made.end_ids == (tokenizer.eot_id,)


def test_turns_that_are_shown_otherwise_later_are_samples_of_their_own(families):
    tokenizer = families["qwen3_5"].tokenizer
    line = {"messages": [USER, answer("a"), USER, answer("b")]}
    made = build(tokenizer, line)
    assert [spans(tokenizer, example.samples[0])[-1] for example in made.examples] == [
        (True, "a<|im_end|>"),
        (True, "b<|im_end|>"),
    ]
    assert any("1 conversations → 2 samples" in line for line in made.summary)
    (last,) = build(tokenizer, line, turns="last").examples
    assert spans(tokenizer, last.samples[0])[-1] == (True, "b<|im_end|>")


def test_without_reasoning_in_the_data_none_is_asked_for_by_default(families):
    tokenizer = families["qwen3_5"].tokenizer
    made = build(tokenizer, {"messages": [USER, answer()]})
    assert made.disable_thinking and any("asks for none" in line for line in made.summary)
    served = ChatTemplate(made.tokenizer)
    ids = list(served.render([USER]).ids)
    assert ids == made.examples[0].samples[0].input_ids[: len(ids)].tolist()
    assert served.render([USER], None, {"enable_thinking": True}).thinking
    mixed = build(tokenizer, {"messages": [USER, answer()]}, {"messages": [USER, answer("b", "r")]})
    assert not mixed.disable_thinking and mixed.tokenizer is tokenizer


def test_plain_texts_begin_and_end_as_serving_expects(base):
    made = build(base, {"prompt": "ab", "completion": "cd"}, {"text": "xy"})
    end = base.eot_id
    first, second = (example.samples[0] for example in made.examples)
    assert first.input_ids.tolist() == [*base.prefix_ids, *base.encode("abcd"), end]
    assert first.labels.tolist() == [-100] * (1 + 2) + [*base.encode("cd"), end]
    assert second.input_ids.tolist() == [end, *base.encode("xy"), end]
    assert second.labels.tolist() == [-100, *base.encode("xy"), end]


def test_messages_need_a_template(base):
    with pytest.raises(UserError, match=r"F:1: messages need a chat template.*--template chatml"):
        build(base, {"messages": [USER, answer()]})


@pytest.mark.parametrize("too_long", ["drop", "cut", "refuse"])
def test_samples_that_are_too_long(base, too_long):
    lines = [{"prompt": "a" * 30, "completion": "b" * 30}, {"prompt": "a" * 90, "completion": "b"}, {"text": "c"}]
    if too_long == "refuse":
        with pytest.raises(UserError, match="F:1: a sample of 62 tokens is longer than the context of 50"):
            build(base, *lines, context=50, too_long=too_long)
        return
    made = build(base, *lines, context=50, too_long=too_long)
    assert [example.where for example in made.examples] == (["F:3"] if too_long == "drop" else ["F:1", "F:3"])
    assert any(f"{1 if too_long == 'cut' else 2} examples of more than 50 tokens" in line for line in made.summary)
    if too_long == "cut":
        assert len(made.examples[0].samples[0]) == 50 and made.examples[0].samples[0].num_targets == 50 - 31
    with pytest.raises(UserError, match="no sample fits into 10 tokens"):
        build(base, *lines[:2], context=10, too_long=too_long)


def test_pairs_share_their_context(families):
    tokenizer = families["qwen3_5"].tokenizer
    line = {"prompt": [USER], "chosen": [answer("a", "r")], "rejected": [answer("b")]}
    (example,) = build(tokenizer, line).examples
    chosen, rejected = (spans(tokenizer, sample) for sample in example.samples)
    assert chosen[0] == rejected[0] and chosen[0][1].endswith("<think>\n")
    assert (chosen[1][1], rejected[1][1]) == ("r\n</think>\n\na<|im_end|>", "\n</think>\n\nb<|im_end|>")


def test_ratings_have_their_completion_behind_the_next_prompt_too(base):
    lines = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n % 2} for n in range(3)]
    made = build(base, *lines)
    texts = [[base.decode(sample.input_ids.tolist()) for sample in example.samples] for example in made.examples]
    assert texts == [["p0c0", "p1c0"], ["p1c1", "p2c1"], ["p2c2", "p0c2"]]
    assert [[sample.num_targets for sample in example.samples] for example in made.examples] == [[3, 3]] * 3
    assert [example.label for example in made.examples] == [False, True, False]
    for same in (lines[:1], [lines[0], lines[0] | {"label": 1}]):
        assert {len(example.samples) for example in build(base, *same).examples} == {1}


def test_the_next_prompt_is_another_one(base):
    """Several answers to a prompt are often rated one after the other."""
    lines = [{"prompt": prompt, "completion": f"c{n}", "label": n % 2} for n, prompt in enumerate("aabbbca")]
    texts = [base.decode(example.samples[1].input_ids.tolist()) for example in build(base, *lines).examples]
    assert texts == ["bc0", "bc1", "cc2", "cc3", "cc4", "ac5", "bc6"]
