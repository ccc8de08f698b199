"""What a slot keeps: own copies, where they were asked for, with nobody waiting for their way there."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

from skipstone.core.step import history
from skipstone.core.step.history import History

HOST = torch.device("cpu")


class Copies(TorchFunctionMode):
    """The copies that are made, by name and whether the host would wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("to", "copy_", "cpu"):
            self.found.append((func.__name__, not kwargs.get("non_blocking", False)))
        return func(*args, **kwargs)


class Elsewhere(torch.Tensor):
    """Plays a tensor on a device: it says so, and computes here."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self):  # type: ignore[override]
        return torch.device("cuda")


def test_what_goes_to_main_memory_and_comes_back_keeps_nobody_waiting(monkeypatch):
    """There is no GPU here: page-locked memory is played by plain memory."""
    rooms = []

    def pinned(value):
        rooms.append(torch.empty(value.shape))
        return rooms[-1]

    monkeypatch.setattr(history, "pinned", pinned)
    kept = History(HOST)
    values = [torch.full((3,), float(i)) for i in (1, 2)]
    copies = Copies()
    with copies:
        for i, value in enumerate(values):
            kept.observe(i, value.as_subclass(Elsewhere), {0, 1})
    assert copies.found == [("copy_", False)] * 2
    assert all(a is b for a, b in zip(kept.anchors.values(), rooms, strict=True))
    assert kept.combine({0: 1.0, 1: 0.5}, HOST).tolist() == [2.0] * 3

    back = Copies()
    with back, pytest.raises((RuntimeError, AssertionError)):  # a CUDA that is not here
        kept.combine({0: 1.0}, torch.device("cuda"))
    assert back.found == [("to", False)]


def test_where_there_is_no_page_locked_memory_it_is_copied_all_the_same(monkeypatch):
    monkeypatch.setattr(history, "pinned", lambda value: None)
    kept = History(HOST)
    value = torch.ones(3)
    kept.observe(0, value.as_subclass(Elsewhere), ())
    assert kept.combine({0: 2.0}, HOST).tolist() == [2.0] * 3
    assert history.pinned(value) is None


def test_what_is_there_already_is_not_copied():
    """Nobody else may write to what is handed over."""
    value = torch.ones(3)
    for device in (None, HOST):
        kept = History(device)
        kept.observe(0, value, ())
        assert kept.anchors[0] is value


def test_a_host_waits_for_what_comes_to_it():
    """It reads it right away."""
    kept, copies = History(), Copies()
    kept.observe(0, torch.ones(3), ())
    with copies:
        kept.combine({0: 1.0}, HOST)
    assert copies.found == [("to", True)]
