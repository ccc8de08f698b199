"""Compile Model+: torch.compile, or another compiler, for the whole model or for each of its blocks."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.compile_options import BACKENDS, DYNAMIC, EACH_BLOCK, MODES, TORCH, WHOLE_MODEL, Settings, options_of
from ..patch.compile.model import compile_model
from ..patch.compile.registry import backends, offered
from .widgets import among


def settings_of(
    compile: str = EACH_BLOCK,
    mode: str = "default",
    backend: str = "inductor",
    fullgraph: bool = False,
    dynamic: str = "auto",
    options: str = "",
    compiler: str = TORCH,
) -> Settings:
    """The widgets' values as data. Raises ValueError for one that is not among those there are, and for options that are not allowed."""
    among("dynamic", dynamic, DYNAMIC)
    settings = Settings(compile, mode, backend, fullgraph, DYNAMIC[dynamic], options_of(options), compiler)
    settings.check(backends(), offered())
    return settings


class CompileModel(io.ComfyNode):
    """MODEL -> MODEL. See `core/compile_options.py` for what the widgets mean, and `patch/compile/model.py` for what is done."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCompileModel",
            display_name="Compile Model+",
            category="Skipstone/compile",
            description=(
                "Compiles the model: faster steps on most GPUs, and the same picture up to rounding. The first step takes longer while "
                "it compiles. Goes before or after step caches and LoRAs, whose strengths may change without compiling "
                "anew. Where it cannot compile it says so in the log, and the model runs as it is."
            ),
            search_aliases=[
                "skipstone",
                "torch.compile",
                "compile",
                "inductor",
                "triton",
                "faster sampling",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to compile."),
                io.Combo.Input(
                    "compile",
                    options=[EACH_BLOCK, WHOLE_MODEL],
                    default=EACH_BLOCK,
                    tooltip=(
                        "each block: the model's repeated blocks. Equal ones share what is compiled, so that compiling takes as long "
                        "for many as for one. whole model: one large graph of all blocks and what lies between them; "
                        "compiling takes the longer the more blocks there are. Under a block-level cache it is always each block."
                    ),
                ),
                io.Combo.Input(
                    "mode",
                    options=[*MODES],
                    default="default",
                    tooltip=(
                        "Of inductor. default: a good balance. reduce-overhead: CUDA graphs, for small models and pictures where "
                        "the GPU waits for Python; takes more memory, and sizes should stay the same. max-autotune: also times many "
                        "versions of each kernel; compiling takes much longer. max-autotune-no-cudagraphs: that without "
                        "CUDA graphs, for large models."
                    ),
                ),
                io.Combo.Input(
                    "backend",
                    options=list(dict.fromkeys((*BACKENDS, *backends()))),
                    default="inductor",
                    advanced=True,
                    tooltip=(
                        "What makes code of the model. inductor: fused kernels, the fast one; needs Triton on a GPU, and a C "
                        "compiler. cudagraphs: CUDA graphs alone. eager and aot_eager speed nothing up and show whether "
                        "a problem is inductor's. Others need a package of their own."
                    ),
                ),
                io.Boolean.Input(
                    "fullgraph",
                    default=False,
                    advanced=True,
                    tooltip=(
                        "Insist on one graph without a break back into Python. Where that cannot be had the model runs uncompiled and "
                        "the log says what broke it: good for finding out, off for everyday use."
                    ),
                ),
                io.Combo.Input(
                    "dynamic",
                    options=[*DYNAMIC],
                    default="auto",
                    advanced=True,
                    tooltip=(
                        "Other picture sizes and prompt lengths. auto: compiles for the first size, and once more for any size when "
                        "the second comes. true: for any size at once, slower to compile and slightly slower to run. false: anew for "
                        "each size, fastest when the size stays the same."
                    ),
                ),
                io.String.Input(
                    "options",
                    default="",
                    multiline=False,
                    advanced=True,
                    tooltip=(
                        "Options of inductor as a JSON object, such as epilogue_fusion or coordinate_descent_tuning with true; they go "
                        "over those of the mode. Only options that change speed, memory or precision are taken; an error names "
                        "them all. Empty: none."
                    ),
                ),
                io.Combo.Input(
                    "compiler",
                    options=[TORCH, *offered()],
                    default=TORCH,
                    advanced=True,
                    tooltip=(
                        "torch.compile, or a compiler that an installed Python package offers to Skipstone. A workflow made with another "
                        "one needs that package."
                    ),
                ),
                io.Boolean.Input(
                    "disable",
                    default=False,
                    tooltip="Hand the model on as it came: to compare, without taking the node out.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, disable: bool = False, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(model if disable else compile_model(model, settings_of(**values)))


NODES = [CompileModel]
