"""Kernels in C++ for CPUs, and how they are built; the operations' own folders hold what calls them."""

from gossamer.ops.native.library import address, call, obstacle

__all__ = ["address", "call", "obstacle"]
