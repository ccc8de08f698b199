"""What really happens at the blocks of a model in a run, seen by PyTorch hooks on them that know nothing of the pack's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn import Module, ModuleDict

from skipstone.core.step.indicators.blocks import FirstBlockChange
from skipstone.core.step.method import Blocks, Method
from skipstone.core.step.policies import Interval, Threshold, Warmup
from skipstone.core.step.predictors import Reuse
from skipstone.patch.families import Family, Stack, family_of

Streams = dict[str, Tensor]


def every(nth: int, prefix: int = 1, suffix: int = 0, **more: Any) -> Method:
    """Computes the first evaluation, every `nth` after it, and the last."""
    return Method("Every", str(nth), (Interval(1, nth),), Reuse(), blocks=Blocks(prefix, suffix, "none"), **more)


def below(threshold: float, prefix: int = 1, suffix: int = 0, warmup: int = 2, **more: Any) -> Method:
    """As First Block Cache decides it."""
    policies = (Warmup(warmup), Threshold(threshold))
    blocks = Blocks(prefix, suffix)
    return Method("Below", f"{threshold:g}", policies, Reuse(), indicator=FirstBlockChange(), blocks=blocks, **more)


@dataclass
class Seen:
    """One call of the network. keys: its conditionings, in the order of the batch. entered, left: copies of what entered the first of
    the blocks that a skip leaves out, and of what left the last; nothing where another node left that block out."""

    evaluation: int
    keys: list[Hashable]
    entered: Streams = field(default_factory=dict)
    left: Streams = field(default_factory=dict)
    ran: list[int] = field(default_factory=list)  # the positions of the blocks that really ran

    def part(self, streams: Streams, i: int) -> Streams:
        return {n: v.chunk(len(self.keys))[i] for n, v in streams.items()}


class BlockObserver:
    """Watches the runs of a MODEL of a family whose blocks stand in lists and are batched along dimension 0."""

    def __init__(self, model: Any, prefix: int = 1, suffix: int = 0) -> None:
        self.seen: list[Seen] = []
        self.sigmas: list[float] = []
        self.calls = 0
        self.window: tuple[int, ...] = ()
        self.counted: Counter[Hashable] = Counter()
        network = model.model.diffusion_model
        family = family_of(network)
        assert isinstance(family, Family)
        self.family = family
        self.blocks = [(stack, block) for stack in family.stacks for block in entries(network, stack)]
        self.first, self.last = prefix, len(self.blocks) - suffix - 1
        self.ends = suffix == 0
        self.text = 0  # tokens that stand before the picture's and are read by nothing after the last block
        self.handles = [network.register_forward_pre_hook(self._call, with_kwargs=True)]
        for i, (_, block) in enumerate(self.blocks):
            # a part of the block: it runs when the block does, however that is watched
            inner = next(m for m in block.modules() if m is not block and not list(m.children()))
            self.handles.append(inner.register_forward_pre_hook(self._ran(i)))
        self.handles += [
            self.blocks[self.first][1].register_forward_pre_hook(self._enter, with_kwargs=True),
            self.blocks[self.last][1].register_forward_hook(self._leave),
        ]

    def on(self, model: Any) -> Any:
        """A clone that is watched; put it on last."""
        watched = model.clone()
        watched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "observer", self._predict_noise)
        watched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "observer", self._calc_cond_batch)
        return watched

    def off(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _predict_noise(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        self.sigmas.append(float(timestep[0]))
        self.calls = 0
        return executor(x, timestep, *args, **kwargs)

    def _calc_cond_batch(self, executor: Any, model: Any, conds: Any, x: Any, timestep: Any, options: Any) -> Any:
        self.calls += 1
        self.counted.clear()
        self.window = tuple(getattr(options["transformer_options"].get("context_window"), "index_list", ()))
        before = x.clone()
        out = executor(model, conds, x, timestep, options)
        assert torch.equal(before, x), "the latent was written to"
        return out

    def _call(self, _: Module, args: Any, kwargs: Any) -> None:
        options = kwargs["transformer_options"]
        keys: list[Hashable] = []
        for position, uuid in zip(options["cond_or_uncond"], options["uuids"], strict=True):
            place = (self.calls, self.window, position, uuid)
            keys.append((*place, self.counted[place]))
            self.counted[place] += 1
        self.seen.append(Seen(len(self.sigmas) - 1, keys))

    def _ran(self, i: int) -> Callable[..., None]:
        return lambda *_: self.seen[-1].ran.append(i)

    def _enter(self, _: Module, args: Any, kwargs: Any) -> None:
        here = self.blocks[self.first][0]
        streams = {n: args[at] if isinstance(at, int) else kwargs[at] for n, at in here.takes}
        stacks = self.family.stacks
        self.text = 0
        for stack in stacks[stacks.index(here) + 1 : stacks.index(self.blocks[self.last][0]) + 1]:
            if stack.joins:
                self.text = streams["txt"].shape[1] if self.ends else 0
                streams = {stack.takes[0][0]: torch.cat([streams[n] for n in stack.joins], 1)}
        self.seen[-1].entered = {n: v[:, self.text :].clone() for n, v in streams.items()}

    def _leave(self, _: Module, args: Any, said: Any) -> None:
        gives = self.blocks[self.last][0].gives
        streams = {gives: said} if isinstance(gives, str) else dict(zip(gives, said, strict=True))
        left_out = (*self.family.same, *(self.family.dead if self.ends else ()))
        self.seen[-1].left = {n: v[:, self.text :].clone() for n, v in streams.items() if n not in left_out}

    def evaluations(self) -> list[list[Seen]]:
        return [[s for s in self.seen if s.evaluation == i] for i in range(len(self.sigmas))]

    def skips(self, seen: Seen) -> bool:
        return not any(self.first <= i <= self.last for i in seen.ran)

    def check(self, report: Any, at_least: int = 2) -> list[Seen]:
        """Each conditioning's own residual of the last computed evaluation, and of no older one, is what is added on a skip; the report
        tells of what there was. Returns the calls that were skipped.

        For methods that reuse; a call in which nothing entered or left (another node left the block out) was computed.
        """
        kept: dict[Hashable, tuple[int, Streams]] = {}
        latest = -1
        for i, calls in enumerate(self.evaluations()):
            for seen in calls:
                if not seen.entered or not seen.left:
                    assert not self.skips(seen)
                    continue
                for k, key in enumerate(seen.keys):
                    entered, left = seen.part(seen.entered, k), seen.part(seen.left, k)
                    if self.skips(seen):
                        at, residual = kept[key]
                        assert at == latest, "something older was used"
                        for name, value in residual.items():
                            torch.testing.assert_close(left[name], entered[name] + value, atol=1e-4, rtol=1e-4)
                    else:
                        kept[key] = (i, {n: v - entered[n] for n, v in left.items()})
            if any(not self.skips(seen) for seen in calls):
                latest = i
        assert [e.sigma for e in report.evaluations] == self.sigmas
        told = [e.computed for e in report.evaluations]
        assert told == [any(not self.skips(s) for s in calls[:1]) for calls in self.evaluations()]
        skipped = [s for s in self.seen if self.skips(s)]
        assert len({s.evaluation for s in skipped}) >= at_least
        return skipped


def entries(network: Module, stack: Stack) -> list[Module]:
    found = network.get_submodule(stack.at)
    return list(found.values() if isinstance(found, ModuleDict) else found.children())


# A model from outside


def sample(studio, model, **how):
    unet = hasattr(model.model.diffusion_model, "input_blocks")
    latent = {"latent": torch.zeros(1, 4, 8, 8)} if unet and not {"latent", "noise"} & how.keys() else {}
    return studio.sample(model, **{"steps": 6, **latent, **how})


def insides(model):
    """Everything that hangs on a network's modules, by name."""
    return {name: (dict(vars(m)), list(m._modules.items())) for name, m in model.model.diffusion_model.named_modules()}


