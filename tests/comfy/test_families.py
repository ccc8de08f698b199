"""The block hook on every family: it skips, a skip is prefix + residual, nothing is left behind, and never skipping changes nothing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval
from skipstone.core.step.predictors import Reuse
from skipstone.core.step.published.coefficients import TEACACHE, names
from skipstone.core.step.report.report import Report
from skipstone.nodes.dicache import dicache_of
from skipstone.nodes.firstblock import firstblock_of
from skipstone.nodes.teacache import teacache_of
from skipstone.nodes.widgets import CUSTOM
from skipstone.patch.blocks.resolver import unsupported_reason
from skipstone.patch.blocks.transformer import UNSEEN
from skipstone.patch.errors import StepCacheError
from skipstone.patch.families import Family, family_of
from skipstone.patch.step.attach import attach
from skipstone.tests.comfy import zoo

MODELS = zoo.here(zoo.MODELS)


def pytest_generate_tests(metafunc):
    """All tests of one model after each other, so that no more than one model is kept."""
    if "tiny" in metafunc.fixturenames:
        models = MODELS if metafunc.config.getoption("thorough") else zoo.representatives(MODELS)
        metafunc.parametrize("tiny", models, ids=str, scope="module")


def every(nth: int, prefix: int = 1, suffix: int = 0, probe: Any = "none") -> Method:
    return Method("Every", str(nth), (Interval(1, nth),), Reuse(), blocks=Blocks(prefix, suffix, probe, fit=True))


class Subject:
    """A model of the zoo with its conditionings, sampled with and without methods on it.

    record: the family record of its network. pattern: which steps are computed with `every(2)`.
    """

    def __init__(self, tiny: zoo.Tiny) -> None:
        self.tiny, self.model = tiny, tiny.build()
        self.conds = tiny.conds(self.model)
        self.network: torch.nn.Module = self.model.model.diffusion_model
        self.record = family_of(self.network)
        # what a model may have kept from an earlier run is not relied on in the first skip
        keeps = bool(getattr(self.record, "state_argument", ""))
        self.pattern = [True, True, True, False, True, True] if keeps else [True, False, True, True]

    def sampled(self, model: Any = None) -> list[torch.Tensor]:
        with torch.inference_mode():  # as ComfyUI runs nodes
            out = zoo.sample(self.tiny, model or self.model, *self.conds, steps=len(self.pattern))
        return list(out.unbind()) if out.is_nested else [out]

    @functools.cached_property
    def plain(self) -> list[torch.Tensor]:
        """The unpatched model's output."""
        return self.sampled()

    def patched(self, method: Method) -> tuple[list[torch.Tensor], Report]:
        reports: list[Report] = []
        out = self.sampled(attach(self.model, method, (reports.append,)))
        return out, reports[0]

    @contextmanager
    def nothing_left_behind(self) -> Iterator[None]:
        """Every module calls the same forward afterwards as before, and has the same parts and hooks."""

        def state() -> dict[str, Any]:
            return {
                name: (
                    vars(m).get("forward"),
                    list(m._modules.items()),
                    list(m._forward_pre_hooks),
                    list(m._forward_hooks),
                )
                for name, m in self.network.named_modules()
            }

        _ = self.plain  # the model's own first run may add things
        before = state()
        yield
        assert state() == before


@pytest.fixture(scope="module")
def subject(tiny) -> Subject:
    return Subject(tiny)


@pytest.fixture
def family(subject) -> Family:
    if not isinstance(subject.record, Family):
        pytest.skip("not done at block level")
    return subject.record


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


METHODS: dict[str, Callable[[float], Method]] = {
    "First Block Cache": lambda threshold: firstblock_of(CUSTOM, threshold, warmup=1),
    # somebody else's polynomial: none has to be learned
    "TeaCache": lambda threshold: teacache_of(CUSTOM, threshold, polynomial=min(names(TEACACHE))),
    "DiCache": lambda threshold: dicache_of(CUSTOM, threshold, warmup=1, start_percent=0.0),
}


def methods_for(family: Family, threshold: float) -> Iterator[tuple[str, Method]]:
    """The methods that work with this family."""
    for name, of in METHODS.items():
        method = of(threshold)
        if not unsupported_reason(method, family):
            yield name, method


