"""Which parameters of a network are trained: all of them, matrices of low rank beside them, or the drafting head."""

from __future__ import annotations

from gossamer.errors import UserError
from gossamer.model.causal_lm import CausalLM
from gossamer.model.low_rank import LowRankConfig, add_low_rank
from gossamer.train.config import TuningConfig


def choose_trained(model: CausalLM, tuning: TuningConfig) -> None:
    """Freeze what a tuning does not train, and add what it trains beside that.

    Raises:
        UserError: there is no such target, the rank is too large, or there is no head that could draft.
    """
    if tuning.drafts and model.mtp is None:
        raise UserError("--drafts: the base has no multi-token-prediction head; leave it out")
    if tuning.lora:
        add_low_rank(model, LowRankConfig(tuning.rank, tuning.alpha, tuning.targets))
    elif tuning.drafts:
        model.requires_grad_(False)
    if tuning.drafts and model.mtp is not None:
        model.mtp.float().requires_grad_(True)  # steps would be lost to the rounding of a narrower type
