"""The catalogue, the shares, and networks that the planner's tests use."""

from __future__ import annotations

import pytest

from gossamer.cost.network import Network, network_of
from gossamer.model.config import ModelConfig
from gossamer.plan import Catalogue, FittedEfficiency, load_catalogue, load_fitted_efficiency


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return load_catalogue()


@pytest.fixture(scope="session")
def shares() -> FittedEfficiency:
    return load_fitted_efficiency()


@pytest.fixture(scope="session")
def released() -> Network:
    return network_of(ModelConfig(), "80b-a3b")