def test_never_skipping_changes_nothing(subject, family, subtests):
    methods = [("every step", every(1)), *methods_for(family, 0.0)]
    assert {"First Block Cache", "DiCache"} <= {name for name, _ in methods}
    for name, method in methods:
        with subtests.test(name):
            out, report = subject.patched(method)
            assert report.computed == len(report.evaluations) == len(subject.pattern)
            if method.indicator is not None:
                assert any(e.indicator is not None for e in report.evaluations)
            assert same(out, subject.plain)


def test_it_skips_and_leaves_nothing_behind(subject, family, subtests):
    with subtests.test("every second step"):
        with subject.nothing_left_behind():
            out, report = subject.patched(every(2))
        assert [e.computed for e in report.evaluations] == subject.pattern
        assert not report.notes
        assert not same(out, subject.plain)
        assert all(torch.isfinite(o).all() for o in out)
        assert same(subject.sampled(), subject.plain)
        assert 0 <= report.share <= 1
    for name, method in methods_for(family, 1e9):
        with subtests.test(f"{name} with a huge threshold"):
            with subject.nothing_left_behind():
                out, report = subject.patched(method)
            first = 2 if family.state_argument else 1  # what it keeps from an earlier run is not relied on
            told = [e.computed for e in report.evaluations]
            assert told == [True] * first + [False] * (len(told) - first - 1) + [True]
            assert report.notes == ([UNSEEN] if name == "TeaCache" and not family.modulated else [])
            assert all(torch.isfinite(o).all() for o in out)
            assert not same(out, subject.plain)


@dataclass
class Seen:
    """One call of the network: its arguments and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    said: Any = None


@dataclass
class Recording:
    calls: list[Seen] = field(default_factory=list)

    @contextmanager
    def of(self, network: torch.nn.Module) -> Iterator[None]:
        """Keeps copies, because networks pop from their controls and write to their options."""

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
        """The output of the network and the residual. With a `residual` given, block `last` returns prefix + residual."""
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


def test_a_skip_is_prefix_and_residual(subject, family, subtests):
    """Compared with the network itself, run in full with only one block's output replaced."""
    if family.unet:
        pytest.skip("tests/comfy/test_unet_hook.py compares the deep feature of UNets")
    pattern, network = subject.pattern, subject.network
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    for prefix, suffix in ((1, 0), (0, 0), (1, 1)):
        with subtests.test("the first and last blocks that always run", prefix=prefix, suffix=suffix):
            recording = Recording()
            with recording.of(network):
                _, report = subject.patched(every(2, prefix, suffix))
            assert [e.computed for e in report.evaluations] == pattern
            at, calls = pattern.index(False), len(recording.calls) // len(pattern)
            before, here = (recording.calls[i * calls : (i + 1) * calls] for i in (at - 1, at))
            replay = Replay(network, family, max(prefix, family.min_prefix), suffix)
            for computed, skipped in zip(before, here, strict=True):
                batches = [c.kwargs["transformer_options"]["cond_or_uncond"] for c in (computed, skipped)]
                assert batches[0] == batches[1]
                said, residual = replay(computed)
                mapped(close, flat(said), flat(computed.said))
                expected, _ = replay(skipped, residual)
                mapped(close, flat(skipped.said), flat(expected))


def flat(said: Any) -> Any:
    return tuple(said) if isinstance(said, list) else said


def test_an_unsupported_model_is_refused_with_what_does_work(subject):
    if isinstance(subject.record, Family):
        pytest.skip("is done at block level")
    with pytest.raises(StepCacheError, match=r"MeanCache.* work with every model"):
        attach(subject.model, every(2))


def test_a_model_that_keeps_something_from_run_to_run_is_skipped_as_in_a_fresh_process():
    """HiDream O1 keeps the keys and values of its prompts."""
    tiny = next((m for m in MODELS if m.base == "HiDreamO1"), None)
    if tiny is None:
        pytest.skip("this ComfyUI has no HiDream O1")
    subject = Subject(tiny)
    outs, decisions = [], []
    subject.model.model.diffusion_model.clear_kv_cache()
    for _ in range(2):
        out, report = subject.patched(every(2))
        outs.append(out)
        decisions.append([e.computed for e in report.evaluations])
    assert decisions[0] == decisions[1]
    mapped(functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4), *map(tuple, outs))
