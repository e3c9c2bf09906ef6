"""Chat templates of many families, as the trl package holds them: transformers is the judge of tokens and of masks."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from gossamer.data.chat.forms import form_of, read_record
from gossamer.data.chat.records import Records
from gossamer.data.chat.samples import Sample, build_examples
from gossamer.data.chat.template import ChatTemplate, TemplateRefusal
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError

SPECIAL = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|<(?:start|end)_of_\w+>|<\|?turn\|?>|</?s>|<[be]os>|\[/?INST\]")


def folder_of_trl() -> Path | None:
    found = importlib.util.find_spec("trl")
    return Path(found.origin).parent / "chat_templates" if found and found.origin else None


FOLDER = folder_of_trl()
PATHS = sorted(FOLDER.glob("*.jinja")) if FOLDER else []
# Those that mark what is learned; of the rest most differ from one of them in that alone, and they take a while.
PARAMETERS = [
    pytest.param(path, id=path.stem, marks=() if path.stem.endswith("_training") else pytest.mark.slow)
    for path in PATHS
]
pytestmark = pytest.mark.skipif(not PATHS, reason="trl is not installed")


@pytest.fixture(scope="module", params=PARAMETERS)
def programs(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Both programs with one template and a byte-level tokenizer that has its special tokens."""
    path: Path = request.param
    source = path.read_text(encoding="utf-8")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    special = sorted({"<|endoftext|>", "<s>", "</s>", *SPECIAL.findall(source)})
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    config = {"eos_token": "</s>", "bos_token": "<s>"}
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(core.to_str()), chat_template=source, **config
    )
    tokenizer = Tokenizer(core, "</s>", config, source)
    return SimpleNamespace(tokenizer=tokenizer, template=ChatTemplate(tokenizer), peer=peer, path=path)


TOOLS = [
    {
        "type": "function",
        "function": {"name": "find", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "find", "arguments": {"x": "1 <|im_end|>", "y": 2}}}
ASKED = {"role": "user", "content": "What is <|im_end|></s> 天?"}
SAID = {"role": "assistant", "content": "That is <b>&'.\n\nSo."}
THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning_content": "I see </s>."}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "7", "name": "find", "tool_call_id": "abcdefghi"}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "one turn": ([ASKED, SAID], None),
    "two turns": ([{"role": "system", "content": "Be brief."}, ASKED, SAID, ASKED, SAID], None),
    "reasoning": ([ASKED, THOUGHT, ASKED, SAID, ASKED, THOUGHT], None),
    "tools": ([ASKED, CALLED, RESULT, THOUGHT, ASKED, CALLED, RESULT, SAID], TOOLS),
}


def test_prompts_are_those_of_transformers(programs):
    for messages, tools in CONVERSATIONS.values():
        for count in range(1, len(messages)):
            for variables in ({}, {"enable_thinking": False}) if programs.template.reads_thinking else ({},):
                compare(programs, messages[:count], tools, variables)


def unspoken(message: dict[str, Any]) -> dict[str, Any]:
    """A message without a special token, which transformers would take for that token."""
    return eval(SPECIAL.sub("", repr(message)))


def compare(programs: SimpleNamespace, messages: list[dict[str, Any]], tools: Any, variables: dict[str, Any]) -> None:
    said = list(map(unspoken, messages))
    try:
        wanted = programs.peer.apply_chat_template(
            said, tools=tools, add_generation_prompt=True, return_dict=False, **variables
        )
    except Exception:
        with pytest.raises(TemplateRefusal):
            programs.template.render(said, tools, variables)
        return
    assert list(programs.template.render(said, tools, variables).ids) == wanted


def build(programs: SimpleNamespace, messages: list[dict[str, Any]], tools: Any, turns: str) -> list[Sample]:
    values = {"messages": messages} | ({"tools": tools} if tools else {})
    record = read_record(form_of("F:1", values), "F:1", values, {})
    made = build_examples(Records("sft", (record,), (), 0, ()), programs.tokenizer, context=10**6, turns=turns)
    return [example.samples[0] for example in made.examples]


def targets(sample: Sample) -> list[tuple[int, int]]:
    """Where the targets of a sample begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (sample.labels != -100).astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def test_every_context_is_a_prompt_of_serving_and_every_target_goes_on_from_it(programs):
    tokenizer, template = programs.tokenizer, programs.template
    for messages, tools in CONVERSATIONS.values():
        try:
            samples = build(programs, messages, tools, "exact")
        except UserError as error:
            assert str(error).startswith("F:1: ") and "\n" not in str(error)
            continue
        spans = [(sample, begin, end) for sample in samples for begin, end in targets(sample)]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(spans) == len(answers)
        for (sample, begin, end), index in zip(spans, answers, strict=True):
            context = sample.input_ids[:begin].tolist()
            asked = [
                variables
                for variables in ({"enable_thinking": True}, {"enable_thinking": False})
                if list(template.render(messages[:index], tools, variables).ids) == context
            ]
            assert asked, "no prompt of serving"
            text = tokenizer.decode(sample.input_ids[:end].tolist(), special=True)
            transcripts = [
                programs.peer.apply_chat_template(messages[: index + 1], tools=tools, tokenize=False, **variables)
                for variables in asked
            ]
            assert any(whole.rstrip() in (text, text.removesuffix("</s>")) for whole in transcripts)
            special = set(tokenizer.special_ids)
            assert sample.input_ids[end - 1] in special


def test_joined_masks_are_those_of_transformers(programs):
    if not programs.template.marks_answers:
        return  # transformers has no mask for it
    for messages, tools in CONVERSATIONS.values():
        if tools and programs.template.tools is None:
            continue  # calls in a form that serving cannot read
        said = list(map(unspoken, messages))
        try:
            wanted = programs.peer.apply_chat_template(
                said, tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception:
            with pytest.raises(UserError):
                build(programs, said, tools, "joined")
            continue
        (sample,) = build(programs, said, tools, "joined")
        assert sample.input_ids.tolist() == wanted["input_ids"]
        assert (sample.labels != -100).astype(int).tolist() == wanted["assistant_masks"]
