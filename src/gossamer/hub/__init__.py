"""Checkpoints in and out of other people's formats: Hugging Face directories of safetensors, never pickle."""

from gossamer.hub.find import find_model
from gossamer.hub.read import load
from gossamer.hub.write import export, save

__all__ = ["export", "find_model", "load", "save"]
