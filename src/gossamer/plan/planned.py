"""From the words of `gossamer plan` to plans: the network and the chips that they name, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.errors import UserError, did_you_mean
from gossamer.hub.find import CONFIG, find_model
from gossamer.plan import (
    Catalogue,
    Chip,
    Fitted,
    Job,
    Plan,
    Serving,
    Workload,
    certified,
    fitted,
    load_catalogue,
    make_plan,
    serve,
    workload_from,
    workload_of,
)
from gossamer.reading import read_object, user_path
from gossamer.train.recipe import load_recipe, recipe_names


def planned_network(word: str) -> Workload:
    """Read a network's sizes.

    Args:
        word: name of a recipe that comes with gossamer, path of a recipe's YAML file, of a config.json, or of a folder
            that holds one

    Raises:
        UserError: it names nothing, or something that no cost can be counted of.
    """
    path = user_path(word)
    if path.is_dir():
        return workload_from(read_object(find_model(path, of_any_kind=True) / CONFIG), word)
    if path.suffix == ".json" and path.is_file():
        return workload_from(read_object(path), word)
    names = recipe_names()
    if word not in names and not path.is_file():
        raise UserError(
            f"unknown model {word!r}{did_you_mean(word, names)} (one of {', '.join(names)}, a recipe's YAML file, or a "
            "Hugging Face config.json or its folder)"
        )
    return workload_of(load_recipe(word).model, path.stem if path.is_file() else word)


# Taken: adapters of usual ranks have about so many parameters.
LORA_SHARE = 0.005


@dataclass(frozen=True)
class Wanted:
    """Which chips, and what is known of them beside the catalogue.

    Attributes:
        chips: each with the shares of its figures that are reached
        catalogue: that they are from
        price: US dollars for a chip and hour, whatever the catalogue says; None: the catalogue's
    """

    chips: tuple[tuple[Chip, Fitted], ...]
    catalogue: Catalogue
    price: float | None

    def price_of(self, chip: Chip) -> tuple[float | None, float]:
        """US dollars for an hour, and how far they may be off."""
        if self.price is not None or chip.price is None:
            return self.price, 0.0
        return self.catalogue.dollars(chip), chip.price.error


def wanted_chips(
    words: Sequence[str], catalogue: str | None = None, certificate: str | None = None, price: float | None = None
) -> Wanted:
    """Find chips by their names, each once.

    Args:
        words: names, several of them in one word with commas between
        catalogue: file of the user's own chips
        certificate: file that `gossamer certify` wrote on a device of the first chip's kind

    Raises:
        UserError: an unknown name, a file that is not what it should be, or a price that is none.
    """
    known = load_catalogue([user_path(catalogue)] if catalogue else [])
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if not names:
        raise UserError(f"which chip? one of {', '.join(known.chips)}")
    chips = list({chip.key: chip for chip in map(known.chip, names)}.values())
    shares = {chip.key: fitted() for chip in chips}
    if certificate is not None:
        first = shares[chips[0].key]
        rates = certified(user_path(certificate), chips[0], first.rates)
        shares[chips[0].key] = Fitted(rates, first.error)
    return Wanted(tuple((chip, shares[chip.key]) for chip in chips), known, price)


def training_plans(work: Workload, wanted: Wanted, count: int, tokens: float, job: Job) -> list[Plan]:
    """A plan for each chip.

    Raises:
        UserError: a number that none can be, or chips that no layout fits.
    """
    if job.batch < job.length:
        raise UserError(f"--batch_tokens {job.batch}: must be >= --sequence_length {job.length:,}")
    return [make_plan(work, chip, count, job, tokens, shares, *wanted.price_of(chip)) for chip, shares in wanted.chips]


def serving_plans(work: Workload, wanted: Wanted, count: int, batch: int, context: int) -> list[Serving]:
    """A service on each chip.

    Raises:
        UserError: a number that none can be, or chips that do not hold it.
    """
    return [
        serve(work, chip, count, batch, context, shares.rates, wanted.price_of(chip)[0])
        for chip, shares in wanted.chips
    ]
