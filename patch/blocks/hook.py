"""The block-level hook: runs the first blocks, decides, and replaces the residual of the others by a prediction.

A family's record (families/) describes its networks; an adapter (transformer.py, unet.py) observes the input and the output of the skipped
blocks and reports them to a `BlockCall`. Additions of a ControlNet or an adapter between those blocks are part of the residual; before
and after them they happen as usual.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.step.calibration.block_profile import BlockProfiler
from ...core.step.reasons import Reason
from ...core.step.run import Run
from ...core.step.track import Slot
from ...core.texts import Text, said
from ..families.tokens import CallInputs
from ..step.hook_base import EvaluationHook
from ..step.sigmas import SigmaReader
from . import comfy_compiler
from .base import BlockSupport, Look, Streams, UnexpectedForward

KEY = "skipstone"
HOST = torch.device("cpu")  # offloaded residuals: a MODEL's offload device may be its GPU (--highvram)
ROOM = 0.25  # share of the device's free memory that "auto" uses for residuals
MULTI_GPU = Text("several_gpus", "this run is spread over several GPUs: nothing is skipped at block level")
OOM = Text("residuals_dropped", "memory ran out: the residuals were dropped and that step was computed in full")
NO_MORE = Text("no_memory", "memory ran out with residuals in main memory: from there on nothing is skipped")
ELSEWHERE = Text("residuals_elsewhere", "residuals are kept in main memory: the device has no room for them")
SHAPES = Text(
    "streams_changed",
    "the streams through the model's blocks changed their size from one step to the next: from there on nothing is skipped",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditioning:
    """A conditioning of a batch.

    position: among the conditionings of an evaluation. slot: at output level. uuid: ComfyUI's. repeat: 0-based index among batch entries
    that are otherwise alike, such as the parts of a regional prompt.
    """

    position: int
    slot: Slot | None
    uuid: Hashable
    repeat: int


Group = tuple[Conditioning, ...]
"""Conditionings whose streams cannot be separated: one, where they can."""


@dataclass(frozen=True)
class StreamSlot:
    """A stream of a group of conditionings: the run's slot at block level."""

    group: Group
    stream: str


class BlockCall:
    """One call of the network. See base.Call. conditionings: in the order of the batch."""

    def __init__(self, hook: BlockHook, conditionings: list[Conditioning], batch: int | None) -> None:
        self.hook = hook
        self.groups: list[Group] = [tuple(conditionings)] if batch is None else [(c,) for c in conditionings]
        self.batch = batch or 0
        self.base: dict[str, list[Tensor]] | None = None  # by stream and group
        self.own = False  # `base` is our copy
        self.predicted = False  # it was skipped
        self.recorded = False  # the evaluation's first call, in a recorded run
        self.modulated: Tensor | None = None
        # the indicator follows the same group, in whatever order conditionings are batched
        self.first = min(range(len(self.groups)), key=lambda i: min((c.position, c.repeat) for c in self.groups[i]))

    @property
    def pending(self) -> bool:
        return self.base is not None

    @property
    def first_evaluation(self) -> bool:
        return self.hook.run.clock.evaluation == 0

    @property
    def has_indicator(self) -> bool:
        return self.hook.run.indicator is not None

    @property
    def wants_modulated(self) -> bool:
        hook = self.hook
        undecided = hook.run.decision is None
        return undecided and (hook.profiler is not None or (hook.probe == "modulated" and self.has_indicator))

    def note(self, sentence: str, warning: bool = True) -> None:
        self.hook.run.report.note(sentence, warning)

    def cancel(self) -> None:
        self.base = None

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        """Each group's part of a stream; a scalar belongs to all."""
        count = len(self.groups)
        return value.chunk(count, self.batch) if count > 1 and value.ndim else [value] * count

    def _whole(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, self.batch) if len(parts) > 1 else parts[0]

    def enter(self, base: Streams, look: Look, copy: bool = False) -> Streams | None:
        with comfy_compiler.paused():
            # no tensor that the model made in a recording may be kept, not even until its last block
            return self._enter(base, look, copy or comfy_compiler.records())

    def _enter(self, base: Streams, look: Look, copy: bool) -> Streams | None:
        hook, run = self.hook, self.hook.run
        order = [self.first, *(i for i in range(len(self.groups)) if i != self.first)]
        slots = [StreamSlot(self.groups[i], name) for i in order for name in base]
        seen = None
        if run.decision is None:
            if run.indicator is not None and hook.probe != "none":
                seen = look(hook.probe)
            if hook.profiler is not None:
                self.recorded = True
                self.modulated = look("modulated")
        if run.decide([*slots, *hook.missing], seen).compute:
            self.own = copy
            # by group: a part of the batch's copy would keep all of it alive
            self.base = {n: [p.clone() if copy else p for p in self._parts(v)] for n, v in base.items()}
            return None
        given = {
            n: self._whole([run.recall(StreamSlot(group, n), v.device) for group in self.groups])
            for n, v in base.items()
        }
        if any(v.ndim and v.shape != given[n].shape for n, v in base.items()):
            raise UnexpectedForward(SHAPES)
        self.predicted = True
        # the prediction is a new tensor, so it may be written to
        return {n: given[n].to(v.dtype).add_(v) for n, v in base.items()}

    def _into(self, before: Tensor, after: Tensor) -> bool:
        """Whether their difference can be written over `before`."""
        return self.own and before.shape == after.shape and before.dtype == after.dtype

    def indicated(self, value: Tensor) -> Tensor:
        return self._parts(value)[self.first]

    def leave(self, streams: Mapping[str, Tensor], image: Callable[[Tensor], Tensor], channels: int = -1) -> None:
        with comfy_compiler.paused():
            self._leave(streams, image, channels)

    def _leave(self, streams: Mapping[str, Tensor], image: Callable[[Tensor], Tensor], channels: int) -> None:
        base, self.base = self.base, None
        if base is None:
            return
        hook, run, first = self.hook, self.hook.run, next(iter(base))
        # one by one: a part of the batch's residual would keep all of it alive
        residuals = {
            StreamSlot(group, name): torch.sub(after, before, out=before)
            if self._into(before, after)
            else after - before
            for name, parts in base.items()
            for group, after, before in zip(self.groups, self._parts(streams[name]), parts, strict=True)
        }
        del base
        if hook.offload is not None:
            hook.choose_device(hook.offload, residuals.values(), self.groups)
        for slot, residual in residuals.items():
            run.keep(slot, residual)
        hook.known.update(c.slot for group in self.groups for c in group)
        own = StreamSlot(self.groups[self.first], first)
        if run.indicator is not None and run.indicated_slot == own:
            run.indicator.observe_output(residuals[own])
        if hook.profiler is not None and self.recorded:
            hook.record(hook.profiler.observe, run.clock.sigma, image(residuals[own]), self.modulated, channels)


