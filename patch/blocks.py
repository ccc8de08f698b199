"""The block-level hook: run the first blocks, decide, and replace what most of the others would add by a prediction.

What is known of a family is its record (families/). stacks.py and unet.py see in the network what enters and leaves the blocks that a
skip leaves out, and tell it to the `Call` here. What a ControlNet or an adapter adds between those blocks is part of what is kept
of them; what it adds before or after them happens as ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.step.fitted import Pupil
from ..core.step.run import Run, Slot
from .evaluation import EvaluationHook
from .families.tokens import Given
from .sigma import SigmaReader

if TYPE_CHECKING:
    from .reach import Reach

KEY = "skipstone"
ROOM = 0.25  # of the device's free memory: the most that "auto" keeps of residuals there
MULTI_GPU = "this run is spread over several GPUs: nothing is skipped at block level"

Streams = dict[str, Tensor]
"""What flows through the blocks, by name, the picture's own first; conditionings that are run together share a tensor."""


Look = Callable[[str], Tensor | None]
"""What there is to see before the blocks that a skip leaves out, by Blocks.probe; None where there is no such thing."""


class Seam(Protocol):
    """How to see, in one family's networks, what enters and leaves the blocks that a skip leaves out."""

    batch: (
        int | None
    )  # the streams' dimension along which a call's conditionings lie; None where they cannot be told apart

    def around(self, network: Any, call: Call, given: Given, control: Any) -> AbstractContextManager[None]:
        """For the duration of one call of the network (the diffusion model) on latent: tell `call`, and do what it answers."""
        ...


class Call:
    """One call of the network. keys: its conditionings in the order of the batch."""

    def __init__(self, hook: BlockHook, keys: list[Hashable], batch: int | None) -> None:
        self.hook = hook
        self.keys: list[Hashable] = keys if batch is not None else [tuple(keys)]
        self.batch = batch or 0
        self.base: Streams | None = None
        self.taught = False  # the first of an evaluation that is recorded
        self.modulated: Tensor | None = None
        # the indicator looks at the same one whatever it is batched with, and in whatever order
        self.first = min(range(len(self.keys)), key=lambda i: hook.place(self.keys[i]))

    def _part(self, value: Tensor, i: int) -> Tensor:
        """The i-th conditioning's share."""
        return value.chunk(len(self.keys), self.batch)[i] if len(self.keys) > 1 else value

    def _whole(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, self.batch) if len(parts) > 1 else parts[0]

    def enter(self, base: Streams, look: Look, copy: bool = False) -> Streams | None:
        """The first of the blocks that a skip leaves out is about to run. base: to what their residual is added; copy: others
        may write to it. look: what there is to see.

        Returns None where they are to run; otherwise what the last of them is to give.
        """
        hook, run = self.hook, self.hook.run
        order = [self.first, *(i for i in range(len(self.keys)) if i != self.first)]
        slots = [(self.keys[i], name) for i in order for name in base]
        seen = None
        if run.decision is None:
            if run.indicator is not None and hook.probe != "none":
                seen = self._seen(look, hook.probe)
            if hook.pupil is not None:
                self.taught = True
                self.modulated = self._seen(look, "modulated")
        if run.decide([*slots, *hook.missing], seen).compute:
            self.base = {n: v.clone() if copy else v for n, v in base.items()}
            return None
        return {
            n: v + self._whole([run.recall((key, n), v.device) for key in self.keys]).to(v.dtype)
            for n, v in base.items()
        }

    def _seen(self, look: Look, probe: str) -> Tensor | None:
        value = look(probe)
        return None if value is None else self._part(value, self.first)

    def leave(self, streams: Mapping[str, Tensor], image: Callable[[Tensor], Tensor], channels: int = -1) -> None:
        """The last of those blocks has run and gave `streams`. image: the picture's own part of the first stream, whose dimension
        `channels` is no place in the picture."""
        base, self.base = self.base, None
        if base is None:
            return
        hook, run = self.hook, self.hook.run
        residuals = {name: streams[name] - value for name, value in base.items()}
        hook.settle(residuals)
        for i, key in enumerate(self.keys):
            for name, residual in residuals.items():
                part = self._part(residual, i)
                # a view would hold on to the whole batch, and the residual of a lone conditioning is nobody else's
                run.keep((key, name), part.clone() if len(self.keys) > 1 else part)
        hook.met(self.keys)
        name = next(iter(residuals))
        own = self._part(image(residuals[name]), self.first)
        if run.indicator is not None and run.watched == (self.keys[self.first], name):
            run.indicator.computed(own)
        if hook.pupil is not None and self.taught:
            hook.pupil.observe(run.clock.sigma, own, self.modulated, channels)


