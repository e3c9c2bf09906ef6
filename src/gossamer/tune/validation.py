"""How well a model in tuning knows examples that are held out, and text that it must not get worse on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gossamer.data.dataset import prepare, prepare_for_evaluation
from gossamer.data.packing import Batch, validation_batches
from gossamer.data.token_files import TokenFile
from gossamer.data.tokenizer import Tokenizer
from gossamer.errors import UserError
from gossamer.hub.find import RUN_CONFIG
from gossamer.reading import user_path
from gossamer.run.validate import Evaluation, FinalEvaluation, InTime, Tally, bytes_of_tokens, tally
from gossamer.train.config import TrainingConfig
from gossamer.train.recipe import Recipe, load_recipe
from gossamer.train.step import Learner
from gossamer.train.world import SINGLE_PROCESS

__all__ = ["ExamplesValidator", "KeptText", "kept_text"]

_MIN_LENGTH = 2
log = logging.getLogger("gossamer")


class KeptText:
    """Text that the model must not get worse on.

    Args:
        file: its tokens
        tokenizer: the tokenizer of the tokens
        training: how much of it is read
        length: tokens of a row
    """

    def __init__(self, file: TokenFile, tokenizer: Tokenizer, training: TrainingConfig, length: int) -> None:
        self._file, self._max_tokens = file, training.eval_tokens
        self._length = max(_MIN_LENGTH, min(length, file.num_tokens))
        self.token_bytes = bytes_of_tokens(file, tokenizer)

    @property
    def num_tokens(self) -> int:
        """How many tokens are read."""
        return min(self._file.num_tokens, self._max_tokens)

    def batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        """Return this process's share of the text."""
        return validation_batches(self._file, world_size, self._length, self._max_tokens, rank, world_size)


def kept_text(recipe: Recipe, tokenizer: Tokenizer, progress: bool) -> KeptText | None:
    """Return the text that a model must not get worse on; None if none is named and its base is no run.

    Args:
        recipe: names the text, or the base whose held-out text it is
        tokenizer: the tokenizer of the base
        progress: whether stages that take long are shown on standard error

    Raises:
        UserError: text that is named cannot be read.
    """
    tuning, training = recipe.tuning, recipe.training
    assert tuning is not None
    length = training.sequence_length
    if tuning.keep:
        corpus = replace(recipe.corpus, paths=(), validation_paths=())
        return KeptText(prepare_for_evaluation(tuning.keep, corpus, tokenizer, progress), tokenizer, training, length)
    file = user_path(training.init_from) / RUN_CONFIG
    if not file.is_file():
        return None
    if (own := load_recipe(file)).tuning is not None:
        return kept_text(own, tokenizer, progress)
    try:
        held_out = next(iter(prepare(own.corpus, tokenizer, progress).validation.values()))
    except UserError as error:
        log.warning("the held-out text of %s is not measured (%s); name text with --keep", training.init_from, error)
        return None
    return KeptText(held_out, tokenizer, training, own.training.sequence_length)


class ExamplesValidator:
    """Measures a network in tuning on examples; text that it must not get worse on is the guard's, before and after.

    Args:
        learner: the network
        name: what the examples are called
        rows: the examples in rows, the same on every process
        token_bytes: [V] bytes of text that each token stands for

    Attributes:
        best_by: the examples, whose loss decides which checkpoint is the best
    """

    def __init__(self, learner: Learner, name: str, rows: Sequence[Batch], token_bytes: np.ndarray) -> None:
        self.best_by = name
        self._learner, self._rows, self._token_bytes = learner, rows, token_bytes

    def measure(self) -> Iterator[tuple[str, Evaluation]]:
        """Measure the examples, as during the run; yields their name and evaluation."""
        yield self.best_by, self._on_examples().evaluation()

    def measure_last(self, in_time: InTime) -> Iterator[tuple[str, FinalEvaluation]]:
        """Measure them at the end of the run: the same again, which is little."""
        for name, found in self.measure():
            yield name, FinalEvaluation(None, found)

    def share_of_last(self, tokens: int) -> float:
        """Return what reading so many tokens is of the reading at the run's end, which is the same."""
        return 1.0

    def _on_examples(self) -> Tally:
        """Return the sums over all rows. Every process computes as many, since a network may be spread over them."""
        learner, world = self._learner, self._learner.world
        own = self._rows[world.rank :: world.size]
        found = tally(learner.model, own, self._token_bytes, learner.mtp)
        if len(own) * world.size < len(self._rows):
            tally(learner.model, self._rows[:1], self._token_bytes, learner.mtp, SINGLE_PROCESS)  # it counts elsewhere
        return Tally(world.all_reduce(found.counts), world.all_reduce(found.drafts))
