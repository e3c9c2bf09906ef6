"""What does it cost that templates and grammars run in processes of their own: milliseconds per prompt, request, token?

`python benchmarks/request_cost.py [MODEL]` uses a model's own tokenizer and template, or a byte-level tokenizer and
ChatML. Nothing else should run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from engine_double import write_tokenizer
from gossamer.data.chat.template import ChatTemplate
from gossamer.data.tokenizer import Tokenizer
from gossamer.infer.grammar import Grammars
from gossamer.infer.request import Grammar

TURN = [{"role": "user", "content": "Hello there. " * 20}, {"role": "assistant", "content": "Hi. " * 50}]
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Return the median milliseconds of so many calls."""
    measured = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        measured.append(1000 * (time.perf_counter() - began))
    return median(measured)


def main(folder: Path) -> None:
    """Print a line for each cost."""
    tokenizer = Tokenizer.load(folder)
    began = time.perf_counter()
    template = ChatTemplate(tokenizer)
    print(f"template, once                 {1000 * (time.perf_counter() - began):8.2f} ms")
    for name, said in (("one message", TURN[:1]), ("twenty messages", TURN * 10), ("a message of 1 MiB", None)):
        messages = said or [{"role": "user", "content": "word " * ((1 << 20) // 5)}]
        variables = {"messages": messages, "add_generation_prompt": True, "tools": None}
        process = milliseconds(lambda asked=variables: template._renderer.text(False, asked), 50)  # type: ignore[misc]
        whole = milliseconds(lambda asked=messages: template.render(asked), 10)  # type: ignore[misc]
        print(f"{name:<30} {process:8.2f} ms in the template's process, {whole:8.2f} ms with the tokens")
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    began = time.perf_counter()
    grammars.matcher(grammar)
    print(f"grammars, once                 {1000 * (time.perf_counter() - began):8.2f} ms")
    print(f"a grammar                      {milliseconds(lambda: grammars.matcher(grammar), 50):8.2f} ms")
    matcher, times = grammars.matcher(grammar), []
    for token in tokenizer.encode('{"text":"' + "the quick brown fox " * 20):
        began = time.perf_counter()
        assert matcher.allowed()[token]
        matcher.consume(token)
        assert not matcher.has_ended
        times.append(1000 * (time.perf_counter() - began))
    print(f"a token of it                  {median(times):8.2f} ms, at most {max(times):.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(write_tokenizer(Path(temporary)))
