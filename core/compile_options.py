"""Compiler settings that a workflow may choose. Workflows come from strangers: no value names code, a program, a file or a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from .texts import Text

EACH_BLOCK, WHOLE_MODEL = "each block", "whole model"
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
BACKENDS = ("inductor", "cudagraphs", "eager", "aot_eager")
DYNAMIC = {"auto": None, "true": True, "false": False}
TORCH = "torch.compile"

Value = bool | int | float | str

# Options of inductor that change speed, memory or precision only. Others name code or paths, write files, or are wrong here: `freezing`
# turns weights into constants, and a LoRA added later has no effect.
_SWITCHES = """
max_autotune max_autotune_pointwise max_autotune_gemm max_autotune_allow_flexible_layouts
coordinate_descent_tuning coordinate_descent_check_all_directions
epilogue_fusion epilogue_fusion_first prologue_fusion aggressive_fusion group_fusion batch_fusion permute_fusion b2b_gemm_pass
benchmark_kernel benchmark_fusion benchmark_epilogue_fusion benchmark_combo_kernel combo_kernels combo_kernel_foreach_dynamic_shapes
loop_ordering_after_fusion split_reductions online_softmax pattern_matcher decompose_mem_bound_mm conv_1x1_as_mm
use_mixed_mm force_fuse_int_mm_with_mul shape_padding force_shape_pad comprehensive_padding pad_channels_last pad_dynamic_shapes
layout_optimization force_layout_optimization keep_output_stride reorder_for_locality reorder_for_peak_memory
memory_planning inplace_buffers allow_buffer_reuse graph_partition
deterministic emulate_precision_casts use_fast_math fallback_random
size_asserts nan_asserts scalar_asserts alignment_asserts fx_graph_cache autotune_local_cache
triton.cudagraphs triton.cudagraph_trees triton.cudagraph_skip_dynamic_graphs triton.cudagraph_support_input_mutation
triton.dense_indexing triton.autotune_pointwise triton.autotune_cublasLt triton.prefer_nd_tiling triton.tile_reductions
triton.tiling_prevents_pointwise_fusion triton.tiling_prevents_reduction_fusion triton.coalesce_tiling_analysis
triton.persistent_reductions triton.cooperative_reductions triton.use_block_ptr triton.enable_persistent_tma_matmul
triton.divisible_by_16 triton.unique_kernel_names triton.codegen_upcast_to_fp32 triton.native_matmul triton.enable_pdl
cpp.no_redundant_loops cpp.dynamic_threads cpp.fallback_scatter_reduce_sum cpp.enable_loop_tail_vec
cpp.enable_tiling_heuristics cpp.enable_unsafe_math_opt_flag cpp.enable_grouped_gemm_template cpp.enable_concat_linear
"""
SWITCHES = frozenset(_SWITCHES.split())
COUNTS = {  # name: (smallest, largest)
    "coordinate_descent_search_radius": (1, 16),
    "max_fusion_size": (1, 4096),
    "max_pointwise_cat_inputs": (1, 256),
    "min_num_split": (0, 1024),
    "realize_reads_threshold": (1, 1024),
    "realize_opcount_threshold": (1, 4096),
    "unroll_reductions_threshold": (1, 1024),
    "triton.max_tiles": (1, 3),
    "triton.multi_kernel": (0, 3),
    "cpp.threads": (-1, 1024),
    "cpp.simdlen": (0, 4096),
    "cpp.min_chunk_size": (1, 1 << 20),
    "cpp.max_horizontal_fusion_size": (1, 1024),
}
WORDS = {
    "max_autotune_gemm_backends": ("ATEN", "TRITON", "CPP"),
    "max_autotune_conv_backends": ("ATEN", "TRITON"),
    "max_autotune_gemm_search_space": ("DEFAULT", "EXHAUSTIVE"),
    "max_autotune_flex_search_space": ("DEFAULT", "EXHAUSTIVE"),
    "cpp.enable_floating_point_contract_flag": ("off", "on", "fast"),
}
LISTS = ("max_autotune_gemm_backends", "max_autotune_conv_backends")  # several words, separated by commas
KNOWN = (*sorted(SWITCHES), *COUNTS, *WORDS)


@dataclass(frozen=True)
class Settings:
    """A Compile Model+ node's settings.

    Parameters
    ----------
    what: EACH_BLOCK or WHOLE_MODEL.
    mode, backend, fullgraph, dynamic: as torch.compile's.
    options: (name, value) of inductor's options, from `options_of`.
    compiler: TORCH, or the name of an installed entry point.
    """

    what: str = EACH_BLOCK
    mode: str = "default"
    backend: str = "inductor"
    fullgraph: bool = False
    dynamic: bool | None = None
    options: tuple[tuple[str, Value], ...] = ()
    compiler: str = TORCH

    def check(self, backends: Iterable[str] = (), compilers: Iterable[str] = ()) -> None:
        """Raises ValueError for an unknown value. backends, compilers: installed ones beside those that are always available."""
        for name, value, known in (
            ("compile", self.what, (EACH_BLOCK, WHOLE_MODEL)),
            ("mode", self.mode, MODES),
            ("backend", self.backend, (*BACKENDS, *backends)),
            ("compiler", self.compiler, (TORCH, *compilers)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(dict.fromkeys(known))}, not {value!r}")
        if self.compiler == TORCH and self.backend != "inductor" and self.options:
            raise ValueError(
                f"options are inductor's, and the backend {self.backend} takes none. Empty them, or choose inductor."
            )

    @property
    def graphs(self) -> bool:
        """True if CUDA graphs are used, whose outputs the next call overwrites."""
        if self.compiler != TORCH:
            return False
        chosen = dict(self.options).get("triton.cudagraphs")
        if chosen is not None:
            return bool(chosen)
        return self.backend == "cudagraphs" or (
            self.backend == "inductor" and self.mode in ("reduce-overhead", "max-autotune")
        )


def options_of(text: str) -> tuple[tuple[str, Value], ...]:
    """The options in a JSON text, sorted by name. Raises ValueError for a text that is no JSON object, an option that is not allowed, or a
    value that the option does not take."""
    if not text.strip():
        return ()
    example = 'as in {"epilogue_fusion": true, "max_fusion_size": 32}'
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"options is JSON, {example}; this cannot be read: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"options is a JSON object of names and values, {example}, not {type(given).__name__}")
    return tuple(sorted((name, _value(name, value)) for name, value in given.items()))


def _value(name: str, value: Any) -> Value:
    if name in SWITCHES:
        if isinstance(value, bool):
            return value
        raise ValueError(f"the option {name} is true or false, not {value!r}")
    if name in COUNTS:
        low, high = COUNTS[name]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"the option {name} is a whole number from {low} to {high}, not {value!r}")
    if name in WORDS:
        words = value.split(",") if name in LISTS and isinstance(value, str) else [value]
        if all(isinstance(w, str) and w in WORDS[name] for w in words):
            return str(value)
        several = ", or several of them with commas between" if name in LISTS else ""
        raise ValueError(f"the option {name} is one of {', '.join(WORDS[name])}{several}, not {value!r}")
    if name == "freezing":
        why = "it makes constants of the weights, so that a LoRA added or changed later would have no effect"
    else:
        why = "only options that change speed, memory or precision are taken; none that name a program, file, folder, hook or pass"
    similar = ", ".join(get_close_matches(name[:80], KNOWN, 3, 0.0))
    raise ValueError(
        f"the option {name[:80]!r} is not allowed: {why}. The most similar of the {len(KNOWN)} allowed: {similar}"
    )


# words in an error's message or class, and the remedy
ADVICE = (
    (
        ("tritonmissing", "working triton", "named 'triton"),
        Text(
            "needs_triton",
            "inductor needs Triton for a GPU: `pip install triton`, on Windows `triton-windows`",
        ),
    ),
    (
        (
            "c compiler",
            "compiler: cl",
            "invalidcxxcompiler",
            "no working c++ compiler",
            "cxx compiler",
            "cl is not found",
        ),
        Text(
            "needs_compiler",
            "inductor needs a C and C++ compiler: gcc and g++, on Windows the Visual Studio Build Tools",
        ),
    ),
    (
        ("python.h",),
        Text(
            "needs_headers",
            "inductor needs Python's C headers: python3-dev, on Windows a full Python, not an embedded one",
        ),
    ),
    (("guard_filter_fn",), Text("needs_torch", "Compile Model+ needs torch 2.8 or newer")),
    (
        ("fullgraph=true", "graph break"),
        Text("turn_fullgraph_off", "a part of the model cannot be compiled: turn fullgraph off"),
    ),
)


def advice(error: BaseException) -> str:
    """The remedy for a compiler's error, as the end of a sentence; "" where unknown."""
    text = ""
    cause: BaseException | None = error
    while cause is not None and len(text) < 20000:
        text += f"{type(cause).__name__}: {cause}\n".lower()
        cause = cause.__cause__
    return next((what for words, what in ADVICE if any(w in text for w in words)), "")
