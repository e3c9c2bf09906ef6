"""Triton kernels of the operations, each imported when it first runs; the operations' own files call them."""
