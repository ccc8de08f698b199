"""A pretend CUDA device for tests: its tensors report `cuda:0` and are computed on the CPU.

It checks what a test on the CPU cannot see: operands on different devices, host synchronizations, reads of a copy that has not
arrived, bytes of device and pinned memory, and time that passes on the device while the host runs ahead.

    with Accelerator() as gpu:
        x = torch.ones(4, device="cuda")
        float(x.sum())
        gpu.syncs            # one, with its caller
        gpu.memory.live      # bytes on the device
"""

from .device import Accelerator, Sync
from .memory import HostPool, Meter
from .tensor import DeviceTensor, Race, move

__all__ = ["Accelerator", "DeviceTensor", "HostPool", "Meter", "Race", "Sync", "move"]