def untouched(before, after):
    assert before.keys() == after.keys()
    for name, (own, children) in after.items():
        was, had = before[name]
        assert own.keys() == was.keys(), name
        assert all(own[k] is was[k] for k in own if k != "_modules"), name
        assert [(n, id(m)) for n, m in children] == [(n, id(m)) for n, m in had], name


def inner_part(model):
    """A layer within a block that a skip leaves out."""
    network = model.model.diffusion_model
    return (
        network.single_blocks[1].linear1 if hasattr(network, "single_blocks") else network.middle_block[0].in_layers[0]
    )


def outer_part(model):
    """A layer within a block that always runs."""
    network = model.model.diffusion_model
    return (
        network.double_blocks[0].img_attn.qkv
        if hasattr(network, "double_blocks")
        else network.input_blocks[1][0].in_layers[0]
    )


class Raises:
    """While it lasts a layer raises, at the given call of it, once."""

    def __init__(self, layer, at, error):
        self.left, self.error, self.calls = at, error, 0
        self.handle = layer.register_forward_pre_hook(self)

    def __call__(self, *_):
        self.calls += 1
        self.left -= 1
        if self.left == 0:
            raise self.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def last_part(model):
    """A layer after all blocks."""
    network = model.model.diffusion_model
    return network.final_layer.linear if hasattr(network, "final_layer") else network.out[0]
