"""The device itself: runs operations, moves memory, and keeps the books."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from .clock import VirtualClock
from .memory import HostPool, Meter
from .tensor import CUDA, DeviceTensor, Race

# operations whose result's size or whose answer only the device knows: the host waits
SYNCS = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2", "unique_dim",
    "unique_consecutive", "allclose",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# operations that take a tensor for its shape alone
SHAPES = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty", "new_zeros", "new_ones",
    "new_full", "is_same_size", "_has_compatible_shallow_copy_type",
}  # fmt: skip
VIEWS = {"detach", "alias", "view", "_unsafe_view", "slice", "select", "as_strided", "reshape", "flatten", "narrow"}
HOST_READS = {"numpy", "tolist", "__array__"}  # of a tensor on the host; the dispatcher does not see them

CPU = torch.device("cpu")

Cost = Callable[[str, Any], float]
"""Seconds that an operation of this name, with this result, takes the device."""


@dataclass(frozen=True)
class Sync:
    """The host waited for the device. kind: in what call; module, line: of the caller."""

    kind: str
    module: str
    line: str
    at: float  # virtual seconds


class Accelerator(TorchDispatchMode):
    """While it is entered, `cuda:0` exists.

    capacity: bytes of memory; an allocation beyond it raises torch.OutOfMemoryError. pinnable: bytes of host memory that can be
    pinned. cost: seconds by operation. launch: seconds that the host takes for each.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and PyTorch's guard against it would cost a tenth of the time

    def __init__(
        self,
        capacity: float = float("inf"),
        pinnable: float = float("inf"),
        cost: Cost = lambda name, result: 20e-6,
        launch: float = 5e-6,
    ) -> None:
        super().__init__()
        self.capacity = capacity
        self.memory = Meter()
        self.pinned = HostPool(pinnable)
        self.clock = VirtualClock(launch)
        self.cost = cost
        self.syncs: list[Sync] = []
        self.copied: list[tuple[str, int, bool]] = []  # direction, bytes, whether the host memory was pinned
        self.ran = 0  # operations
        self.fails = False  # the next allocation does, once
        # copies to the host that have not been waited for, by the storage they go to: (to, what is to arrive there, when)
        self.pending: dict[int, list[tuple[Tensor, Tensor, float]]] = {}
        self._stack = ExitStack()

    @property
    def free(self) -> float:
        return self.capacity - self.memory.live

    # entering

    def __enter__(self) -> Accelerator:
        assert DeviceTensor.accelerator is None, "there is one device"
        DeviceTensor.accelerator = self
        for where, name, value in (
            *((Tensor, name, _checked(self, getattr(Tensor, name))) for name in HOST_READS),
            (torch, "tensor", _tensor_on(torch.tensor)),
            (torch, "as_tensor", _tensor_on(torch.as_tensor)),
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "set_device", lambda device: None),
            (torch.cuda, "Event", _event_of(self)),
            (torch.cuda, "synchronize", lambda device=None: self.sync("synchronize")),
            (torch.cuda, "empty_cache", lambda: None),
            (torch._C, "_host_emptyCache", self.pinned.empty),
            (time, "perf_counter", self.clock.now),
        ):
            self._stack.enter_context(patch.object(where, name, value, create=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()
        DeviceTensor.accelerator = None

    # synchronizing

    def sync(self, kind: str, until: float | None = None) -> None:
        """The host waits for the device; all copies queued until then have arrived."""
        self.syncs.append(Sync(kind, *_caller(), self.clock.host))
        self.clock.wait(until)
        self.arrive(self.clock.device if until is None else until)

    def arrive(self, until: float) -> None:
        for key, copies in list(self.pending.items()):
            with no_dispatch():
                for to, value, when in copies:
                    if when <= until:
                        to.copy_(value)
            self.pending[key] = [c for c in copies if c[2] > until]
            if not self.pending[key]:
                del self.pending[key]

    def check_arrived(self, value: Tensor, name: str) -> None:
        """Raises Race where the host reads what has not arrived."""
        if self.pending and value.device.type == "cpu" and value.untyped_storage().data_ptr() in self.pending:
            raise Race(f"{name} reads pinned memory before the copy to it has arrived, in {_caller()}")

    # running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        tensors = _tensors(args)
        if kwargs:
            tensors += _tensors(kwargs.values())
        asked = kwargs.get("device")
        if asked is None:
            asked = next((a for a in args if isinstance(a, torch.device)), None)
        if not _is_cuda(asked) and not any(isinstance(t, DeviceTensor) for t in tensors):
            return self._on_host(func, name, tensors, args, kwargs)
        if name == "to":  # composite; arrives whole in inference mode
            return self._to(func, args, kwargs)
        if name == "copy_":
            return self._copy(args[0], args[1], bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2])))
        if name == "_to_copy":
            return self._to_copy(func, args[0], asked, kwargs)
        if name == "is_pinned":
            return False
        self._same_device(name, tensors)
        if name in SYNCS:
            self.sync(name)
        if name in INDEXING and any(_is_mask(t) for a in args if isinstance(a, list | tuple) for t in a):
            self.sync("index by a mask")
        return self._compute(func, name, tensors, args, kwargs, asked)

    def _compute(
        self, func: Any, name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any], asked: torch.device | None
    ) -> Any:
        pin = kwargs.pop("pin_memory", None) if "pin_memory" in kwargs else None
        named = {k: _values(v) for k, v in kwargs.items()}
        if _is_cuda(asked):
            named["device"] = CPU
        out = func(*map(_values, args), **named)
        self.ran += 1
        if asked is not None and not _is_cuda(asked):  # as empty_like(x, device="cpu")
            if pin:
                self.pinned.add(out)
            return out
        self.clock.queue(self.cost(name, out) if name not in VIEWS else 0.0)
        if isinstance(out, list | tuple):
            return type(out)(self._wrapped(v, tensors) for v in out)
        return self._wrapped(out, tensors)

    def _wrapped(self, value: Any, operands: list[Tensor]) -> Any:
        """What an operation returned: an operand itself where it worked in place."""
        if not isinstance(value, Tensor):
            return value
        for operand in operands:
            if isinstance(operand, DeviceTensor) and operand.data_on_cpu is value:
                return operand
        return self.put(value)

    def put(self, value: Tensor) -> DeviceTensor:
        """A tensor on the device with the values, and the memory, of one on the CPU."""
        if not self.memory.knows(value) and (self.fails or value.untyped_storage().nbytes() > self.free):
            self.fails = False
            raise torch.OutOfMemoryError(f"CUDA out of memory, in {_caller()}")
        return DeviceTensor(value)

    def _on_host(self, func: Any, name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        if name == "is_pinned":
            return args[0] in self.pinned
        if name not in VIEWS:
            for t in tensors:
                self.check_arrived(t, name)
        pin = kwargs.pop("pin_memory", None) if "pin_memory" in kwargs else None
        if name in ("pin_memory", "_pin_memory"):
            out, pin = args[0].clone(), True
        else:
            out = func(*args, **kwargs)
        if pin:
            self.pinned.add(out)
        return out

    def _same_device(self, name: str, tensors: list[Tensor]) -> None:
        """Operands on the CPU are errors but for scalars, and for indices, which CUDA copies over: the host waits for that."""
        for t in tensors:
            if not isinstance(t, DeviceTensor) and t.ndim and t.device.type == "cpu":
                if name in SHAPES:
                    continue
                self.check_arrived(t, name)
                if name not in INDEXING:
                    raise RuntimeError(
                        f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {name} in {_caller()}"
                    )
                self.sync("index on the host")

    def index(self, name: str, target: DeviceTensor, index: Any, *value: Any) -> Any:
        """tensor[index], and tensor[index] = value."""
        for i in index if isinstance(index, tuple) else (index,):
            if _is_mask(i):
                self.sync("index by a mask")
            elif isinstance(i, list):
                self.sync("index by a list")
            elif isinstance(i, Tensor) and not isinstance(i, DeviceTensor) and i.ndim:
                self.check_arrived(i, name)
                self.sync("index on the host")
        self.ran += 1
        where = _values(index)
        with no_dispatch():
            if name == "__getitem__":
                out = target.data_on_cpu[where]
            else:
                target.data_on_cpu[where] = _values(value[0])
        self.clock.queue(0.0 if name == "__getitem__" else self.cost(name, target))
        return self.put(out) if name == "__getitem__" else None

    # moving

    def _copy(self, to: Tensor, value: Tensor, non_blocking: bool) -> Tensor:
        self.ran += 1
        done = self.clock.queue(self.cost("copy_", to))
        if isinstance(to, DeviceTensor):
            if not isinstance(value, DeviceTensor) and value.ndim:
                self._to_device(value)
            to.data_on_cpu.copy_(_values(value))
        elif isinstance(value, DeviceTensor):
            pinned = to in self.pinned
            self.copied.append(("to the host", value.nbytes, pinned))
            if non_blocking and pinned:
                self.pending.setdefault(to.untyped_storage().data_ptr(), []).append(
                    (to, value.data_on_cpu.clone(), done)
                )
                if to.is_floating_point():
                    to.fill_(float("nan"))
            else:  # into pageable memory the host waits, whatever it asked for
                self.sync("copy to the host")
                to.copy_(value.data_on_cpu)
        return to

    def _to_device(self, value: Tensor) -> None:
        # in the stream's order: what is on its way to `value` arrives before it is read by the device
        for to, arriving, _ in self.pending.get(value.untyped_storage().data_ptr(), ()):
            with no_dispatch():
                to.copy_(arriving)
        self.pending.pop(value.untyped_storage().data_ptr(), None)
        self.copied.append(("to the device", value.nbytes, value in self.pinned))

    def _to_copy(self, func: Any, value: Tensor, device: torch.device | None, kwargs: dict[str, Any]) -> Tensor:
        rest = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
        self.ran += 1
        self.clock.queue(self.cost("_to_copy", value))
        if not isinstance(value, DeviceTensor):
            self._to_device(value)
            return self.put(func(value, **rest))
        if device is None or _is_cuda(device):
            return self.put(func(value.data_on_cpu, **rest))
        self.copied.append(("to the host", value.nbytes, False))
        self.sync("to the host")
        return func(value.data_on_cpu, **rest)

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        given = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
        value, other = given["self"], given.get("other")
        dtype = given.get("dtype") or (other.dtype if other is not None else None)
        device = given.get("device") or (other.device if other is not None else value.device)
        if torch.device(device).type == value.device.type and dtype in (None, value.dtype) and not given.get("copy"):
            return value
        more = {
            "dtype": dtype,
            "device": torch.device(device),
            "non_blocking": bool(given.get("non_blocking")),
            "memory_format": given.get("memory_format"),
        }
        return self.run(torch.ops.aten._to_copy.default, (value,), {k: v for k, v in more.items() if v is not None})


def _checked(accelerator: Accelerator, read: Callable[..., Any]) -> Callable[..., Any]:
    """A method of tensors that reads memory of the host without the dispatcher, with a check that what it reads has arrived."""

    @functools.wraps(read)
    def checked(value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, DeviceTensor):
            accelerator.check_arrived(value, read.__name__)
        return read(value, *args, **kwargs)

    return checked


def _event_of(accelerator: Accelerator) -> type:
    class Event:
        """Stands in for torch.cuda.Event."""

        def __init__(self, enable_timing: bool = False, **_: Any) -> None:
            self.timed = enable_timing
            self.when: float | None = None

        def record(self, stream: Any = None) -> None:
            self.when = accelerator.clock.queue(0.0)

        def query(self) -> bool:
            done = self.when is None or self.when <= accelerator.clock.host
            if done and self.when is not None:
                accelerator.arrive(self.when)
            return done

        def synchronize(self) -> None:
            accelerator.sync("event", self.when)

        def elapsed_time(self, other: Event) -> float:
            """Milliseconds, as CUDA has it."""
            if not (self.timed and other.timed):
                raise ValueError("Both events must be created with argument 'enable_timing=True'.")
            if self.when is None or other.when is None or not (self.query() and other.query()):
                raise RuntimeError("device not ready")
            return (other.when - self.when) * 1000

    return Event


def _tensor_on(made: Any) -> Any:
    """torch.tensor and torch.as_tensor, which set a device guard in C++."""

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, DeviceTensor):
            return data.to(device or CUDA, *args, **kwargs)
        out = made(data, *args, **kwargs)
        return out.to(device) if _is_cuda(device) else out

    return tensor


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's arguments and in lists of these. PyTorch's pytree takes longer than the operation itself."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _values(value: Any) -> Any:
    """An argument as it is on the CPU."""
    if isinstance(value, DeviceTensor):
        return value.data_on_cpu
    if isinstance(value, torch.device):
        return CPU if value.type == "cuda" else value
    if isinstance(value, list | tuple):
        return type(value)(map(_values, value))
    return value


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _is_mask(value: Any) -> bool:
    return isinstance(value, DeviceTensor) and value.dtype in (torch.bool, torch.uint8)


def _caller() -> tuple[str, str]:
    """The module and the line of whoever called into torch."""
    frame: Any = sys._getframe(1)
    here = __name__.rpartition(".")[0]
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("torch.", here)) and module not in ("torch", "contextlib", "unittest.mock"):
            return module, f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "", ""
