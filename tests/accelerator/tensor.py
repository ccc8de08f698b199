"""The device's tensors: they report `cuda:0`, and hold their values in a CPU tensor."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter

CUDA = torch.device("cuda", 0)

# Python's own conversions: C++ sets a device guard in them before anything is dispatched, which this build of PyTorch has none of
CONVERSIONS = {
    "__float__", "__int__", "__bool__", "__index__", "__complex__", "__contains__", "__array__", "item", "tolist", "numpy",
}  # fmt: skip


class Race(AssertionError):
    """The host read memory that a copy was still on its way to."""


class DeviceTensor(Tensor):
    """data_on_cpu: its values. Made and run by the Accelerator that is at work."""

    accelerator: ClassVar[Any] = None
    data_on_cpu: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> DeviceTensor:
        assert not isinstance(data, DeviceTensor)
        made = Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            layout=data.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.data_on_cpu = data
        cls.accelerator.memory.count(made, data)
        return made

    def __init__(self, data: Tensor) -> None: ...

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        return DeviceTensor(self.data_on_cpu.clone())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        first: Any = args[0] if args else None
        if name in CONVERSIONS and isinstance(first, DeviceTensor):
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            cls.accelerator.sync(name)
            return getattr(first.data_on_cpu, name)(*args[1:], **kwargs)
        if name in ("__getitem__", "__setitem__") and isinstance(first, DeviceTensor):
            return cls.accelerator.index(name, *args)
        if name == "contiguous" and first.is_contiguous():
            return first
        if name == "contiguous":
            return torch.ops.aten.clone.default(first, memory_format=torch.contiguous_format)
        if name in ("copy_", "nonzero"):  # these set a device guard, too
            return getattr(torch.ops.aten, name).default(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return cls.accelerator.run(func, args, kwargs or {})


def move(module: Module) -> Module:
    """All parameters and buffers of a module, in place, onto the device. Returns the module."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None and not isinstance(value, DeviceTensor):
                part._parameters[name] = _parameter(value)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and not isinstance(buffer, DeviceTensor):
                part._buffers[name] = DeviceTensor(buffer.detach().clone())
    return module


def _parameter(value: Tensor) -> Parameter:
    moved = DeviceTensor(value.detach().clone())
    moved._is_param = True  # what makes isinstance(_, Parameter) true of a subclass
    return moved  # type: ignore[return-value]
