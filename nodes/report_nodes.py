"""Nodes to look with: what a run did, and how alike two pictures are."""

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

CATEGORY = "Skipstone/look"
NO_CACHE = "Nothing to report: this MODEL has no step cache of Skipstone. Wire the MODEL output of one here, or leave the input free."
NOT_YET = (
    "Nothing to report: this MODEL was not sampled yet. Wire the sampler's LATENT through this node, so that it "
    "runs after the sampler."
)
NO_RUN = (
    "Nothing to report: nothing that this node's inputs come from has sampled a model with a step cache of Skipstone. Put one between "
    "the model and the sampler, and wire the sampler's LATENT through this node."
)


class StepReport(io.ComfyNode):
    """LATENT -> the same LATENT, and what the runs that made it did."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneStepReport",
            display_name="Step Report",
            category=CATEGORY,
            description=(
                "Shows what a step cache did: which steps were computed and which were skipped, why, what it was decided by, and what "
                "it gained. Wire the sampler's LATENT through it, on its way to VAE Decode."
            ),
            search_aliases=["skipstone", "step cache", "timeline", "statistics", "report", "skipped steps"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="From the sampler; handed on as it is. The runs that it comes from are reported, all of them.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A model with a step cache on it: only its runs are reported. Wire the latent too, or this node may run first.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent_out", display_name="latent"),
                io.Image.Output("picture", display_name="picture"),
                io.String.Output("text", display_name="text"),
                io.String.Output("json", display_name="json"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> object:
        """With a latent there is news only when that is new. Without one nothing tells when the model is sampled."""
        return "" if "latent" in values else float("nan")

    @classmethod
    def execute(cls, latent: Any = None, model: Any = None) -> io.NodeOutput:
        graph = cls.hidden.dynprompt
        runs, otherwise = _runs(graph, cls.hidden.unique_id, latent, model)
        shown = tensor_of(image.drawn([(_where(graph, e), e.report) for e in runs], otherwise))
        text = "\n\n".join(image.text_of(e.report) for e in runs) or otherwise
        told = json.dumps({"runs": [e.as_dict() for e in runs]}, allow_nan=False)
        return io.NodeOutput(latent, shown, text, told, ui=_shown(cls, shown, text))


def _runs(graph: Any, node: str | None, latent: Any, model: Any) -> tuple[list[LoggedRun], str]:
    """What there is to report, or else why there is nothing."""
    models = None
    if model is not None:
        models = {listener.source for listener in listeners_of(model) if isinstance(listener, Reporter)}
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
    """Two IMAGEs -> PSNR, SSIM and a picture of both and their difference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneCompareImages",
            display_name="Compare Images",
            category=CATEGORY,
            description=(
                "How alike pictures are: PSNR and SSIM, and both side by side with their difference amplified. To judge a preset, "
                "sample with one seed with the step cache and without it, and compare. A batch of one is compared with each of the "
                "other batch's."
            ),
            search_aliases=["skipstone", "psnr", "ssim", "difference", "diff", "quality", "side by side"],
            inputs=[
                io.Image.Input("left", tooltip="As it should be: sampled without a step cache."),
                io.Image.Input("right", tooltip="What to judge. Of the same size."),
                io.Float.Input(
                    "amplify",
                    default=0.0,
                    min=0.0,
                    max=50000.0,
                    step=1.0,
                    tooltip="What differences are multiplied by, to be seen. 0: what suits them. PSNR and SSIM do not depend on it.",
                ),
                io.String.Input("left_name", default="left", tooltip="Written over the left picture."),
                io.String.Input("right_name", default="right", tooltip="Written over the right picture."),
            ],
            outputs=[
                io.Float.Output("psnr", display_name="psnr", tooltip="dB, over all pairs; 150 for identical ones."),
                io.Float.Output("ssim", display_name="ssim", tooltip="The mean over all pairs; 1 for identical ones."),
                io.Image.Output("picture", display_name="picture"),
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
    """On the node itself: the picture, and the text for readers that cannot see it."""
    return {**ui.PreviewImage(shown, cls=node).as_dict(), **ui.PreviewText(text).as_dict()}


NODES = [StepReport, CompareImages]
