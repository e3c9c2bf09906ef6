"""What the network in training writes: a text that continues a prompt or held-out words.

A recipe's own prompt is meant for the recipe's own text. Without one a sample begins a document, as rows of training
do. Where documents are few and long, their beginnings are hardly ever seen, and what the model makes of one says
nothing; there a sample continues words of the held-out text.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from gossamer.data.dataset import Dataset
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.infer.defaults import sampling_for_readers
from gossamer.infer.generation import sample_text
from gossamer.infer.request import SamplingParams
from gossamer.model.causal_lm import CausalLM
from gossamer.train.config import TrainingConfig

__all__ = ["SampleWriter", "held_out_words", "is_in_training_text", "next_command", "why_unreadable"]

_SEARCHED_TOKENS = 1 << 18  # of each set
_LONG = 16  # rows that a document fills on average, beyond which beginnings are rare
_MAX_WORDS, _MAX_CHARACTERS = 12, 80
_READ_TOKENS = 256  # tokens that hold so many words


class SampleWriter:
    """Writes a run's samples.

    Args:
        training: says which prompt they continue, how long they are, and the seed
        dataset: the text that the run learns from

    Attributes:
        prompt: the recipe's prompt, if the tokenizer can read it; else empty
        words: held-out words in its place, or empty where a sample begins a document
    """

    def __init__(self, training: TrainingConfig, dataset: Dataset) -> None:
        self.training, self.dataset = training, dataset
        # A recipe's prompt may not suit the text: no reason to lose a run at its first sample.
        self.prompt = "" if why_unreadable(training.sample_prompt, dataset.tokenizer) else training.sample_prompt
        self.words = "" if self.prompt else held_out_words(dataset, training.sequence_length)

    def write(self, model: CausalLM) -> str:
        """Return a sample, with the text that it continues."""
        sampling = SamplingParams(self.training.sample_tokens, seed=self.training.seed, **sampling_for_readers({}))
        prompt = self.prompt or self.words
        return prompt + "".join(sample_text(model, self.dataset.tokenizer, prompt, sampling))

    def suggested_prompt(self) -> str:
        """Return a prompt that shows what the run has learned; empty if none is known."""
        known = self.prompt if is_in_training_text(self.prompt, self.dataset) else ""
        return known or self.words


def why_unreadable(prompt: str, tokenizer: Tokenizer) -> str | None:
    """Return why the tokenizer cannot read a prompt; None if it can."""
    try:
        tokenizer.encode(prompt)
    except UserError as error:
        return str(error)
    return None


def held_out_words(dataset: Dataset, sequence_length: int) -> str:
    """Return the words in the middle of the most important held-out set, where documents are long; else nothing."""
    learned = dataset.train.token_files.values()
    documents, tokens = sum(file.num_documents for file in learned), sum(file.num_tokens for file in learned)
    held_out = next(iter(dataset.validation.values()))
    if documents * _LONG * sequence_length > tokens or not held_out.num_tokens:
        return ""
    begin = held_out.num_tokens // 2
    text = dataset.tokenizer.decode(held_out.read(begin, min(_READ_TOKENS, held_out.num_tokens - begin)).tolist())
    whole = re.search(rf"(?<=\s)(?:\S+\s+){{{_MAX_WORDS - 1}}}\S+(?=\s)", text)  # the first word may have been cut
    words = " ".join((whole.group() if whole else text).split())
    if len(words) > _MAX_CHARACTERS:
        words = words[:_MAX_CHARACTERS].rpartition(" ")[0] or words[:_MAX_CHARACTERS]
    return "" if "\ufffd" in words or why_unreadable(words, dataset.tokenizer) else words


def is_in_training_text(prompt: str, dataset: Dataset) -> bool:
    """Whether the training text has the prompt, near its beginning."""
    texts = (file.tokens[:_SEARCHED_TOKENS].tolist() for file in dataset.train.token_files.values())
    return any(prompt in dataset.tokenizer.decode(ids) for ids in texts)


def next_command(run: Path, prompt: str) -> str:
    """Return the line that names the command which shows what a run has learned."""
    return f"what it writes: gossamer sample {shlex.quote(str(run))} --prompt {shlex.quote(prompt or 'TEXT')}"
