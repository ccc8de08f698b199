"""Every preset at once: a list of models to sample with, and a table of what each preset came to."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.images.compare import compared
from ..core.step.report.report import Report
from ..patch.comfy_server import place, sources_of
from ..patch.step.attach import attach
from .auto import auto_of
from .meancache import PRESETS
from .report_nodes import CATEGORY
from .reporting import JOURNAL, Reporter

NO_RUNS = "Nothing to compare: wire the decoded images of a sampler that takes the models of All Presets."


class AllPresets(io.ComfyNode):
    """MODEL -> a list: the MODEL as it came, and with Step Cache (Auto) at each preset. What follows runs once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneAllPresets",
            display_name="All Presets",
            category=CATEGORY,
            description=(
                "To compare all presets on your own model in one go: gives the model without a step cache and with Step Cache (Auto) at "
                "each preset. The nodes that follow run once for each of the five; Preset Table shows what each came to."
            ),
            search_aliases=["skipstone", "compare presets", "benchmark", "judge", "quality"],
            inputs=[io.Model.Input("model", tooltip="The model to judge step caching on.")],
            outputs=[io.Model.Output(is_output_list=True)],
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        reporter = Reporter(place().sampler)
        cached = [attach(model, auto_of(preset), (reporter,), (reporter.watch,)) for preset in PRESETS]
        return io.NodeOutput([model, *cached])


class PresetTable(io.ComfyNode):
    """A list of five IMAGEs, of All Presets -> a table, and the first image of each as a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstonePresetTable",
            display_name="Preset Table",
            category=CATEGORY,
            description=(
                "The table for All Presets: computed steps, speed-up, PSNR and SSIM of each preset, compared with the image that was "
                "sampled without a step cache; and the same as one row of a Markdown table."
            ),
            search_aliases=["skipstone", "compare presets", "benchmark", "judge", "psnr", "quality"],
            inputs=[
                io.Image.Input(
                    "images", tooltip="The decoded images of a sampler that takes the models of All Presets."
                )
            ],
            outputs=[io.String.Output("text", display_name="text")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: list[Any]) -> io.NodeOutput:
        samplers = sources_of(cls.hidden.dynprompt, cls.hidden.unique_id, "images")
        runs = JOURNAL.query(place(), samplers)
        text = table(images, {_preset(entry.report): entry.report for entry in runs})
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def table(images: list[Any], reports: dict[str, Report]) -> str:
    """images: of shape (B, H, W, C), the first sampled without a step cache, the others with each of PRESETS. reports: by preset."""
    if len(images) != 1 + len(PRESETS) or not {*PRESETS} <= {*reports}:
        return NO_RUNS
    lines, row = [], []
    for preset, image in zip(PRESETS, images[1:], strict=True):
        report, found = reports[preset], compared(images[0], image)
        lines.append(
            f"{preset}: {report.computed} of {len(report.evaluations)} computed, {report.speedup:.1f}x, {found.text()}"
        )
        row.append(f"{report.speedup:.1f}x, {found.psnr:.0f} dB")
    head = ["your model", *PRESETS]
    markdown = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), ["...", *row])]
    return "\n".join([*lines, "", *markdown])


def _preset(report: Report) -> str:
    """Of a run of Step Cache (Auto), whose variant is "Auto, Balanced"."""
    return report.variant.rpartition(", ")[2]


NODES = [AllPresets, PresetTable]
