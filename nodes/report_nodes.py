"""Step Report: what a run did. Compare Images: how similar two images are."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui

from ..core.images import comparison_image
from ..core.images.compare import compared
from ..core.images.drawing import tensor_of
from ..core.step.report import image
from ..core.step.report.report_log import LoggedRun
from ..patch.comfy_server import place, sources_of
from ..patch.step.attach import listeners_of
from .reporting import JOURNAL, Reporter

CATEGORY = "Skipstone/inspect"
NO_CACHE = "Nothing to report: this MODEL has no Skipstone step cache. Connect the MODEL output of one, or leave the input free."
NOT_YET = "Nothing to report: this MODEL was not sampled yet. Wire the sampler's LATENT through this node, so that it runs later."
NO_RUN = (
    "Nothing to report: no sampler before this node used a Skipstone step cache. Put one between the model and the sampler, and wire the "
    "sampler's LATENT through this node."
)


class StepReport(io.ComfyNode):
    """LATENT -> the same LATENT, and a report of the runs that made it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneStepReport",
            display_name="Step Report",
            category=CATEGORY,
            description=(
                "Shows what a step cache did: which steps were computed or skipped and why, the measured changes, and the time saved. Wire "
                "the sampler's LATENT through it, before VAE Decode."
            ),
            search_aliases=["skipstone", "step cache", "timeline", "statistics", "report", "skipped steps"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="From the sampler; it is passed through unchanged. All runs that it comes from are reported.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model with a step cache: only its runs are reported. Wire the latent too, or this node may run first.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent_out", display_name="latent", is_output_list=True),
                io.Image.Output("picture", display_name="image"),
                io.String.Output("text", display_name="text"),
                io.String.Output("json", display_name="json"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
            is_input_list=True,  # one report of a list of latents, and not one of all runs for each
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> object:
        """With a latent, the report changes only when that does. Without one, it can change at any time."""
        return "" if "latent" in values else float("nan")

    @classmethod
    def execute(cls, latent: list[Any] | None = None, model: list[Any] | None = None) -> io.NodeOutput:
        graph = cls.hidden.dynprompt
        runs, otherwise = _runs(graph, cls.hidden.unique_id, latent, model)
        shown = tensor_of(image.drawn([(_where(graph, e), e.report) for e in runs], otherwise))
        text = "\n\n".join(image.text_of(e.report) for e in runs) or otherwise
        told = json.dumps({"runs": [e.as_dict() for e in runs]}, allow_nan=False)
        return io.NodeOutput([None] if latent is None else latent, shown, text, told, ui=_shown(cls, shown, text))


def _runs(
    graph: Any, node: str | None, latent: list[Any] | None, model: list[Any] | None
) -> tuple[list[LoggedRun], str]:
    """The runs to report, and the sentence to show where there are none."""
    models = None
    if model is not None:
        heard = (listener for m in model for listener in listeners_of(m))
        models = {listener.source for listener in heard if isinstance(listener, Reporter)}
        if not models:
            return [], NO_CACHE
    samplers = sources_of(graph, node, "latent") if latent is not None else None
    return JOURNAL.query(place(), samplers, models), NOT_YET if latent is None and models else NO_RUN


def _where(graph: Any, entry: LoggedRun) -> str:
    try:
        return f"{graph.get_node(entry.place.sampler)['class_type']} {entry.place.sampler}"
    except Exception:  # no graph, or a sampler that is not in this one
        return f"node {entry.node}" if entry.node else ""


class CompareImages(io.ComfyNode):
    """Two IMAGEs -> PSNR, SSIM, and an image of both with their difference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCompareImages",
            display_name="Compare Images (PSNR)",
            category=CATEGORY,
            description=(
                "Measures how similar images are: PSNR and SSIM, and both side by side with their difference amplified. To judge a preset, "
                "sample one seed with and without the step cache, and compare. A batch of one is compared with each image of the other "
                "batch."
            ),
            search_aliases=["skipstone", "compare", "psnr", "ssim", "difference", "diff", "quality", "side by side"],
            inputs=[
                io.Image.Input("left", tooltip="The reference: sampled without a step cache."),
                io.Image.Input("right", tooltip="The image to judge, of the same size."),
                io.Float.Input(
                    "amplify",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=50000.0,
                    step=1.0,
                    tooltip="Factor on the differences that are shown; 0: chosen to suit them. It does not change PSNR and SSIM.",
                ),
                io.String.Input("left_name", optional=True, default="left", tooltip="Title of the left image."),
                io.String.Input("right_name", optional=True, default="right", tooltip="Title of the right image."),
            ],
            outputs=[
                io.Float.Output("psnr", display_name="psnr", tooltip="dB, over all pairs; 150 for identical images."),
                io.Float.Output("ssim", display_name="ssim", tooltip="Mean over all pairs; 1 for identical images."),
                io.Image.Output("picture", display_name="image"),
                io.String.Output("text", display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, left: Any, right: Any, amplify: float = 0.0, left_name: str = "left", right_name: str = "right"
    ) -> io.NodeOutput:
        found = compared(left, right)
        factor = amplify or comparison_image.amplification(found)
        shown = tensor_of(comparison_image.drawn(found, factor, (left_name, right_name)))
        return io.NodeOutput(found.psnr, found.ssim, shown, found.text(), ui=_shown(cls, shown, found.text()))


def _shown(node: Any, shown: Any, text: str) -> dict[str, Any]:
    """The node's display: the image, and its text for screen readers."""
    return {**ui.PreviewImage(shown, cls=node).as_dict(), **ui.PreviewText(text).as_dict()}


NODES = [StepReport, CompareImages]
