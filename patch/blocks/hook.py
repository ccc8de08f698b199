"""The block-level hook: run the first blocks, decide, and replace what most of the others would add by a prediction.

What is known of a family is its record (families/). stacks.py and unet.py see in the network what enters and leaves the blocks that a
skip leaves out, and tell it to the `Call` here. What a ControlNet or an adapter adds between those blocks is part of what is kept
of them; what it adds before or after them happens as ever.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.step.calibration.block_profile import BlockProfiler
from ...core.step.reasons import Reason
from ...core.step.run import Run, Slot
from ..families.tokens import Given
from ..step.hook_base import EvaluationHook
from ..step.sigmas import SigmaReader

if TYPE_CHECKING:
    from .resolver import BlockSupport

KEY = "skipstone"
HOST = torch.device("cpu")  # where residuals go: a MODEL's offload device may be its GPU (--highvram)
ROOM = 0.25  # of the device's free memory: the most that "auto" keeps of residuals there
MULTI_GPU = "this run is spread over several GPUs: nothing is skipped at block level"
OOM = "memory ran out: what was kept of the blocks was dropped, and that step computed in full"
NO_MORE = "memory ran out with residuals in main memory: from there on nothing is skipped"
ELSEWHERE = "residuals are kept in main memory: the device has no room for them"
SHAPES = "what flows through the model's blocks changed its size from one step to the next, and from there on nothing is skipped"

log = logging.getLogger(__name__)

Streams = dict[str, Tensor]
"""What flows through the blocks, by name, the picture's own first; conditionings that are run together share a tensor."""


Look = Callable[[str], Tensor | None]
"""What there is to see, of the conditioning that is watched, before the blocks that a skip leaves out, by Blocks.probe; None where there
is no such thing."""


class UnexpectedForward(Exception):
    """A skip was under way, and the model did not go on as its kind does. Says so in a sentence for the report."""


class BlockAdapter(Protocol):
    """How to see, in one family's networks, what enters and leaves the blocks that a skip leaves out."""

    batch: (
        int | None
    )  # the streams' dimension along which a call's conditionings lie; None where they cannot be told apart

    def around(self, network: Any, call: Call, given: Given, control: Any) -> AbstractContextManager[None]:
        """For the duration of one call of the network (the diffusion model) on latent: tell `call`, and do what it answers.

        Raises UnexpectedForward where a skip cannot be brought to its end.
        """
        ...


class Call:
    """One call of the network. keys: its conditionings in the order of the batch."""

    def __init__(self, hook: BlockHook, keys: list[Hashable], batch: int | None) -> None:
        self.hook = hook
        self.keys: list[Hashable] = keys if batch is not None else [tuple(keys)]
        self.batch = batch or 0
        self.base: dict[str, list[Tensor]] | None = None  # by stream and conditioning
        self.own = False  # `base` is a copy of ours
        self.taught = False  # the first of an evaluation that is recorded
        self.modulated: Tensor | None = None
        # the indicator looks at the same one whatever it is batched with, and in whatever order
        self.first = min(range(len(self.keys)), key=lambda i: hook.place(self.keys[i]))

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        """Each conditioning's share; of a scalar, all have it."""
        count = len(self.keys)
        return value.chunk(count, self.batch) if count > 1 and value.ndim else [value] * count

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
                seen = look(hook.probe)
            if hook.profiler is not None:
                self.taught = True
                self.modulated = look("modulated")
        if run.decide([*slots, *hook.missing], seen).compute:
            self.own = copy
            # by conditioning: a part of a batch's copy would hold on to all of it
            self.base = {n: [p.clone() if copy else p for p in self._parts(v)] for n, v in base.items()}
            return None
        given = {n: self._whole([run.recall((key, n), v.device) for key in self.keys]) for n, v in base.items()}
        if any(v.ndim and v.shape != given[n].shape for n, v in base.items()):
            raise UnexpectedForward(SHAPES)
        # what was predicted is a new tensor, and may be written to
        return {n: given[n].to(v.dtype).add_(v) for n, v in base.items()}

    def _into(self, before: Tensor, after: Tensor) -> bool:
        """Can their difference be written over `before`?"""
        return self.own and before.shape == after.shape and before.dtype == after.dtype

    def watched(self, value: Tensor) -> Tensor:
        """Of a stream, the share of the conditioning that the indicator looks at."""
        return self._parts(value)[self.first]

    def leave(self, streams: Mapping[str, Tensor], image: Callable[[Tensor], Tensor], channels: int = -1) -> None:
        """The last of those blocks has run and gave `streams`. image: the picture's own part of the first stream, whose dimension
        `channels` is no place in the picture."""
        base, self.base = self.base, None
        if base is None:
            return
        hook, run, first = self.hook, self.hook.run, next(iter(base))
        # one by one: a part of the batch's residual would hold on to all of it
        residuals: dict[Slot, Tensor] = {
            (key, name): torch.sub(after, before, out=before) if self._into(before, after) else after - before
            for name, parts in base.items()
            for key, after, before in zip(self.keys, self._parts(streams[name]), parts, strict=True)
        }
        del base
        if hook.offload is not None:
            hook.settle(hook.offload, residuals.values(), self.keys)
        for slot, residual in residuals.items():
            run.keep(slot, residual)
        hook.met(self.keys)
        own = self.keys[self.first], first
        if run.indicator is not None and run.indicated_slot == own:
            run.indicator.observe_output(residuals[own])
        if hook.profiler is not None and self.taught:
            hook.record(hook.profiler.observe, run.clock.sigma, image(residuals[own]), self.modulated, channels)


