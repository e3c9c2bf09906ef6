"""The table of back ends: what is known beforehand of each family of devices, and how one is told from another.

Chips come to PyTorch in two ways: under a name of their own (`npu`, `mlu` …), or disguised as `cuda`, so that software
for NVIDIA's GPUs runs on them. Nothing may be concluded from the name `cuda` alone. Where a family's members differ the
table says what all of them have; `capabilities` asks the device for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Backend:
    """One family of devices.

    Attributes:
        name: of the family
        device_type: PyTorch's name
        collective: library for communication between devices; empty: as the plug-in registered it with PyTorch
        fp64, int64: whether it has these types natively; int64 is what kernels compute addresses with
        triton, compile: whether Triton's kernels and `torch.compile` are known to work
        grouped_mm: whether PyTorch's own grouped matrix product is
        has_tf32: whether its matrix units take float32 with 10 bits of the fraction
        plugin: module that registers it with PyTorch
        words: of these, in small letters, one is in the product's name
        marks: of these attributes of `torch`, one is set by the family's build of PyTorch
    """

    name: str
    device_type: str
    collective: str = ""
    fp64: bool = False
    int64: bool = True
    triton: bool = True
    compile: bool = False
    grouped_mm: bool = False
    has_tf32: bool = False
    plugin: str = ""
    words: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


# float64 and int64: FlagGems' lists of vendors without them (FlagOpen/FlagGems, runtime/backend) and the descriptors of
# its plug-ins. Plug-ins' device types: pytorch/pytorch#165958. Marks: what programs for those chips look at. The words
# of Hygon, T-Head and Kunlunxin are taken from their products' names and were seen on no device, and so is that Hygon and
# MetaX have float64; GOSSAMER_DEVICE_FLAGS corrects what is wrong. Triton's compilers differ from vendor to vendor;
# whether one is installed is asked for itself.
BACKENDS = (
    Backend("cpu", "cpu", "gloo", fp64=True, compile=True, grouped_mm=True),
    # Disguised as cuda; the first that fits counts.
    Backend("hygon", "cuda", "nccl", fp64=True, words=("hygon", "dcu", "k100")),
    Backend("amd", "cuda", "nccl", fp64=True, compile=True, grouped_mm=True, marks=("version.hip",)),
    Backend("metax", "cuda", "nccl", fp64=True, words=("metax",), marks=("version.maca",)),
    Backend("iluvatar", "cuda", "nccl", words=("iluvatar",), marks=("corex",)),
    Backend("kunlunxin", "cuda", "nccl", words=("kunlun", "p800")),
    Backend("t-head", "cuda", "nccl", words=("ppu", "zw810", "zhenwu")),
    Backend(
        "nvidia", "cuda", "nccl", fp64=True, compile=True, grouped_mm=True, has_tf32=True,
        words=("nvidia", "tesla", "quadro", "geforce"),
    ),
    Backend("like cuda", "cuda", "nccl"),
    # Under names of their own.
    Backend("intel", "xpu", "xccl", fp64=True, compile=True, grouped_mm=True),
    Backend("apple", "mps", "gloo", triton=False),
    Backend("ascend", "npu", "hccl", int64=False, plugin="torch_npu"),
    Backend("cambricon", "mlu", "cncl", plugin="torch_mlu"),
    Backend("moore threads", "musa", "mccl", plugin="torch_musa"),
    Backend("enflame", "gcu", "eccl", int64=False, plugin="torch_gcu"),
)  # fmt: skip


def backend_of(device_type: str, product: str) -> Backend:
    """The row for a device of this type whose maker calls it `product`; of an unknown type, one that claims little."""
    product = product.lower()
    rows = [row for row in BACKENDS if row.device_type == device_type]
    for row in rows:
        plain = not row.words and not row.marks
        if plain or any(word in product for word in row.words) or any(map(_is_set, row.marks)):
            return row
    return Backend("unknown", device_type, int64=False, triton=False)


def _is_set(mark: str) -> bool:
    """Whether `torch` has this attribute, and it is neither None nor false."""
    value: object = torch
    for part in mark.split("."):
        value = getattr(value, part, None)
    return bool(value)