class BlockHook(EvaluationHook):
    """One run's wrappers. Calls that are not part of a sampler's evaluation pass through unchanged.

    offload: device for residuals that do not fit where the model computes; None: they stay there.
    """

    def __init__(
        self,
        run: Run,
        sigmas: SigmaReader,
        support: BlockSupport,
        offload: torch.device | None,
        profiler: BlockProfiler | None = None,
    ) -> None:
        super().__init__(run, sigmas, profiler)
        self.profiler = profiler
        self.support = support
        self.probe = support.blocks.probe
        self.offload = offload
        self.room: float | None = None  # bytes of residuals that may stay where the model computes
        self.patcher: Any = None  # the MODEL, from PREPARE_SAMPLING on
        self.slots_of_call: list[Slot | None] = []  # of the current call of CALC_COND_BATCH
        self.shape_of_call: tuple[int, ...] | None = (
            None  # of its latent without the batch; None where conditionings have areas
        )
        self.counted: Counter[Hashable] = Counter()
        self.known: set[Slot | None] = set()  # output-level slots with residuals
        self.missing: list[Slot] = []  # slots of this call without residuals: nothing can be skipped
        self.disabled = False  # nothing is skipped any longer
        self.predicted = False  # a batch of this evaluation was predicted

    def prepare_sampling(
        self, executor: Any, model: Any, noise_shape: Sequence[int], conds: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        self.patcher = model
        return super().prepare_sampling(executor, model, noise_shape, conds, *args, **kwargs)

    def size(self, model: Any, noise_shape: Sequence[int], conds: Sequence[dict[str, Any]]) -> int:
        texts = [c["cross_attn"].shape[1] for c in conds if getattr(c.get("cross_attn"), "ndim", 0) == 3]
        shape, channels = noise_shape, model.model.latent_format.latent_channels
        if len(shape) == 3 and shape[1] == 1:  # several latents, packed into one
            shape = (shape[0], channels, shape[2] // channels)
        # the streams' dtype, which is not that of quantized weights
        residual = self.support.residual(shape, max(texts, default=0)) * model.model.get_dtype_inference().itemsize
        # the anchors and one more: on a skip the prediction, else the blocks' input and the new residual in place of the oldest anchor
        return residual * (self.run.trajectory.anchors + 1) * max(len(conds), 1)

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        """CALC_COND_BATCH: finds the slots. Adds the wrapper of APPLY_MODEL innermost, where compiling nodes have already replaced
        blocks by their own."""
        slots = self.slots(conds, x, timestep, model_options)
        if not any(s is not None for s in slots):
            return executor(model, conds, x, timestep, model_options)
        options = comfy.model_patcher.create_model_options_clone(model_options)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, KEY, self.apply_model, options, is_model_options=True
        )
        self.slots_of_call, self.counted = slots, Counter()
        self.predicted = self.predicted and self.run.decision is not None
        self.missing = [s for s in slots if s is not None and s not in self.known]
        areas = any({"area", "default"} & c.keys() for cond in conds for c in cond or ())
        self.shape_of_call = None if areas else tuple(x.shape[1:])
        try:
            denoised = executor(model, conds, x, timestep, options)
            self.observe_parts(slots, x, denoised)
            return denoised
        finally:
            self.slots_of_call = []
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
        """APPLY_MODEL: once for each batch of conditionings that fits into memory."""
        rest = (c_concat, c_crossattn, control, transformer_options)
        if not self.slots_of_call or self.disabled or "cond_or_uncond" not in transformer_options:
            return executor(x, t, *rest, **kwargs)
        if "multigpu_thread_device" in transformer_options:
            self.run.report.note(MULTI_GPU)
            return executor(x, t, *rest, **kwargs)
        if self.shape_of_call not in (None, tuple(x.shape[1:])):  # tiles, known by nothing but their order
            self.compute_unknown_part()
            return executor(x, t, *rest, **kwargs)
        adapter = self.support.adapter
        call = BlockCall(self, self._conditionings(transformer_options), adapter.batch)
        # UNets pop from these lists, and a second run needs them again
        again = _copied(control)
        try:
            shapes = kwargs.get("latent_shapes")  # several latents, packed into one
            inputs = CallInputs(tuple(shapes[0]) if shapes else tuple(x.shape), kwargs, transformer_options)
            network = executor.class_obj.diffusion_model
            with adapter.around(network, call, inputs, control):
                result = executor(x, t, *rest, **kwargs)
            rehearsal = adapter.rehearsal(network, call, inputs, control)
            if rehearsal is not None:
                run = partial(executor, x, t, c_concat, c_crossattn, _copied(again), transformer_options, **kwargs)
                adapter.rehearsed(call, _returns(run, rehearsal, result))
            if adapter.problem:
                self.disabled = True
                call.cancel()
                self.run.report.note(adapter.problem)
            self.predicted = self.predicted or call.predicted
            return result
        except UnexpectedForward as error:
            self.disabled, reason = True, Reason.MODEL_CHANGED
            self.run.report.note(said(error))
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            reason = Reason.MEMORY
            self._free_memory()
        call.cancel()
        self._restart(reason)
        return executor(x, t, c_concat, c_crossattn, again, transformer_options, **kwargs)

    def _free_memory(self) -> None:
        """Out of memory: move residuals to main memory from now on; if they were there, stop skipping."""
        run = self.run
        run.report.note(OOM)
        if run.device == HOST:
            self.disabled = True
            run.report.note(NO_MORE)
        else:
            run.device, self.offload = HOST, None
            run.report.note(ELSEWHERE)

    def _restart(self, reason: Reason) -> None:
        """Compute the current call after all, without residuals."""
        run = self.run
        run.drop()
        comfy.model_management.soft_empty_cache()
        comfy_compiler.let_go()
        # where an earlier batch was predicted, the evaluation stays a skipped one
        run.recompute(reason, reported=not self.predicted)

    def _conditionings(self, options: dict[str, Any]) -> list[Conditioning]:
        """The conditionings of a batch. Parts of a regional prompt share a slot and may share a uuid."""
        found: list[Conditioning] = []
        uuids = options.get("uuids") or [None] * len(options["cond_or_uncond"])
        for position, uuid in zip(options["cond_or_uncond"], uuids, strict=True):
            alike = (position, self.slots_of_call[position], uuid)
            found.append(Conditioning(*alike, self.counted[alike]))
            self.counted[alike] += 1
        return found

    def choose_device(self, offload: torch.device, residuals: Collection[Tensor], groups: Collection[Group]) -> None:
        """The device for the residuals of `groups` about to be kept: the model's while there is room, `offload` otherwise."""
        run, device = self.run, next(iter(residuals)).device
        if self.room is None:
            free = _available(self.patcher, device)
            # the room that ComfyUI made, and a share of the rest
            self.room = min(self.told, free) + ROOM * max(free - self.told, 0)
        others = [h for slot, h in run.histories.items() if h.device is None and slot.group not in groups]  # type: ignore[attr-defined]
        held = [v for h in others for v in list(h.anchors.values())[-1:]]
        size = sum(v.nbytes for v in (*held, *residuals)) * max(run.trajectory.anchors, 1)
        run.device = None if size <= self.room else offload
        if size > self.room:
            run.report.note(ELSEWHERE)


def _copied(control: Any) -> Any:
    """ControlNet outputs in lists of their own."""
    return {k: list(v) for k, v in control.items()} if isinstance(control, dict) else control


def _returns(run: Callable[[], Tensor], within: AbstractContextManager[None], expected: Tensor) -> bool:
    """Whether a call of the model within a context returns what is expected, to the bit. Waits for the device."""
    try:
        with within:
            return torch.equal(run(), expected)
    except Exception as error:
        if comfy.model_management.is_oom(error):
            raise
        log.debug("[Skipstone] the blocks cannot be left out", exc_info=True)
        return False


def _available(patcher: Any, device: torch.device) -> float:
    """Bytes available on a device, including weights that ComfyUI would move out; 0 where unknown."""
    try:
        ask = getattr(patcher, "get_free_memory", None) or comfy.model_management.get_free_memory
        free = float(ask(device))
        return free if free > 0 else 0.0  # not a number: unknown
    except Exception:
        log.debug("[Skipstone] the free memory is unknown", exc_info=True)
        return 0.0
