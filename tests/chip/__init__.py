"""A chip for tests: a device of its own name whose tensors lie in host memory, written in Python on stock PyTorch.

It takes PyTorch's PrivateUse1 slot, as the plug-in of a new accelerator does, and is stricter than any of them: no
float64 and no complex numbers, no operand on another device (a scalar tensor of the host excepted, unless it is
float64), no generator of another device. It computes with PyTorch's CPU kernels, so that its results are the CPU's bit
for bit. It counts the operators that run, and on request lacks one, computes one wrongly, or runs out of memory.

    import chip
    device = chip.install()                         # once a process; PyTorch cannot undo it
    chip.lack("aten.topk")                          # raises NotImplementedError, as PyTorch does
    chip.fall_back("aten.cumsum")                   # computed by the host, and counted apart
    chip.break_operator("aten.mm", scale=1.01)      # all its overloads; "aten.mm.default" is one of them
    chip.capacity(1 << 20)                          # bytes; torch.OutOfMemoryError beyond
    chip.census(), chip.host_census()               # Counter of operators, by their full names
    chip.unplug()                                   # the device is gone; chip.plug() brings it back
    chip.reset()                                    # as after `install`

A program of its own gets it through `GOSSAMER_PLUGIN=chip.plugin`, with this folder's parent on PYTHONPATH, and its
faults through the environment variables that `chip.plugin` names. Limits: one device; streams and `synchronize` do
nothing; FSDP2 does not work, which resizes storages.
"""

from chip.backend import install, plug, unplug
from chip.faults import break_operator, capacity, fall_back, lack, reset
from chip.state import allocated, census, host_census, peak

__all__ = [
    "allocated",
    "break_operator",
    "capacity",
    "census",
    "fall_back",
    "host_census",
    "install",
    "lack",
    "peak",
    "plug",
    "reset",
    "unplug",
]
