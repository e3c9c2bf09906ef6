"""Samples as people can check them: what is learned, and behind which context."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from gossamer.data.chat.samples import Example, Sample
from gossamer.data.tokenizer import Tokenizer
from gossamer.ops.linear_cross_entropy import IGNORED
from gossamer.tune.examples import Material
from gossamer.units import amount

__all__ = ["print_samples", "sample_lines"]

_CONTEXT, _TARGET, _SPECIAL = "bright_black", "green", "bold"
_LEGEND = "Lines with + are learned, and lines with | are the context that they stand in."


def print_samples(material: Material, count: int) -> None:
    """Print the first samples that are learned from: context in grey behind |, targets in green behind +."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    examples = material.examples
    for line in examples.summary:
        console.print(line, markup=False)
    console.print(_LEGEND, markup=False)
    for index in material.learned[:count]:
        for text in _example_lines(examples.examples[index], examples.tokenizer):
            console.print(text)


def _example_lines(example: Example, tokenizer: Tokenizer) -> Iterator[Text]:
    names = ("chosen", "rejected") if len(example.samples) > 1 and example.label is None else ("",)
    if example.label is not None:
        names = ("rated good" if example.label else "rated bad",)
    for name, sample in zip(names, example.samples, strict=False):
        about = f"{amount(len(sample), 'token')}, {sample.num_targets:,} learned"
        yield Text(f"\n{', '.join(part for part in (example.where, name, about) if part)}", style="bold")
        yield from sample_lines(sample, tokenizer)


def sample_lines(sample: Sample, tokenizer: Tokenizer) -> Iterator[Text]:
    """Yield a sample as lines, each of context or of targets alone; special tokens are spelled."""
    special = {index: token for token, index in tokenizer.special_tokens.items()}
    begin, ids, is_target = 0, sample.input_ids.tolist(), sample.labels != IGNORED
    for end in range(1, len(ids) + 1):
        if end < len(ids) and is_target[end] == is_target[begin]:
            continue
        mark, style = ("+ ", _TARGET) if is_target[begin] else ("| ", _CONTEXT)
        text = _spelled(ids[begin:end], tokenizer, special, style)
        yield from (Text(mark, style=style) + line for line in text.split("\n", allow_blank=True))
        begin = end


def _spelled(ids: list[int], tokenizer: Tokenizer, special: dict[int, str], style: str) -> Text:
    """Return the text of some tokens, with special ones in bold and control characters made visible."""
    text, plain = Text(style=style), list[int]()
    for index in [*ids, None]:
        if index is not None and index not in special:
            plain.append(index)
            continue
        text.append(_visible(tokenizer.decode(plain)))
        plain.clear()
        if index is not None:
            text.append(special[index], style=f"{style} {_SPECIAL}")
    return text


def _visible(text: str) -> str:
    """Return a text that cannot control a terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
