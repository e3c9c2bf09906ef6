"""The random generators of the CPU and of devices."""

from __future__ import annotations

import torch


def seed_everything(seed: int) -> None:
    """Seed the random generators of the CPU and of every device."""
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the generators a training step may draw from, as CPU tensors of bytes."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned; a state of another device type is passed over."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type], device)
