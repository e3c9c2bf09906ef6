"""The layouts of checkpoints, the model types, and refusals, for tests of reading and writing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

import gossamer
from gossamer.errors import UserError
from gossamer.hub.layout import Layout

layouts = st.builds(
    Layout,
    trunk=st.sampled_from(["model.", "model.language_model.", "language_model.model.", "language_model.", ""]),
    mtp=st.sampled_from(["mtp.", "model.mtp.", "language_model.mtp.", "model.language_model.mtp."]),
    head=st.sampled_from(["lm_head.weight", "language_model.lm_head.weight"]),
    flat_projections=st.booleans(),
    stacked_experts=st.booleans(),
    stacked_mtp_experts=st.booleans(),
)

# What the model types of Qwen3.5 and its successors change.
FAMILY = {
    "qwen3_next": {},
    "qwen3_5_text": {"model_type": "qwen3_5_text", "num_experts": 0, "mlp_only_layers": ()},
    "qwen3_5_moe_text": {"model_type": "qwen3_5_moe_text", "mlp_only_layers": ()},
}


def refused(folder: Path, *parts: str) -> None:
    """Loading a checkpoint is refused in one line that has these parts."""
    with pytest.raises(UserError) as caught:
        gossamer.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
