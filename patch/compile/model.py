"""Compiling a MODEL, in whole or block by block.

What is compiled stands in the network only while ComfyUI calls it: APPLY_MODEL puts it there and takes it away, so that weights,
names and other clones of the MODEL are as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ...core.compile_options import EACH_BLOCK, WHOLE_MODEL, Settings, advice
from ..step.attach import KEY as OWN_KEY
from .module_swap import State, stage_of, token
from .registry import backends, offered

KEY = "torch.compile"  # that of ComfyUI's own helper: of two compiling nodes the last one counts, whoever made them
SEEN = 5  # different options of a call that a node compiles for within CALLS of them; more mean that they change all the time
CALLS = 50

# Keys of transformer_options that change from call to call, or that the model sets itself as it goes. No block reads one.
_PASSING = """
cond_or_uncond uuids sigmas sample_sigmas wrappers callbacks context_window prefetch_dynamic_vbars multigpu_thread_device
block block_index block_type total_blocks img_slice grid_sizes transformer_index original_shape activations_shape
"""
PASSING = frozenset(_PASSING.split())
# Patches that the model calls between its blocks, not in them
_BETWEEN = """
dit double_block single_block noise_refiner post_input emb_patch forward_timestep_embed_patch
input_block_patch input_block_patch_after_skip middle_block_after_patch output_block_patch
"""
BETWEEN = frozenset(_BETWEEN.split())
# Where other nodes hand over code that the model calls
CODE = ("patches", "patches_replace", "optimized_attention_override")
log = logging.getLogger(__name__)


def compile_model(model: Any, settings: Settings) -> Any:
    """A clone of the MODEL (a comfy ModelPatcher) that is compiled as `settings` say when it is sampled.

    It is compiled at its first step. Where that fails the log says why, once, and the model runs as it is. Raises ValueError for
    something that is no diffusion model, and for a backend or compiler that is not installed.
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
        # its weights come and go while the model runs, which compiled code cannot follow
        try:
            patched = model.clone(disable_dynamic=True)
        except RuntimeError as error:
            log.warning(
                "[Skipstone] Compile Model+: the model runs uncompiled: it is under dynamic VRAM, and its loader cannot load it "
                "without (%s). Use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram",
                error,
            )
            return model.clone()
    if patched.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        log.info("[Skipstone] Compile Model+ takes the place of the compiling node before it")
        patched.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, CompiledModel(settings))
    return patched


class CompiledModel:
    """The APPLY_MODEL wrapper. ComfyUI shares it between clones of a model."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.told: set[str] = set()
        self.seen: dict[State, tuple[State, int]] = {}  # itself, and in which call it was first seen
        self.calls = 0

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options") or (args[5] if len(args) > 5 else None) or {}
        base = executor.class_obj
        if hasattr(base.diffusion_model, "_orig_mod"):
            self.tell("another node has compiled the model already: this one does nothing")
            return executor(*args, **kwargs)
        stage, what = stage_of(base, self.settings), self.settings.what
        if options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}).get(OWN_KEY):
            what = EACH_BLOCK  # a hook that works on blocks cannot be within one graph
        if what == EACH_BLOCK and not stage.lists(base.diffusion_model):
            what = WHOLE_MODEL
            self.tell("this kind of model has no list of blocks: it is compiled in whole", logging.INFO)
        state = self.state(options, what)
        if self.settings.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with stage.set(self, base, what, state):
            result = executor(*args, **kwargs)
        # the next call overwrites what a CUDA graph gave
        return result.clone() if self.settings.graphs and torch.is_tensor(result) else result

    def tell(self, what: str, level: int = logging.WARNING) -> None:
        """Once a node."""
        if what not in self.told:
            self.told.add(what)
            log.log(level, "[Skipstone] Compile Model+: %s", what)

    def starts(self) -> None:
        self.tell(f"compiling ({self.settings.backend}): the first step takes longer, up to minutes", logging.INFO)

    def failed(self, error: BaseException) -> None:
        todo, inner = advice(error), getattr(error, "inner_exception", error)
        said = next((line.strip() for line in str(inner).splitlines() if line.strip()), "no reason given")
        self.tell(
            f"what it could not compile runs uncompiled ({type(inner).__name__}: {said[:300]}){todo and '. ' + todo}"
        )

    def state(self, options: dict[str, Any], what: str) -> State | None:
        """What compiled code may depend on besides tensors and the model: see `_state`. None where this call is not to be compiled."""
        if what == EACH_BLOCK:
            inside = [
                name
                for kind in ("patches", "patches_replace")
                for name, patch in (options.get(kind) or {}).items()
                if patch and name not in BETWEEN
            ]
            if inside:
                # they may do another thing in every block, and blocks share code
                self.tell(
                    f"calls in which other nodes patch the inside of blocks ({', '.join(sorted(set(inside)))}) run uncompiled. "
                    "Choose `whole model` to compile these too"
                )
                return None
        state = _state(options, what)
        self.calls += 1
        if state in self.seen:
            return self.seen[state][0]
        if self.seen:
            changed = ", ".join(sorted({name for name, _ in set(state) ^ set([*self.seen][-1])}))
            if len(self.seen) >= SEEN:
                oldest = next(iter(self.seen))
                if self.calls - self.seen[oldest][1] < CALLS:
                    self.tell(
                        f"what other nodes say to the model changes all the time ({changed}): the new runs uncompiled"
                    )
                    return None
                del self.seen[oldest]
            self.tell(f"compiling anew, since other nodes say other things to the model ({changed})", logging.INFO)
        self.seen[state] = state, self.calls
        return state


def _state(options: Mapping[str, Any], what: str) -> State:
    """What a call's transformer_options say, as far as compiled code may have taken it for constant: it has no guards on them, since
    much in them changes with every step."""
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
