"""Kernels in C++ for CPUs and the code that builds them; the operations' own files call them."""

from gossamer.ops.native.library import address, call, obstacle

__all__ = ["address", "call", "obstacle"]
