"""The block hook on every family: it fires, a skip is prefix + residual, nothing is left behind, and never skipping changes nothing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_base
import pytest
import torch

from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.published.coefficients import TEACACHE, names
from skipstone.core.step.report.report import Report
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.teacache import dicache_of, teacache_of
from skipstone.nodes.widgets import CUSTOM
from skipstone.patch.blocks.resolver import objection
from skipstone.patch.blocks.transformer import UNSEEN
from skipstone.patch.errors import StepCacheError
from skipstone.patch.families import Family, family_of
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy import zoo

MODELS = [m for m in zoo.MODELS if hasattr(comfy.model_base, m.base)]
each = pytest.mark.parametrize("tiny", MODELS, ids=str)


def every(nth: int, prefix: int = 1, suffix: int = 0, probe: Any = "none") -> Method:
    return Method("Every", str(nth), (Interval(1, nth),), Reuse(), blocks=Blocks(prefix, suffix, probe, fit=True))


@functools.cache
def built(tiny: zoo.Tiny) -> tuple[Any, Any]:
    model = tiny.build()
    return model, tiny.conds(model)


@functools.cache
def plain(tiny: zoo.Tiny) -> Any:
    model, conds = built(tiny)
    return sampled(tiny, model, conds)


def pattern(tiny: zoo.Tiny) -> list[bool]:
    """Which steps are computed with `every(2)`. A model that may keep something from run to run is not relied on in the first."""
    state = getattr(family_of(built(tiny)[0].model.diffusion_model), "state", "")
    return [True, True, True, False, True, True] if state.startswith("arg:") else [True, False, True, True]


def sampled(tiny: zoo.Tiny, model: Any, conds: Any) -> list[torch.Tensor]:
    with torch.inference_mode():  # as ComfyUI runs nodes
        out = zoo.sample(tiny, model, *conds, steps=len(pattern(tiny)))
    return list(out.unbind()) if out.is_nested else [out]


def record_of(tiny: zoo.Tiny) -> Family:
    family = family_of(built(tiny)[0].model.diffusion_model)
    if not isinstance(family, Family):
        pytest.skip("not done at block level")
    return family


def patched(tiny: zoo.Tiny, method: Method) -> tuple[list[torch.Tensor], Report]:
    model, conds = built(tiny)
    reports: list[Report] = []
    out = sampled(tiny, attach(model, method, (reports.append,)), conds)
    return out, reports[0]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@each
def test_never_skipping_changes_nothing(tiny):
    record_of(tiny)
    out, report = patched(tiny, every(1))
    assert report.computed == len(report.evaluations) == len(pattern(tiny))
    assert same(out, plain(tiny))


@each
def test_it_fires_and_leaves_nothing_behind(tiny):
    family = record_of(tiny)
    with nothing_left_behind(tiny):
        out, report = patched(tiny, every(2))
    assert [e.computed for e in report.evaluations] == pattern(tiny)
    assert not report.notes
    assert not same(out, plain(tiny))
    assert all(torch.isfinite(o).all() for o in out)
    assert same(sampled(tiny, *built(tiny)), plain(tiny))
    assert 0 <= report.share < 1 or family.unet


@contextmanager
def nothing_left_behind(tiny: zoo.Tiny) -> Iterator[None]:
    """No module calls another forward afterwards than before, nor has other parts, nor more hooks."""
    network = built(tiny)[0].model.diffusion_model

    def state() -> dict[str, Any]:
        return {
            name: (
                vars(m).get("forward"),
                list(m._modules.items()),
                list(m._forward_pre_hooks),
                list(m._forward_hooks),
            )
            for name, m in network.named_modules()
        }

    plain(tiny)  # what the first run leaves there is not ours
    before = state()
    yield
    assert state() == before


METHODS: dict[str, Callable[[float], Method]] = {
    "First Block Cache": lambda threshold: firstblock_of(CUSTOM, threshold, warmup=1),
    # somebody else's polynomial: none has to be learned
    "TeaCache": lambda threshold: teacache_of(CUSTOM, threshold, polynomial=min(names(TEACACHE))),
    "DiCache": lambda threshold: dicache_of(CUSTOM, threshold, warmup=1, start_percent=0.0),
}


def method_for(tiny: zoo.Tiny, name: str, threshold: float) -> tuple[Method, Family]:
    family, method = record_of(tiny), METHODS[name](threshold)
    if why := objection(method, family):
        pytest.skip(why)
    return method, family


@pytest.mark.parametrize("name", METHODS)
@each
def test_a_method_with_a_threshold_of_0_changes_nothing(tiny, name):
    method, _ = method_for(tiny, name, 0.0)
    out, report = patched(tiny, method)
    assert report.computed == len(report.evaluations) == len(pattern(tiny))
    assert any(e.indicator is not None for e in report.evaluations)  # it did look
    assert same(out, plain(tiny))


@pytest.mark.parametrize("name", METHODS)
@each
def test_a_method_with_a_huge_threshold_skips_all_that_it_may(tiny, name):
    method, family = method_for(tiny, name, 1e9)
    with nothing_left_behind(tiny):
        out, report = patched(tiny, method)
    first = 2 if family.state.startswith("arg:") else 1  # what it says in its first evaluation is not relied on
    told = [e.computed for e in report.evaluations]
    assert told == [True] * first + [False] * (len(told) - first - 1) + [True]
    assert report.notes == ([UNSEEN] if name == "TeaCache" and not family.modulated else [])
    assert all(torch.isfinite(o).all() for o in out)
    assert not same(out, plain(tiny))


@dataclass
class Seen:
    """One call of the network: what it was given, and what it said."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    said: Any = None


