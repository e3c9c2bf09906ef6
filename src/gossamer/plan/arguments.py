"""What `gossamer plan` is asked: the network and the chips that its words name, and a plan for each chip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gossamer.cost.network import Network, network_of
from gossamer.errors import UserError, did_you_mean
from gossamer.hub.find import CONFIG, find_model
from gossamer.plan.catalogue import Catalogue, Chip, load_catalogue
from gossamer.plan.cluster_plan import ClusterPlan, make_plan
from gossamer.plan.efficiency import FittedEfficiency, apply_certificate, load_fitted_efficiency
from gossamer.plan.other_families import network_from_json
from gossamer.plan.serving import Serving, plan_serving
from gossamer.plan.timing import Job
from gossamer.reading import read_object, user_path
from gossamer.train.recipe import CONTINUE_RECIPE, load_recipe, recipe_names


def planned_network(word: str) -> Network:
    """Return the account of the network that a word names.

    Args:
        word: the name of a recipe that comes with gossamer, or the path of a recipe's YAML file, of a config.json, or
            of a folder that holds one

    Raises:
        UserError: it names nothing, or something whose cost cannot be counted.
    """
    path = user_path(word)
    if path.is_dir():
        return network_from_json(read_object(find_model(path, of_any_kind=True) / CONFIG), word)
    if path.suffix == ".json" and path.is_file():
        return network_from_json(read_object(path), word)
    names = [name for name in recipe_names() if name != CONTINUE_RECIPE]  # which has no network of its own
    if word not in names and not path.is_file():
        raise UserError(
            f"unknown model {word!r}{did_you_mean(word, names)} (one of {', '.join(names)}, a recipe's YAML file, or a "
            "Hugging Face config.json or its folder)"
        )
    return network_of(load_recipe(word).model, path.stem if path.is_file() else word)


LORA_SHARE = 0.005
"""Share of the parameters that adapters of usual ranks have; an assumption."""


@dataclass(frozen=True)
class ChosenChips:
    """The chips that are asked about, and what is known of them beside the catalogue.

    Attributes:
        chips: each chip with the shares of its figures that are reached
        catalogue: the catalogue that they are from
        price: US dollars per chip-hour, whatever the catalogue says; None means the catalogue's price
    """

    chips: tuple[tuple[Chip, FittedEfficiency], ...]
    catalogue: Catalogue
    price: float | None

    def price_of(self, chip: Chip) -> tuple[float | None, float]:
        """Return US dollars per chip-hour, None if they are not known, and how far they may be off, as a share."""
        if self.price is not None or chip.price is None:
            return self.price, 0.0
        return self.catalogue.dollars(chip), chip.price.error


def choose_chips(
    words: Sequence[str], catalogue: str | None = None, certificate: str | None = None, price: float | None = None
) -> ChosenChips:
    """Find chips by their names, each once.

    Args:
        words: names; several may stand in one word with commas between them
        catalogue: file of the user's own chips
        certificate: file that `gossamer certify` wrote on a device of the first chip's kind
        price: US dollars per chip-hour; None means the catalogue's price

    Raises:
        UserError: a name is unknown, or a file is not what it should be.
    """
    catalogued = load_catalogue([user_path(catalogue)] if catalogue else [])
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    if not names:
        raise UserError(f"which chip? one of {', '.join(catalogued.chips)}")
    chips = list({chip.key: chip for chip in map(catalogued.chip, names)}.values())
    shares = {chip.key: load_fitted_efficiency() for chip in chips}
    if certificate is not None:
        first = shares[chips[0].key]
        rates = apply_certificate(user_path(certificate), chips[0], first.rates)
        shares[chips[0].key] = replace(first, rates=rates)
    return ChosenChips(tuple((chip, shares[chip.key]) for chip in chips), catalogued, price)


def training_plans(network: Network, chosen: ChosenChips, count: int, tokens: float, job: Job) -> list[ClusterPlan]:
    """Plan a training run on each chip.

    Args:
        network: the network
        chosen: the chips
        count: number of chips of each kind
        tokens: tokens of the whole run
        job: what a step is made of

    Raises:
        UserError: a step is shorter than a row, or no layout fits the chips.
    """
    if job.batch < job.length:
        raise UserError(f"--batch-tokens {job.batch}: must be >= --sequence-length {job.length:,}")
    return [
        make_plan(network, chip, count, job, tokens, shares, *chosen.price_of(chip)) for chip, shares in chosen.chips
    ]


def serving_plans(network: Network, chosen: ChosenChips, count: int, batch: int, context: int) -> list[Serving]:
    """Plan a service on each chip.

    Args:
        network: the network
        chosen: the chips
        count: number of chips of each kind; 0 means as few as hold the network
        batch: sequences that are decoded together
        context: tokens of each sequence so far

    Raises:
        UserError: the chips do not hold the network with its caches.
    """
    return [
        plan_serving(network, chip, count, batch, context, shares.rates, chosen.price_of(chip)[0])
        for chip, shares in chosen.chips
    ]
