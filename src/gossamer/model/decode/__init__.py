"""Decoding: a network that goes on with many sequences at once, a few tokens of each in a step.

`decoder.py` is what the engine calls. It passes tokens through the layers (`layers.py`) and proposes drafts by the
multi-token-prediction head (`drafts.py`); what a sequence leaves behind for its next token lies in memory that all
sequences share (`pool.py`).
"""

from gossamer.model.decode.drafts import draft_tokens
from gossamer.model.decode.layers import decode_layers

__all__ = ["decode_layers", "draft_tokens"]  # imported so that `ops.forced` and GOSSAMER_OPS know both operations