@dataclass
class Diary:
    calls: list[Seen] = field(default_factory=list)

    @contextmanager
    def of(self, network: torch.nn.Module) -> Iterator[None]:
        """Copies, because networks pop from their controls and write to their options."""

        def before(_: Any, args: Any, kwargs: Any) -> None:
            options = {k: v for k, v in kwargs["transformer_options"].items() if k not in ("wrappers", "callbacks")}
            kwargs = {**kwargs, "transformer_options": options}
            self.calls.append(Seen(*copy.deepcopy((args, kwargs))))

        handles = [
            network.register_forward_pre_hook(before, with_kwargs=True),
            network.register_forward_hook(lambda _, args, said: setattr(self.calls[-1], "said", said)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def streams_in(stack: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    return {name: args[at] if isinstance(at, int) else kwargs[at] for name, at in stack.takes}


def streams_out(stack: Any, out: Any) -> dict[str, Any]:
    return {stack.gives: out} if isinstance(stack.gives, str) else dict(zip(stack.gives, out, strict=True))


def mapped(function: Any, *values: Any) -> Any:
    if isinstance(values[0], tuple):
        return tuple(mapped(function, *several) for several in zip(*values, strict=True))
    return function(*values)


class Replay:
    """A network called anew with all its blocks running; PyTorch hooks read what enters block `first` and what leaves block `last`."""

    def __init__(self, network: Any, family: Family, prefix: int, suffix: int) -> None:
        self.network, self.family = network, family
        blocks = []
        for k, stack in enumerate(family.stacks):
            found = network.get_submodule(stack.at)
            blocks += [(k, b) for b in (found.values() if isinstance(found, torch.nn.ModuleDict) else found)]
        self.ends = suffix == 0
        self.first, self.last = blocks[prefix], blocks[len(blocks) - suffix - 1]

    def __call__(self, seen: Seen, residual: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """What the network says, and the residual. With a `residual` given, block `last` gives prefix + that."""
        stacks, entered, left = self.family.stacks, {}, {}

        def enter(_: Any, args: Any, kwargs: Any) -> None:
            streams = mapped_dict(torch.clone, streams_in(stacks[self.first[0]], args, kwargs))
            for stack in stacks[self.first[0] + 1 : self.last[0] + 1]:
                if stack.joins:
                    streams = {stack.takes[0][0]: torch.cat([streams[n] for n in stack.joins], 1)}
            entered.update(streams)

        def leave(_: Any, args: Any, out: Any) -> Any:
            stack = stacks[self.last[0]]
            out = streams_out(stack, out)
            dead = self.family.dead if self.ends else ()
            kept = entered.keys() - {*dead, *self.family.same}
            left.update({n: mapped(torch.clone, v) for n, v in out.items() if n in kept})
            if residual is None:
                return None
            out |= {n: mapped(torch.add, entered[n], r) for n, r in residual.items()}
            return out[stack.gives] if isinstance(stack.gives, str) else tuple(out[n] for n in stack.gives)

        handles = [
            self.first[1].register_forward_pre_hook(enter, with_kwargs=True),
            self.last[1].register_forward_hook(leave),
        ]
        try:
            with torch.inference_mode():
                said = self.network(*copy.deepcopy(seen.args), **copy.deepcopy(seen.kwargs))
        finally:
            for handle in handles:
                handle.remove()
        return said, {n: mapped(torch.sub, v, entered[n]) for n, v in left.items()}


def mapped_dict(function: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {name: mapped(function, value) for name, value in values.items()}


@pytest.mark.parametrize(("prefix", "suffix"), [(1, 0), (0, 0), (1, 1)], ids=["Fn 1", "all", "Fn 1, Bn 1"])
@each
def test_a_skip_is_prefix_and_residual(tiny, prefix, suffix):
    """Held against the network itself, run in full with only one block's output replaced."""
    family = record_of(tiny)
    if family.unet:
        pytest.skip("the deep feature of UNets has its own test")
    network = built(tiny)[0].model.diffusion_model
    diary = Diary()
    with diary.of(network):
        _, report = patched(tiny, every(2, prefix, suffix))
    assert [e.computed for e in report.evaluations] == pattern(tiny)
    at, calls = pattern(tiny).index(False), len(diary.calls) // len(pattern(tiny))
    before, here = (diary.calls[i * calls : (i + 1) * calls] for i in (at - 1, at))
    replay = Replay(network, family, max(prefix, family.least), suffix)
    for computed, skipped in zip(before, here, strict=True):
        batches = [c.kwargs["transformer_options"]["cond_or_uncond"] for c in (computed, skipped)]
        assert batches[0] == batches[1]
        said, residual = replay(computed)
        mapped(functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5), flat(said), flat(computed.said))
        expected, _ = replay(skipped, residual)
        mapped(functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5), flat(skipped.said), flat(expected))


def flat(said: Any) -> Any:
    return tuple(said) if isinstance(said, list) else said


@each
def test_what_cannot_be_done_is_refused_with_what_can(tiny):
    model, _ = built(tiny)
    if isinstance(family_of(model.model.diffusion_model), Family):
        pytest.skip("is done at block level")
    with pytest.raises(StepCacheError, match=r"MeanCache.* work with every model"):
        attach(model, every(2))


def test_a_model_that_keeps_something_from_run_to_run_is_skipped_as_in_a_fresh_process():
    """HiDream O1 keeps the keys and values of its prompts."""
    tiny = next((m for m in MODELS if m.base == "HiDreamO1"), None)
    if tiny is None:
        pytest.skip("this ComfyUI has no HiDream O1")
    model, conds = built(tiny)
    outs, decisions = [], []
    model.model.diffusion_model.clear_kv_cache()
    for _ in range(2):
        reports: list[Report] = []
        outs.append(sampled(tiny, attach(model, every(2), (reports.append,)), conds))
        decisions.append([e.computed for e in reports[0].evaluations])
    assert decisions[0] == decisions[1]
    mapped(functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4), *map(tuple, outs))
