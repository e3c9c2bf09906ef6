"""From a configuration to data that is ready to train on: `prepare` is where to start reading.

The configured sets of text are opened and split, one tokenizer is loaded or trained for all of them, and their tokens
are opened from the cache or written there first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from gossamer.cache import cached_folder, json_digest
from gossamer.data.config import DEFAULT_VALIDATION_SET, CorpusConfig, SetConfig
from gossamer.data.corpus import Chunk, Corpus, Part, SplitRule, open_corpus, split_rule
from gossamer.data.progress import ProgressDisplay
from gossamer.data.token_files import Mixture, TokenFile
from gossamer.data.tokenize import open_or_tokenize
from gossamer.data.tokenizer import Tokenizer, char_tokenizer, train_bpe
from gossamer.errors import UserError
from gossamer.files import locked
from gossamer.units import decimal_size

__all__ = ["Dataset", "TextSet", "open_sets", "prepare", "prepare_for_evaluation"]

_FORMAT = 1
_MAX_BPE_TEXT = 64 << 20  # bytes of text that are plenty to train a BPE on
_MIN_VALIDATION_TOKENS = 4096  # with fewer, the mean loss is uncertain by more than a 64th of the spread of the losses


@dataclass(frozen=True, eq=False)
class Dataset:
    """A corpus ready to train on.

    Attributes:
        train: the sets of text to learn from
        validation: held-out text by name, the most important first; none of it trained the tokenizer
        tokenizer: the tokenizer of all sets
        fingerprint: hash of documents, splits, weights and tokenizer (hex)
        description: one line for people
    """

    train: Mixture
    validation: dict[str, TokenFile]
    tokenizer: Tokenizer
    fingerprint: str
    description: str

    def warning(self) -> str | None:
        """Return advice if held-out text is too short to tell one model from another by, else None."""
        short = {
            name: file.num_tokens for name, file in self.validation.items() if file.num_tokens < _MIN_VALIDATION_TOKENS
        }
        if not short:
            return None
        listed = ", ".join(f"{count:,} tokens ({name})" for name, count in short.items())
        return (
            f"only {listed} are held out, too few to trust a loss on them; give more text, or held-out text as "
            "validation_paths"
        )


def prepare(config: CorpusConfig, tokenizer: Tokenizer | None = None, progress: bool = True) -> Dataset:
    """Read, split and tokenize the corpus, or open what an earlier call has left in the cache.

    If several processes on one machine prepare the same corpus, one does the work and the others wait for it.

    Args:
        config: which text, and how it becomes tokens
        tokenizer: used instead of the configured one, as by a resumed run, which keeps its own
        progress: whether stages that take long are shown on standard error

    Raises:
        UserError: anything is wrong with the text, the tokenizer or the cache folder, in one line.
    """
    display = ProgressDisplay(progress)
    with locked(_lock_file(config), display.waiting):
        sets = open_sets(config, display)
        if tokenizer is None:
            tokenizer = _open_tokenizer(config, sets, display)
        files: dict[str, dict[str, TokenFile]] = {}
        for text in sets:
            try:
                files[text.name] = open_or_tokenize(
                    config,
                    digest=text.digest,
                    parts=text.parts,
                    read=text.read,
                    num_bytes=text.num_bytes,
                    tokenizer=tokenizer,
                    progress=display,
                )
            except UserError as error:
                raise UserError(f"corpus.sets.{text.name}: {error}" if config.sets else str(error)) from error
    weights = {text.name: text.weight for text in sets if text.corpus}
    train = Mixture({name: files[name]["train"] for name in weights}, weights)
    validation = {name: parts["validation"] for name, parts in files.items()}
    fingerprint = json_digest(_FORMAT, [(text.name, text.digest, text.weight) for text in sets], tokenizer.fingerprint)
    return Dataset(train, validation, tokenizer, fingerprint, _description(config, sets, train, validation, tokenizer))


def prepare_for_evaluation(
    paths: Iterable[str], config: CorpusConfig, tokenizer: Tokenizer, progress: bool = True
) -> TokenFile:
    """Tokenize all text of `paths` into one file, with nothing held out, to measure a finished model on it."""
    display = ProgressDisplay(progress)
    given = tuple(paths)
    with locked(_lock_file(config, given), display.waiting):
        corpus = open_corpus(given, config, display)
        files = open_or_tokenize(
            config,
            digest=corpus.digest,
            parts=("train",),
            read=lambda: corpus.read("all"),
            num_bytes=corpus.num_bytes,
            tokenizer=tokenizer,
            progress=display,
        )
    return files["train"]


def _lock_file(config: CorpusConfig, paths: tuple[str, ...] = ()) -> Path:
    """The lock that is held by the one process that prepares this text."""
    values = {key: value for key, value in asdict(config).items() if key not in ("cache_dir", "workers")}
    return config.cache_folder() / "locks" / json_digest(values, paths)


# The sets of text.


@dataclass(frozen=True)
class TextSet:
    """A named set of text, and how it is split.

    Attributes:
        name: the name of the set and of its held-out part
        weight: share of the training tokens, relative to the other sets; 0 if the set is not trained on
        corpus: the text that is trained on, all or part of it; None if the set is held out as a whole
        rule: which part of `corpus` is held out
        validation_text: held-out text that was given explicitly
        validation_source: where the validation text comes from, for people
    """

    name: str
    weight: float
    corpus: Corpus | None
    rule: SplitRule
    validation_text: Corpus | None
    validation_source: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that the set has."""
        return ("train", "validation") if self.corpus else ("validation",)

    @property
    def digest(self) -> str:
        """A hash of the documents and the split."""
        corpus, validation = (text and text.digest for text in (self.corpus, self.validation_text))
        return json_digest(corpus, self.rule, validation)

    @property
    def num_bytes(self) -> int:
        """The UTF-8 bytes of all text of the set."""
        return sum(text.num_bytes for text in (self.corpus, self.validation_text) if text)

    def read(self) -> Iterator[Chunk]:
        """Yield all text of the set in chunks, each with the part that it belongs to."""
        train = self.corpus.read(self.rule) if self.corpus else ()
        return chain(train, self.validation_text.read("all", "validation") if self.validation_text else ())


