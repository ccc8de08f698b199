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
    """The widgets' values as data.

    Args:
        compile (str, default EACH_BLOCK): EACH_BLOCK or WHOLE_MODEL.
        mode (str, default "default"): one of MODES, torch.compile's mode for inductor.
        backend (str, default "inductor"): a torch.compile back end that is installed.
        fullgraph (bool, default False): no graph breaks are allowed.
        dynamic (str, default "auto"): one of DYNAMIC, whether sizes are compiled as variables.
        options (str, default ""): inductor's options as a JSON object.
        compiler (str, default TORCH): TORCH, or a compiler that an installed package offers.

    Raises ValueError for an unknown value, and for options that are not allowed.
    """
    among("dynamic", dynamic, DYNAMIC)
    settings = Settings(compile, mode, backend, fullgraph, DYNAMIC[dynamic], options_of(options), compiler)
    settings.check(backends(), offered())
    return settings


class CompileModel(io.ComfyNode):
    """MODEL -> MODEL. `settings_of` explains the widgets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCompileModel",
            display_name="Compile Model+",
            category="Skipstone/compile",
            description=(
                "Compiles the model with torch.compile: faster steps on most GPUs, the same image up to rounding. The first step takes "
                "longer while it compiles. Put it before or after step caches and LoRAs; LoRA strengths can change without compiling "
                "again. If it cannot compile, the model runs uncompiled and the node gives the reason."
            ),
            search_aliases=[
                "skipstone",
                "torch.compile",
                "compile",
                "inductor",
                "triton",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to compile."),
                io.Combo.Input(
                    "compile",
                    options=[EACH_BLOCK, WHOLE_MODEL],
                    default=EACH_BLOCK,
                    tooltip=(
                        "each block: the model's repeated blocks; equal blocks share compiled code, so compiling takes as long for many as "
                        "for one. whole model: one graph of everything; compiling takes longer with every block. With a cache that works "
                        "inside the model it is always each block."
                    ),
                ),
                io.Combo.Input(
                    "mode",
                    options=[*MODES],
                    default="default",
                    tooltip=(
                        "torch.compile mode of inductor. default: a good balance. reduce-overhead: CUDA graphs, for small models and "
                        "images; uses more memory, also after the model is unloaded, and sizes should stay the same. max-autotune: also "
                        "times many versions of each kernel; compiling takes much longer. max-autotune-no-cudagraphs: the same without "
                        "CUDA graphs, for large models."
                    ),
                ),
                io.Combo.Input(
                    "backend",
                    options=list(dict.fromkeys((*BACKENDS, *backends()))),
                    default="inductor",
                    advanced=True,
                    tooltip=(
                        "Compiler back end. inductor: fused kernels, the fast one; needs Triton on a GPU, and a C compiler. cudagraphs: "
                        "CUDA graphs alone. eager, aot_eager: no speed-up; they show whether inductor causes a problem. Others need a "
                        "package of their own."
                    ),
                ),
                io.Boolean.Input(
                    "fullgraph",
                    default=False,
                    advanced=True,
                    tooltip=(
                        "Allow no graph breaks. If there is one, the model runs uncompiled and the log says where: useful to find the "
                        "cause, off for everyday use."
                    ),
                ),
                io.Combo.Input(
                    "dynamic",
                    options=[*DYNAMIC],
                    default="auto",
                    advanced=True,
                    tooltip=(
                        "Other image sizes and prompt lengths. auto: compiles for the first size, and once more for all sizes at the "
                        "second. true: for all sizes at once; slower to compile and slightly slower to run. false: again for each size; "
                        "fastest when the size stays the same."
                    ),
                ),
                io.String.Input(
                    "options",
                    default="",
                    multiline=False,
                    advanced=True,
                    tooltip=(
                        "Inductor's options as a JSON object, such as epilogue_fusion or coordinate_descent_tuning with true; they replace "
                        "those of the mode. Only options that change speed, memory or precision are allowed. Empty: none."
                    ),
                ),
                io.Combo.Input(
                    "compiler",
                    options=[TORCH, *offered()],
                    default=TORCH,
                    advanced=True,
                    tooltip=(
                        "torch.compile, or a compiler that an installed Python package offers to Skipstone. A workflow made with one needs "
                        "that package."
                    ),
                ),
                io.Boolean.Input(
                    "disable",
                    default=False,
                    tooltip="Pass the model through unchanged, to compare without removing the node.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, disable: bool = False, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(model if disable else compile_model(model, settings_of(**values)))


NODES = [CompileModel]
