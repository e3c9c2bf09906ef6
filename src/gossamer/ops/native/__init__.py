"""Kernels in C++ for CPUs, and how they are built; the operations' own folders hold what calls them."""

from gossamer.ops.native.library import call, obstacle

__all__ = ["call", "obstacle"]