def open_sets(config: CorpusConfig, progress: ProgressDisplay) -> list[TextSet]:
    """Open the configured sets, or the only one, and after them the sets that are held out as a whole.

    Raises:
        UserError: a path is missing, unreadable or binary, a set holds no text, or two sets hold the same file.
    """
    sets = config.sets or {DEFAULT_VALIDATION_SET: SetConfig(config.paths, 1.0, config.validation_paths)}
    keys = {name: f"corpus.sets.{name}" if config.sets else "" for name in sets}

    def opened(key: str, paths: Iterable[str], without: Iterable[Corpus] = ()) -> Corpus:
        try:
            return open_corpus(paths, config, progress, without)
        except UserError as error:
            raise UserError(f"{key}: {error}" if key else str(error)) from error

    extra = {name: opened(f"corpus.validation_sets.{name}", paths) for name, paths in config.validation_sets.items()}
    explicit = {
        name: opened(keys[name] and f"{keys[name]}.validation_paths", text.validation_paths)
        for name, text in sets.items()
        if text.validation_paths
    }
    never_trained_on = [*extra.values(), *explicit.values()]
    found: list[TextSet] = []
    owners: dict[object, str] = {}
    for name, text in sets.items():
        corpus = opened(keys[name], text.paths, never_trained_on)
        for path, _ in corpus.files:
            if (owner := owners.setdefault(path, name)) != name:
                raise UserError(f"{keys[name]}: {path} is in set {owner!r}, too; leave it out of one of them")
        validation_text = explicit.get(name)
        rule: SplitRule = "all" if validation_text else split_rule(corpus)
        by_rule = {"documents": "about a tenth of the documents", "tails": "the last tenth of every document"}
        validation_source = by_rule.get(rule, ", ".join(text.validation_paths))
        found.append(TextSet(name, text.weight, corpus, rule, validation_text, validation_source))
    return found + [TextSet(name, 0.0, None, "all", corpus, corpus.name) for name, corpus in extra.items()]


# The tokenizer of all sets.