class BlockHook(EvaluationHook):
    """One run's wrappers. A call of the model that is not one of the sampler's evaluations passes through untouched."""

    def __init__(
        self, run: Run, sigmas: SigmaReader, reach: Reach, offload: torch.device | None, pupil: Pupil | None = None
    ) -> None:
        super().__init__(run, sigmas, pupil)
        self.pupil = pupil
        self.reach = reach
        self.seam = reach.seam
        self.probe = reach.blocks.probe
        self.offload = offload  # where residuals go that have no room where the model computes; None: they stay
        self.named: list[Slot | None] = []  # the slots of the call of CALC_COND_BATCH under way
        self.counted: Counter[Hashable] = Counter()
        self.known: set[Slot] = set()  # slots that residuals have been kept of
        self.missing: list[Slot] = []  # slots of this call that none has been kept of: nothing can be skipped

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        return super().wrappers | {WrappersMP.PREPARE_SAMPLING: self.prepare_sampling}

    def prepare_sampling(
        self, executor: Any, model: Any, noise_shape: Sequence[int], conds: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """PREPARE_SAMPLING: ComfyUI is told of the residuals' size before it loads the model, as of a larger batch."""
        if self.run.device is None:
            count = self.run.track.anchors * max(sum(len(c or ()) for c in conds.values()), 1)
            size = self.reach.residual(noise_shape) * count * model.model_dtype().itemsize
            row = model.memory_required([1, *noise_shape[1:]])
            noise_shape = [noise_shape[0] + round(size / max(row, 1)), *noise_shape[1:]]
        return executor(model, noise_shape, conds, *args, **kwargs)

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        """CALC_COND_BATCH: names the slots. The wrapper of APPLY_MODEL is added here, so as to be within every other, and see the
        blocks as they will run: a compiling node may have put its own in their place."""
        slots = self.slots(conds, x, timestep, model_options)
        if not any(s is not None for s in slots):
            return executor(model, conds, x, timestep, model_options)
        options = comfy.model_patcher.create_model_options_clone(model_options)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, KEY, self.apply_model, options, is_model_options=True
        )
        self.named, self.counted = slots, Counter()
        self.missing = [s for s in slots if s is not None and s not in self.known]
        try:
            return executor(model, conds, x, timestep, options)
        finally:
            self.named = []
            if self.run.decision is None:
                self.run.decide(["no blocks ran"])

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006  as the wrapped function has it; never written to
        **kwargs: Any,
    ) -> Tensor:
        """APPLY_MODEL: once for every batch of conditionings that fits into memory."""
        rest = (c_concat, c_crossattn, control, transformer_options)
        if not self.named or "cond_or_uncond" not in transformer_options:
            return executor(x, t, *rest, **kwargs)
        if "multigpu_thread_device" in transformer_options:
            self.run.report.note(MULTI_GPU)
            return executor(x, t, *rest, **kwargs)
        call = Call(self, self._keys(transformer_options), self.seam.batch)
        # popped from by UNets: whoever runs a second time needs them again
        again = {k: list(v) for k, v in control.items()} if isinstance(control, dict) else control
        try:
            shapes = kwargs.get("latent_shapes")  # several latents, packed into one
            given = Given(tuple(shapes[0]) if shapes else tuple(x.shape), kwargs, transformer_options)
            with self.seam.around(executor.class_obj.diffusion_model, call, given, control):
                return executor(x, t, *rest, **kwargs)
        except Exception as error:
            if not (self.run.histories and comfy.model_management.is_oom(error)):
                raise
        call.base = None
        self.run.drop()
        comfy.model_management.soft_empty_cache()
        self.run.report.note("memory ran out: what was kept of the blocks was dropped, and that step computed in full")
        return executor(x, t, c_concat, c_crossattn, again, transformer_options, **kwargs)

    def _keys(self, options: dict[str, Any]) -> list[Hashable]:
        """A name for each conditioning of the batch. Parts of a regional prompt share a slot and may share a uuid."""
        keys: list[Hashable] = []
        uuids = options.get("uuids") or [None] * len(options["cond_or_uncond"])
        for position, uuid in zip(options["cond_or_uncond"], uuids, strict=True):
            place = (position, self.named[position], uuid)
            keys.append((*place, self.counted[place]))
            self.counted[place] += 1
        return keys

    @staticmethod
    def place(key: Any) -> tuple[int, int]:
        """Where a key's conditioning stands among those of an evaluation."""
        while isinstance(key[0], tuple):
            key = min(key)
        return key[0], key[-1]

    def met(self, keys: list[Hashable]) -> None:
        """Residuals have been kept of these."""
        for key in keys:
            parts: Any = key if isinstance(key[0], tuple) else (key,)  # type: ignore[index]
            self.known.update(part[1] for part in parts)

    def settle(self, residuals: Mapping[str, Tensor]) -> None:
        """Before the first residuals are kept: is there room for them where the model computes?"""
        if self.offload is None or self.run.histories:
            return
        size = sum(r.numel() * r.element_size() for r in residuals.values()) * max(self.run.track.anchors, 1)
        device = next(iter(residuals.values())).device
        if size > ROOM * comfy.model_management.get_free_memory(device):
            self.run.device = self.offload
            self.run.report.note(
                f"{size / 2**20:.0f} MB of residuals are kept in main memory: the device has no room for them"
            )
        self.offload = None
