"""From a configuration to data that is ready to train on: sets of text, one tokenizer for all, tokens in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from gossamer.cache import alone, cached_folder, key_of
from gossamer.data.config import CorpusConfig
from gossamer.data.corpus import open_corpus, readable_size
from gossamer.data.mixture import Mixture
from gossamer.data.progress import Progress
from gossamer.data.sets import TextSet, open_sets
from gossamer.data.shards import Shard
from gossamer.data.tokenise import shards_of
from gossamer.data.tokenizer import Tokenizer, char_tokenizer, train_bpe
from gossamer.errors import UserError

__all__ = ["Dataset", "Mixture", "Shard", "prepare", "prepare_one"]

_FORMAT = 1
_SAMPLE = 64 << 20  # bytes of text that are plenty to train a BPE on
_FEW = 4096  # tokens: the mean of their losses is uncertain by a 64th of what one differs from another


@dataclass(frozen=True, eq=False)
class Dataset:
    """A corpus ready to train on.

    Args:
        train: what to learn from, set by set.
        validation: what to measure on, by name, the most important first; no text of it trained the tokenizer.
        tokenizer: of all.
        fingerprint: of documents, splits, weights and tokenizer (hex).
        description: one line for people.
    """

    train: Mixture
    validation: dict[str, Shard]
    tokenizer: Tokenizer
    fingerprint: str
    description: str

    def warning(self) -> str | None:
        """What to do about held-out text that is too short to tell one model from another by; None if none is."""
        few = {name: shard.num_tokens for name, shard in self.validation.items() if shard.num_tokens < _FEW}
        if not few:
            return None
        held = ", ".join(f"{count:,} tokens ({name})" for name, count in few.items())
        return (
            f"held out are only {held}, too few to trust a loss on them; give more text, or text to measure on as "
            "validation_paths"
        )


def prepare(config: CorpusConfig, tokenizer: Tokenizer | None = None, progress: bool = True) -> Dataset:
    """Read, split and tokenise the corpus, or open what an earlier call has left in the cache.

    Of several processes on one machine that prepare the same corpus, one does the work and the others wait for it.

    Args:
        config: which text, and how.
        tokenizer: use this one instead of the configuration's, as a resumed run does with its own.
        progress: tell on standard error about stages that take long.

    Raises:
        UserError: anything wrong with the text, the tokenizer or the cache folder, in one line.
    """
    report = Progress(progress)
    with alone(_lock(config), report.waiting):
        sets = open_sets(config, report)
        if tokenizer is None:
            tokenizer = _tokenizer(config, sets, report)
        shards: dict[str, dict[str, Shard]] = {}
        for one in sets:
            try:
                shards[one.name] = shards_of(
                    config, one.digest, one.parts, one.pieces, one.num_bytes, tokenizer, report
                )
            except UserError as error:
                raise UserError(f"corpus.sets.{one.name}: {error}" if config.sets else str(error)) from error
    weights = {one.name: one.weight for one in sets if one.corpus}
    train = Mixture({name: shards[name]["train"] for name in weights}, weights)
    validation = {name: found["validation"] for name, found in shards.items()}
    fingerprint = key_of(_FORMAT, [(one.name, one.digest, one.weight) for one in sets], tokenizer.fingerprint)
    return Dataset(train, validation, tokenizer, fingerprint, _description(config, sets, train, validation, tokenizer))


def prepare_one(paths: Iterable[str], config: CorpusConfig, tokenizer: Tokenizer, progress: bool = True) -> Shard:
    """Tokenise all text of ``paths`` as one shard, nothing held out, as for measuring a finished model on it."""
    report = Progress(progress)
    given = tuple(paths)
    with alone(_lock(config, given), report.waiting):
        corpus = open_corpus(given, config, report)
        shards = shards_of(
            config, corpus.digest, ("train",), lambda: corpus.pieces("all"), corpus.num_bytes, tokenizer, report
        )
    return shards["train"]


def _lock(config: CorpusConfig, paths: tuple[str, ...] = ()) -> Path:
    """The lock of those who prepare the same text."""
    values = {key: value for key, value in asdict(config).items() if key not in ("cache_dir", "workers")}
    return config.cache_folder() / "locks" / key_of(values, paths)


def _tokenizer(config: CorpusConfig, sets: list[TextSet], progress: Progress) -> Tokenizer:
    """The configured tokenizer: loaded, or trained on the training text once for each corpus."""
    if config.tokenizer not in ("bpe", "char"):
        return Tokenizer.load(config.tokenizer)
    trained_on = [one for one in sets if one.corpus]
    is_bpe = config.tokenizer == "bpe"
    budgets = _budgets(trained_on) if is_bpe else [one.num_bytes for one in trained_on]
    loaded: list[Tokenizer] = []

    def valid(folder: Path) -> bool:
        try:
            loaded.append(Tokenizer.load(folder))
        except UserError:  # not there, or damaged
            return False
        return True

    def build(folder: Path) -> None:
        total = sum(one.num_bytes for one in trained_on)
        with ExitStack() as reading, ExitStack() as learning:
            advance = reading.enter_context(progress.stage(f"training a {config.tokenizer} tokenizer", total))

            def train_texts(one: TextSet) -> Iterator[str]:
                for piece in one.pieces():
                    if piece.part == "train":
                        yield piece.text
                    advance(len(piece.text.encode()))

            def all_texts() -> Iterator[str]:
                for one, budget in zip(trained_on, budgets, strict=True):
                    if budget:
                        yield from _spread(train_texts(one), one.num_bytes, budget)
                reading.close()
                if is_bpe:
                    learning.enter_context(progress.stage(f"learning {config.vocab_size:,} tokens from it", None))

            made = train_bpe(all_texts(), config.vocab_size) if is_bpe else char_tokenizer(all_texts())
        made.save(folder)

    parts = [(one.digest, budget) for one, budget in zip(trained_on, budgets, strict=True)]
    key = key_of(_FORMAT, parts, config.tokenizer, config.vocab_size if is_bpe else None)
    folder = config.cache_folder() / "tokenizers" / key
    cached_folder(folder, valid, build)
    return loaded[-1] if loaded else Tokenizer.load(folder)


def _budgets(sets: list[TextSet]) -> list[int]:
    """Bytes of each set that a BPE learns from: everything where that is not too much, else as much as it weighs."""
    total, weights = sum(one.num_bytes for one in sets), sum(one.weight for one in sets)
    if total <= _SAMPLE:
        return [one.num_bytes if one.weight else 0 for one in sets]
    return [min(one.num_bytes, round(_SAMPLE * one.weight / weights)) for one in sets]


def _spread(texts: Iterable[str], total: int, budget: int) -> Iterator[str]:
    """About ``budget`` bytes of ``texts``, evenly spread over all ``total`` bytes; everything if it is not more."""
    seen = taken = 0
    for text in texts:
        size = len(text.encode())
        if taken * total <= seen * budget or total <= budget:
            taken += size
            yield text
        seen += size


def _description(
    config: CorpusConfig, sets: list[TextSet], train: Mixture, validation: dict[str, Shard], tokenizer: Tokenizer
) -> str:
    """What the data is, in one line."""
    held_out = sum(shard.num_tokens for shard in validation.values())
    if config.sets or config.validation_sets:
        named = "; ".join(f"{one.name}: {_text(one)}" for one in sets)
        held = ", ".join(f"{name}: {shard.num_tokens:,}" for name, shard in validation.items())
    else:
        (one,) = sets
        named = ("" if config.paths else "no --data given: ") + _text(one)
        held = one.held
    return (
        f"{named}; {train.num_tokens:,} tokens to train on, {held_out:,} held out ({held}); "
        f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size:,}"
    )


def _text(one: TextSet) -> str:
    corpus = one.corpus or one.held_out
    assert corpus is not None
    documents = "1 document" if corpus.num_documents == 1 else f"{corpus.num_documents:,} documents"
    weight = f", weight {one.weight:g}" if one.weight != 1 and one.corpus else ""
    return f"{corpus.name}, {documents}, {readable_size(corpus.num_bytes)}{weight}"
