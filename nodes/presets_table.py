"""Every preset at once: a list of models to sample with, and a comparison of the images: a slider and a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from comfy_api.latest import io, ui

from ..core.images.compare import compared, ssim_text
from ..core.step.report.report import Report
from ..core.texts import Text
from ..patch.comfy_server import place, sources_of
from ..patch.step.attach import attach
from .auto import auto_of
from .meancache import PRESETS
from .report_nodes import CATEGORY
from .reporting import JOURNAL, Reporter

NO_RUNS = Text(
    "nothing_to_compare",
    "Nothing to compare: wire the decoded images of a sampler that takes the models of All Presets.",
)


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
    """A list of five IMAGEs, of All Presets -> a table. The node shows the first image of each beside the reference, with a slider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstonePresetTable",
            display_name="Preset Table",
            category=CATEGORY,
            description=(
                "Compares the images of All Presets: a slider between the image without a step cache and that of a preset, and a table of "
                "computed steps, speed-up, PSNR and SSIM. The table can be copied as one row of Markdown."
            ),
            search_aliases=["skipstone", "compare presets", "slider", "benchmark", "judge", "psnr", "quality"],
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
        rows = table(images, {_preset(entry.report): entry.report for entry in runs})
        if not rows:
            told = {**ui.PreviewText(NO_RUNS).as_dict(), "skipstone_text": [NO_RUNS.as_dict()]}
            return io.NodeOutput(str(NO_RUNS), ui=told)
        row = markdown(rows)
        text = "\n".join([*(line.text() for line in rows), "", row])
        reference, *others = (ui.PreviewImage(image[:1], cls=cls).values[0] for image in images)
        # web/js/compare.js shows these
        shown = {
            "skipstone_reference": [reference],
            "skipstone_presets": [{**asdict(line), "image": image} for line, image in zip(rows, others, strict=True)],
            "skipstone_row": [row],
        }
        return io.NodeOutput(text, ui={**ui.PreviewText(text).as_dict(), **shown})


@dataclass(frozen=True)
class Row:
    """A preset's run, compared with the run without a step cache.

    Args:
        preset (str): its name.
        computed, evaluations (int): evaluations that were computed in full, and all.
        speedup (float): a factor.
        psnr (float): dB.
        ssim (str): with four digits.
        similarity (str): PSNR and SSIM in words.
    """

    preset: str
    computed: int
    evaluations: int
    speedup: float
    psnr: float
    ssim: str
    similarity: str

    def text(self) -> str:
        return f"{self.preset}: {self.computed} of {self.evaluations} computed, {self.speedup:.1f}x, {self.similarity}"


def table(images: list[Any], reports: dict[str, Report]) -> list[Row]:
    """A row for each preset; none where these are not the five runs of All Presets.

    images: of shape (B, H, W, C), the first sampled without a step cache, the others with each of PRESETS. reports: by preset.
    """
    if len(images) != 1 + len(PRESETS) or not {*PRESETS} <= {*reports}:
        return []
    rows = []
    for preset, image in zip(PRESETS, images[1:], strict=True):
        report, found = reports[preset], compared(images[0], image)
        counts = report.computed, len(report.evaluations), report.speedup
        rows.append(Row(preset, *counts, found.psnr, ssim_text(found.ssim), found.text()))
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as one row of a Markdown table, with its head."""
    head = ["your model", *(row.preset for row in rows)]
    cells = ["...", *(f"{row.speedup:.1f}x, {row.psnr:.0f} dB" for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), cells))


def _preset(report: Report) -> str:
    """Of a run of Step Cache (Auto), whose variant is "Auto, Balanced"."""
    return report.variant.rpartition(", ")[2]


NODES = [AllPresets, PresetTable]
