"""Compiles a MODEL, in whole or block by block.

Compiled modules are in the network only while ComfyUI calls it: the APPLY_MODEL wrapper swaps them in and out, so that weights, names and
other clones of the MODEL stay unchanged.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch.nn import Module

from ...core.compile_options import EACH_BLOCK, WHOLE_MODEL, Settings, advice
from ...core.texts import Text
from ..comfy_server import place, prompt_id, show_text
from ..step.attach import KEY as OWN_KEY
from .module_swap import State, stage_of, token
from .registry import backends, offered

KEY = "torch.compile"  # the key of ComfyUI's own helper: of two compiling nodes the last one counts
SEEN = (
    5  # different transformer_options that a node compiles for within CALLS calls; with more, new ones run uncompiled
)
CALLS = 50

# Keys of transformer_options that change from call to call, or that the model itself sets. No block reads one.
_PASSING = """
cond_or_uncond uuids sigmas sample_sigmas wrappers callbacks context_window prefetch_dynamic_vbars multigpu_thread_device
block block_index block_type total_blocks img_slice grid_sizes transformer_index original_shape activations_shape
"""
PASSING = frozenset(_PASSING.split())
# Patches that the model calls between its blocks
_BETWEEN = """
dit double_block single_block noise_refiner post_input emb_patch forward_timestep_embed_patch
input_block_patch input_block_patch_after_skip middle_block_after_patch output_block_patch
"""
BETWEEN = frozenset(_BETWEEN.split())
# Keys of transformer_options that hold code of other nodes
CODE = ("patches", "patches_replace", "optimized_attention_override")
log = logging.getLogger(__name__)

COMPILED_BEFORE = Text("compiled_before", "another node has already compiled the model, so this one does nothing")
NO_BLOCKS = Text("no_blocks", "this model has no list of blocks and is compiled as a whole")
ONE_GPU = Text(
    "graphs_one_gpu",
    "mode {mode} uses CUDA graphs, which work on one GPU only: this model runs uncompiled on several",
)
BLOCK_PATCHES = Text(
    "block_patches",
    "calls in which other nodes patch blocks ({names}) run uncompiled. Choose `whole model` to compile these, too",
)
CHANGING = Text("options_change", "transformer_options ({names}) change on every call; new variants run uncompiled")
CHANGED = Text("options_changed", "compiling again, because transformer_options changed ({names})")
AGAIN = Text("compiling_again", "compiling again, because {why}: this step takes longer")
FIRST = Text("compiling_with", "compiling with {backend}: the first step takes longer, up to minutes")
BLOCK, BLOCKS = Text("block_of", "block {number} of {total}"), Text("blocks", "{count} blocks")
MODEL = Text("the_model", "the model")
COMPILING = Text("compiling", "Compiling {what}")
COMPILING_AGAIN = Text("compiling_what_again", "Compiling {what} again: {why}")
COMPILING_SINCE = Text("compiling_since", "Compiling {what}, {seconds} so far")
COMPILED = Text("compiled", "Compiled {what} in {seconds}")
COMPILED_TWICE = Text("compiled_twice", "Compiled {what} in {seconds}, again in {again}: {why}")
COMPILED_AGAIN = Text("compiled_again", "Compiled again in {again}: {why}")
ALREADY = Text("already_compiled", "Already compiled")
NOT_COMPILED = Text("not_compiled", "Not compiled: {why}")
FAILED = Text("parts_not_compiled", "parts that could not be compiled run uncompiled ({error})")
FAILED_BECAUSE = Text(
    "parts_not_compiled_because", "parts that could not be compiled run uncompiled ({error}). {remedy}"
)

# By the model under dynamic VRAM: a clone without. Clones of clones keep theirs alive.
_FIXED: weakref.WeakKeyDictionary[Module, weakref.ref[Any]] = weakref.WeakKeyDictionary()


def compile_model(model: Any, settings: Settings) -> Any:
    """A clone of the MODEL (a comfy ModelPatcher) that is compiled at its first step.

    Where compiling fails, the reason is logged once and the model runs uncompiled. Raises ValueError for an object that is no diffusion
    model, and for a backend or compiler that is not installed.
    """
    settings.check(backends(), offered())
    if not hasattr(model, "add_wrapper_with_key") or not hasattr(model.model, "diffusion_model"):
        raise ValueError(
            f"Compile Model+ needs a diffusion MODEL, and got {type(model).__name__}. Connect the MODEL output of a checkpoint "
            "or diffusion model loader."
        )
    if not model.is_dynamic():
        patched = model.clone()
    else:
        # compiled code cannot follow weights that are moved while the model runs
        try:
            patched = _without_dynamic_vram(model)
        except RuntimeError as error:
            log.warning(
                "[Skipstone] Compile Model+: the model runs uncompiled, because dynamic VRAM is on and its loader cannot load it "
                "otherwise (%s). Use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram",
                error,
            )
            return model.clone()
    if patched.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        log.info("[Skipstone] Compile Model+ replaces the compiling node before it")
        patched.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, CompiledModel(settings, place().sampler))
    return patched


class CompiledModel:
    """The APPLY_MODEL wrapper. ComfyUI shares it between clones of a model."""

    def __init__(self, settings: Settings, node: str = "") -> None:
        """node: id of the node in its graph, on which the state is shown; "" for none."""
        self.settings, self.node = settings, node
        self.seconds = 0.0  # spent compiling
        self.blocks = 0  # of the model, that are compiled
        self.again = ("", 0.0)  # why it was compiled again, and the seconds that this took
        self.called = False  # once, to the end
        self.problem = False
        self.status: str = ""  # the last text on the node
        self.prompt = prompt_id()  # in which it was shown
        self.told: set[str] = set()
        self.seen: dict[State, tuple[State, int]] = {}  # the state itself, and the number of the call that first had it
        self.calls = 0

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options") or (args[5] if len(args) > 5 else None) or {}
        base = executor.class_obj
        if hasattr(base.diffusion_model, "_orig_mod"):
            self.tell(COMPILED_BEFORE)
            return executor(*args, **kwargs)
        if self.status and self.prompt != (prompt := prompt_id()):
            # ComfyUI keeps the MODEL from prompt to prompt, and the page may be a new one
            self.prompt = prompt
            show_text(self.status, self.node)
        stage, what = stage_of(base, self.settings), self.settings.what
        if options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}).get(OWN_KEY):
            what = EACH_BLOCK  # a block-level hook cannot run inside one graph
        if what == EACH_BLOCK and not stage.lists(base.diffusion_model):
            what = WHOLE_MODEL
            self.tell(NO_BLOCKS, logging.INFO)
        state = self.state(options, what)
        if self.settings.graphs and "multigpu_thread_device" in options:
            # cudagraph_mark_step_begin acts on all threads: a step that begins on one GPU would end those of the others
            self.tell(ONE_GPU.of(mode=self.settings.mode))
            return executor(*args, **kwargs)
        if self.settings.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with stage.set(self, base, what, state):
            result = executor(*args, **kwargs)
        self.called = True
        if not self.problem and self.status != (text := self.summary()):
            self.show(text)
        # the next call overwrites a CUDA graph's output
        return result.clone() if self.settings.graphs and torch.is_tensor(result) else result

    def tell(self, sentence: Text, level: int = logging.WARNING, short: Text | None = None) -> None:
        """Log a sentence once per node, and show it there. short: what to show instead."""
        if sentence not in self.told:
            self.told.add(sentence)
            log.log(level, "[Skipstone] Compile Model+: %s", sentence)
            self.problem |= level >= logging.WARNING
            self.show(short or sentence.capital())

    def show(self, text: Text) -> None:
        """Show the state on the node: now, and in every later prompt."""
        self.status, self.prompt = text, prompt_id()
        show_text(text, self.node)

    def starts(self, number: int, total: int, again: str) -> None:
        """Compilation of block `number` of `total` starts; 1 of 1 is the whole model. again: why, where it was compiled before."""
        again = again if self.called else ""  # blocks of several sizes in one call share code
        what = BLOCK.of(number=number, total=total) if total > 1 else MODEL
        if again:
            short = COMPILING_AGAIN.of(what=what, why=again)
            self.tell(AGAIN.of(why=again), logging.INFO, short)
        else:
            short = COMPILING.of(what=what)
            if self.seconds:
                short = COMPILING_SINCE.of(what=what, seconds=_seconds(self.seconds))
            self.tell(FIRST.of(backend=self.settings.backend), logging.INFO, short)
        if not self.problem and self.status != short:
            self.show(short)

    def compiled(self, seconds: float, total: int, again: str) -> None:
        """One of `total` blocks was compiled and has run once, which took so long."""
        self.blocks = total
        if again and self.called:
            self.again = again, self.again[1] + seconds
        else:
            self.seconds += seconds

    def summary(self) -> Text:
        """What was compiled, and how long it took. Two lines of a node of default width."""
        why, seconds = self.again
        what = BLOCKS.of(count=self.blocks) if self.blocks > 1 else MODEL
        first, again = _seconds(self.seconds), _seconds(seconds)
        if self.seconds and why:
            return COMPILED_TWICE.of(what=what, seconds=first, again=again, why=why)
        if self.seconds:
            return COMPILED.of(what=what, seconds=first)
        return COMPILED_AGAIN.of(again=again, why=why) if why else ALREADY

    def failed(self, error: BaseException) -> None:
        remedy, inner = advice(error), getattr(error, "inner_exception", error)
        reason = next((line.strip() for line in str(inner).splitlines() if line.strip()), "no reason given")
        told = f"{type(inner).__name__}: {reason[:300]}"
        self.tell(
            FAILED_BECAUSE.of(error=told, remedy=remedy) if remedy else FAILED.of(error=told),
            short=NOT_COMPILED.of(why=remedy or told),
        )

    def state(self, options: dict[str, Any], what: str) -> State | None:
        """The values that compiled code may depend on besides tensors and the model, see `_state`; None for a call that runs uncompiled."""
        if what == EACH_BLOCK:
            inside = [
                name
                for kind in ("patches", "patches_replace")
                for name, patch in (options.get(kind) or {}).items()
                if patch and name not in BETWEEN
            ]
            if inside:
                # patches may differ between blocks, which share compiled code
                self.tell(BLOCK_PATCHES.of(names=sorted(set(inside))))
                return None
        state = _state(options, what)
        self.calls += 1
        if state in self.seen:
            return self.seen[state][0]
        if self.seen:
            changed = sorted({name for name, _ in set(state) ^ set([*self.seen][-1])})
            if len(self.seen) >= SEEN:
                oldest = next(iter(self.seen))
                if self.calls - self.seen[oldest][1] < CALLS:
                    self.tell(CHANGING.of(names=changed))
                    return None
                del self.seen[oldest]
            self.tell(CHANGED.of(names=changed), logging.INFO)
        self.seen[state] = state, self.calls
        return state


def _without_dynamic_vram(model: Any) -> Any:
    """A clone of the MODEL whose weights stay where they are while it runs. ComfyUI loads the model's file again for it, which is done
    once for as long as such a clone lives. Raises RuntimeError where ComfyUI cannot do it."""
    known = _FIXED.get(model.model)
    before = known() if known is not None else None
    more = {} if before is None else {"model_override": before.get_clone_model_override()}
    patched = model.clone(disable_dynamic=True, **more)
    _FIXED[model.model] = weakref.ref(patched)
    return patched


def _state(options: Mapping[str, Any], what: str) -> State:
    """The parts of a call's transformer_options that compiled code may treat as constant: it has no guards on them, because many of them
    change at every step."""
    found: list[tuple[str, Hashable]] = [(name, name in options) for name in sorted(PASSING)]
    for name in sorted(k for k in options if k not in PASSING):
        value = options[name]
        if name in ("patches", "patches_replace"):
            value = {k: v for k, v in value.items() if v and (what == WHOLE_MODEL or k not in BETWEEN)}
        found.append((name, token(value, name in CODE)))
    if what == WHOLE_MODEL:
        within = options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {})
        found.append(("wrappers", token({k: w for k, w in within.items() if w}, True)))
    return tuple(found)


def _seconds(value: float) -> str:
    return f"{value:.{0 if value >= 10 else 1}f} s"
