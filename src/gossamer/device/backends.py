"""The table of back ends: what is known in advance about each family of devices, and how to tell families apart.

Chips come to PyTorch in two ways: under a name of their own (`npu`, `mlu` …), or disguised as `cuda`, so that software
for NVIDIA's GPUs runs on them. The name `cuda` alone therefore says nothing. Where the members of a family differ, the
table says what all of them have, and `capabilities` asks the device for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Backend:
    """One family of devices.

    Attributes:
        name: the family's name
        device_type: PyTorch's name for the type of its devices
        collective: library for communication between devices; empty for the one that the plug-in registers
        fp64: whether the family has float64 natively
        int64: whether the family has int64 natively, in which kernels compute addresses
        triton: whether Triton's kernels are known to work
        grouped_mm: whether PyTorch's own grouped matrix product is known to work
        has_tf32: whether the family's matrix units take float32 with 10 bits of the fraction
        plugin: module that registers the family with PyTorch
        words: lower-case words of which a product's name contains at least one
        marks: attributes of `torch` of which the family's build of PyTorch sets at least one
    """

    name: str
    device_type: str
    collective: str = ""
    fp64: bool = False
    int64: bool = True
    triton: bool = True
    grouped_mm: bool = False
    has_tf32: bool = False
    plugin: str = ""
    words: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


# Sources. float64 and int64: FlagGems' lists of vendors without them (FlagOpen/FlagGems, runtime/backend) and the
# descriptors of its plug-ins. Device types of plug-ins: pytorch/pytorch#165958. Marks: what programs for those chips
# check. The words of Hygon, T-Head and Kunlunxin come from their products' names and were not seen on a device; that
# Hygon and MetaX have float64 is also a guess. GOSSAMER_DEVICE_FLAGS corrects what is wrong. Triton's compilers differ
# from vendor to vendor; whether one is installed is checked separately.
BACKENDS = (
    Backend("cpu", "cpu", "gloo", fp64=True, grouped_mm=True),
    # Disguised as cuda; the first row that fits counts.
    Backend("hygon", "cuda", "nccl", fp64=True, words=("hygon", "dcu", "k100")),
    Backend("amd", "cuda", "nccl", fp64=True, grouped_mm=True, marks=("version.hip",)),
    Backend("metax", "cuda", "nccl", fp64=True, words=("metax",), marks=("version.maca",)),
    Backend("iluvatar", "cuda", "nccl", words=("iluvatar",), marks=("corex",)),
    Backend("kunlunxin", "cuda", "nccl", words=("kunlun", "p800")),
    Backend("t-head", "cuda", "nccl", words=("ppu", "zw810", "zhenwu")),
    Backend(
        "nvidia", "cuda", "nccl", fp64=True, grouped_mm=True, has_tf32=True,
        words=("nvidia", "tesla", "quadro", "geforce"),
    ),
    Backend("like cuda", "cuda", "nccl"),
    # Under names of their own.
    Backend("intel", "xpu", "xccl", fp64=True, grouped_mm=True),
    Backend("apple", "mps", "gloo", triton=False),
    Backend("ascend", "npu", "hccl", int64=False, plugin="torch_npu"),
    Backend("cambricon", "mlu", "cncl", plugin="torch_mlu"),
    Backend("moore threads", "musa", "mccl", plugin="torch_musa"),
    Backend("enflame", "gcu", "eccl", int64=False, plugin="torch_gcu"),
)  # fmt: skip


def backend_of(device_type: str, product: str) -> Backend:
    """Return the row for a device of this type and product name; the row of an unknown type claims little."""
    product = product.lower()
    rows = [row for row in BACKENDS if row.device_type == device_type]
    for row in rows:
        fits_all = not row.words and not row.marks
        if fits_all or any(word in product for word in row.words) or any(map(_is_set, row.marks)):
            return row
    return Backend("unknown", device_type, int64=False, triton=False)


def _is_set(mark: str) -> bool:
    """Whether `torch` has this attribute, and it is neither None nor false."""
    value: object = torch
    for part in mark.split("."):
        value = getattr(value, part, None)
    return bool(value)