class BlockHook(EvaluationHook):
    """One run's wrappers. A call of the model that is not one of the sampler's evaluations passes through untouched."""

    def __init__(
        self,
        run: Run,
        sigmas: SigmaReader,
        reach: BlockSupport,
        offload: torch.device | None,
        profiler: BlockProfiler | None = None,
    ) -> None:
        super().__init__(run, sigmas, profiler)
        self.profiler = profiler
        self.reach = reach
        self.seam = reach.seam
        self.probe = reach.blocks.probe
        self.offload = offload  # where residuals go that have no room where the model computes; None: they stay
        # bytes of residuals that may stay where the model computes, where `offload` is not None
        self.room: float | None = None
        self.told = 0  # bytes that ComfyUI was told of
        self.unused = ""  # the name of conditionings that ComfyUI will not run
        self.patcher: Any = None  # the MODEL, from PREPARE_SAMPLING on
        self.named: list[Slot | None] = []  # the slots of the call of CALC_COND_BATCH under way
        self.counted: Counter[Hashable] = Counter()
        self.known: set[Slot] = set()  # slots that residuals have been kept of
        self.missing: list[Slot] = []  # slots of this call that none has been kept of: nothing can be skipped
        self.astray = False  # the model is not as its kind is: nothing is skipped any longer

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        return super().wrappers | {WrappersMP.PREPARE_SAMPLING: self.prepare_sampling}

    def prepare_sampling(
        self, executor: Any, model: Any, noise_shape: Sequence[int], conds: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """PREPARE_SAMPLING: ComfyUI is told of the residuals' size before it loads the model, as of a larger batch."""
        self.patcher = model
        if (self.run.device is None or self.run.device.type != "cpu") and not _spread(model):
            every = [c for name, several in conds.items() if name != self.unused for c in several or ()]
            texts = [c["cross_attn"].shape[1] for c in every if getattr(c.get("cross_attn"), "ndim", 0) == 3]
            shape, channels = noise_shape, model.model.latent_format.latent_channels
            if len(shape) == 3 and shape[1] == 1:  # several latents, packed into one
                shape = (shape[0], channels, shape[2] // channels)
            # the streams' dtype, which is not that of quantized weights
            size = self.reach.residual(shape, max(texts, default=0)) * model.model.get_dtype_inference().itemsize
            # beside the anchors: on a skip what is predicted; else, in place of the oldest anchor, what entered the blocks and the
            # new residual
            self.told = size * (self.run.trajectory.anchors + 1) * max(len(every), 1)
            row = model.memory_required([1, *noise_shape[1:]])
            noise_shape = [noise_shape[0] + round(self.told / max(row, 1)), *noise_shape[1:]]
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
        if not self.named or self.astray or "cond_or_uncond" not in transformer_options:
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
        except UnexpectedForward as error:
            self.astray, reason = True, Reason.MODEL_CHANGED
            self.run.report.note(str(error))
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            reason = Reason.MEMORY
            self._spare()
        call.base = None
        self._begin_anew(reason)
        return executor(x, t, c_concat, c_crossattn, again, transformer_options, **kwargs)

    def _spare(self) -> None:
        """Memory ran out: residuals go to main memory from now on, and where they did, nothing is kept any longer."""
        run = self.run
        run.report.note(OOM)
        if run.device == HOST:
            self.astray = True
            run.report.note(NO_MORE)
        else:
            run.device, self.offload = HOST, None
            run.report.note(ELSEWHERE)

    def _begin_anew(self, reason: Reason) -> None:
        """The evaluation under way is computed after all, and what was kept is let go."""
        run = self.run
        run.drop()
        comfy.model_management.soft_empty_cache()
        _let_fetched_go()
        run.recompute(reason)

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

    def settle(self, offload: torch.device, residuals: Collection[Tensor], keys: Collection[Hashable]) -> None:
        """Where the residuals about to be kept of `keys` go: where the model computes while there is room, to `offload` otherwise."""
        run, device = self.run, next(iter(residuals)).device
        if self.room is None:
            free = _free_memory(self.patcher, device)
            # what ComfyUI has made room for, and a share of the rest
            self.room = min(self.told, free) + ROOM * max(free - self.told, 0)
        others = [h for slot, h in run.histories.items() if h.device is None and slot[0] not in keys]  # type: ignore[index]
        held = [v for h in others for v in list(h.anchors.values())[-1:]]
        size = sum(v.nbytes for v in (*held, *residuals)) * max(run.trajectory.anchors, 1)
        run.device = None if size <= self.room else offload
        if size > self.room:
            run.report.note(ELSEWHERE)


def _free_memory(patcher: Any, device: torch.device) -> float:
    """Bytes that could be had on a device, weights that ComfyUI would move out included; 0 where it cannot be told."""
    try:
        ask = getattr(patcher, "get_free_memory", None) or comfy.model_management.get_free_memory
        return float(ask(device))
    except Exception:
        log.debug("[Skipstone] how much memory is free cannot be told", exc_info=True)
        return 0.0


def _spread(patcher: Any) -> bool:
    """Does the MODEL run on several GPUs?"""
    models = getattr(patcher, "get_additional_models_with_key", None)
    return bool(models and models("multigpu"))


def _let_fetched_go() -> None:
    """The weights of the block that a call came to no end at are held no longer: under dynamic VRAM ComfyUI fetched them for its turn,
    and lets them go only after the node."""
    try:
        from comfy.model_prefetch import cleanup_prefetch_queues
    except ImportError:
        return
    cleanup_prefetch_queues()
