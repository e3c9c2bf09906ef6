"""The configured sets of text, opened: which files are trained on, which are held out, and under which names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from gossamer.cache import key_of
from gossamer.data.config import HELD_OUT_NAME, CorpusConfig, SetConfig
from gossamer.data.corpus import Corpus, Part, Piece, Rule, open_corpus, split_rule
from gossamer.data.progress import Progress
from gossamer.errors import UserError

__all__ = ["TextSet", "open_sets"]


@dataclass(frozen=True)
class TextSet:
    """Text with a name, and how it is split.

    Args:
        name: of its held-out part.
        weight: share of the training tokens, relative to the other sets'; 0: not trained on.
        corpus: what is trained on, all or part of it; None: the set is held out as a whole.
        rule: which part of ``corpus`` is held out.
        held_out: explicit held-out text.
        held: how the held-out part came about, for people.
    """

    name: str
    weight: float
    corpus: Corpus | None
    rule: Rule
    held_out: Corpus | None
    held: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """Which parts it has."""
        return ("train", "validation") if self.corpus else ("validation",)

    @property
    def digest(self) -> str:
        """Fingerprint of the documents and the split."""
        corpus, held_out = (found and found.digest for found in (self.corpus, self.held_out))
        return key_of(corpus, self.rule, held_out)

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of its text."""
        return sum(found.num_bytes for found in (self.corpus, self.held_out) if found)

    def pieces(self) -> Iterator[Piece]:
        """Read all of its text."""
        train = self.corpus.pieces(self.rule) if self.corpus else ()
        return chain(train, self.held_out.pieces("all", "validation") if self.held_out else ())


def open_sets(config: CorpusConfig, progress: Progress) -> list[TextSet]:
    """Open every set that the configuration names, or the one that it is; then those that are held out as a whole.

    Raises:
        UserError: a path is missing, unreadable or binary, a set holds no text, or two sets hold the same file.
    """
    sets = config.sets or {HELD_OUT_NAME: SetConfig(config.paths, 1.0, config.validation_paths)}
    keys = {name: f"corpus.sets.{name}" if config.sets else "" for name in sets}

    def opened(key: str, paths: Iterable[str], without: Iterable[Corpus] = ()) -> Corpus:
        try:
            return open_corpus(paths, config, progress, without)
        except UserError as error:
            raise UserError(f"{key}: {error}" if key else str(error)) from error

    extra = {name: opened(f"corpus.validation_sets.{name}", paths) for name, paths in config.validation_sets.items()}
    explicit = {
        name: opened(keys[name] and f"{keys[name]}.validation_paths", one.validation_paths)
        for name, one in sets.items()
        if one.validation_paths
    }
    never_trained_on = [*extra.values(), *explicit.values()]
    found: list[TextSet] = []
    owners: dict[object, str] = {}
    for name, one in sets.items():
        corpus = opened(keys[name], one.paths, never_trained_on)
        for path, _ in corpus.files:
            if (owner := owners.setdefault(path, name)) != name:
                raise UserError(f"{keys[name]}: {path} is in set {owner!r}, too; leave it out of one of them")
        held_out = explicit.get(name)
        rule: Rule = "all" if held_out else split_rule(corpus)
        how = {"documents": "about a tenth of the documents", "tails": "the last tenth of every document"}
        held = how.get(rule, ", ".join(one.validation_paths))
        found.append(TextSet(name, one.weight, corpus, rule, held_out, held))
    return found + [TextSet(name, 0.0, None, "all", corpus, corpus.name) for name, corpus in extra.items()]