def _open_tokenizer(config: CorpusConfig, sets: list[TextSet], progress: ProgressDisplay) -> Tokenizer:
    """Load the configured tokenizer, or train it on the training text, once for each corpus."""
    if config.tokenizer not in ("bpe", "char"):
        return Tokenizer.load(config.tokenizer)
    train_sets = [text for text in sets if text.corpus]
    is_bpe = config.tokenizer == "bpe"
    budgets = _bpe_budgets(train_sets) if is_bpe else [text.num_bytes for text in train_sets]
    loaded: list[Tokenizer] = []

    def is_valid(folder: Path) -> bool:
        try:
            loaded.append(Tokenizer.load(folder))
        except UserError:  # not there, or damaged
            return False
        return True

    def build(folder: Path) -> None:
        total = sum(text.num_bytes for text in train_sets)
        with ExitStack() as reading, ExitStack() as learning:
            advance = reading.enter_context(progress.stage(f"training a {config.tokenizer} tokenizer", total))

            def train_texts(text: TextSet) -> Iterator[str]:
                for chunk in text.read():
                    if chunk.part == "train":
                        yield chunk.text
                    advance(len(chunk.text.encode()))

            def all_texts() -> Iterator[str]:
                for text, budget in zip(train_sets, budgets, strict=True):
                    if budget:
                        yield from _spread_sample(train_texts(text), text.num_bytes, budget)
                reading.close()
                if is_bpe:
                    learning.enter_context(progress.stage(f"learning {config.vocab_size:,} tokens from it", None))

            trained = train_bpe(all_texts(), config.vocab_size) if is_bpe else char_tokenizer(all_texts())
        trained.save(folder)

    texts = [(text.digest, budget) for text, budget in zip(train_sets, budgets, strict=True)]
    key = json_digest(_FORMAT, texts, config.tokenizer, config.vocab_size if is_bpe else None)
    folder = config.cache_folder() / "tokenizers" / key
    cached_folder(folder, is_valid, build)
    return loaded[-1] if loaded else Tokenizer.load(folder)


def _bpe_budgets(sets: list[TextSet]) -> list[int]:
    """Return how many bytes of each set a BPE learns from: all, or a share by weight if all would be too much."""
    total, weights = sum(text.num_bytes for text in sets), sum(text.weight for text in sets)
    if total <= _MAX_BPE_TEXT:
        return [text.num_bytes if text.weight else 0 for text in sets]
    return [min(text.num_bytes, round(_MAX_BPE_TEXT * text.weight / weights)) for text in sets]


def _spread_sample(texts: Iterable[str], total: int, budget: int) -> Iterator[str]:
    """Yield about `budget` bytes of `texts`, spread evenly over all `total` bytes, or everything if that is less."""
    seen = sampled = 0
    for text in texts:
        size = len(text.encode())
        if sampled * total <= seen * budget or total <= budget:
            sampled += size
            yield text
        seen += size


# The description of the data, in one line.


def _description(
    config: CorpusConfig, sets: list[TextSet], train: Mixture, validation: dict[str, TokenFile], tokenizer: Tokenizer
) -> str:
    num_validation_tokens = sum(file.num_tokens for file in validation.values())
    if config.sets or config.validation_sets:
        texts = "; ".join(f"{text.name}: {_describe_set(text)}" for text in sets)
        split = ", ".join(f"{name}: {file.num_tokens:,}" for name, file in validation.items())
    else:
        (text,) = sets
        texts = ("" if config.paths else "no --data given: ") + _describe_set(text)
        split = text.validation_source
    return (
        f"{texts}; {train.num_tokens:,} tokens to train on, {num_validation_tokens:,} held out ({split}); "
        f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size:,}"
    )


def _describe_set(text: TextSet) -> str:
    corpus = text.corpus or text.validation_text
    assert corpus is not None
    documents = "1 document" if corpus.num_documents == 1 else f"{corpus.num_documents:,} documents"
    weight = f", weight {text.weight:g}" if text.weight != 1 and text.corpus else ""
    return f"{corpus.name}, {documents}, {decimal_size(corpus.num_bytes)}{weight}"
