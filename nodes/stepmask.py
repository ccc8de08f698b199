"""Step Mask: the steps to compute, chosen by hand, for any of the method nodes."""

from __future__ import annotations

from typing import Any, Literal, cast

from comfy_api.latest import io

from ..core.step.policies import StepMask
from ..core.step.policies.mask import NAMES, from_bins, from_text
from . import method_node, widgets
from .widgets import StepMaskType, among

TEXT, BINS = "mask", "bins"
POLICIES = ("static", "dynamic")
MASK, COMPUTE_BINS, CACHE_BINS = "1,1,1,1,0,1,0,1", "4,1,1", "1,2"


def step_mask_of(
    source: str = "medium",
    mask: str = MASK,
    compute_bins: str = COMPUTE_BINS,
    cache_bins: str = CACHE_BINS,
    policy: str = "static",
) -> StepMask:
    """The node as data.

    Args:
        source (str, default "medium"): one of NAMES, TEXT or BINS.
        mask (str): ones and zeros, a number a step. It counts with TEXT.
        compute_bins, cache_bins (str): lengths in steps of runs of computed and skipped steps, in turn. They count with BINS.
        policy (str, default "static"): "static" skips every 0; "dynamic" lets the method decide there.

    Raises ValueError for text that is no mask; the message shows a valid one.
    """
    among("source", source, (*NAMES, TEXT, BINS))
    among("policy", policy, POLICIES)
    chosen = cast(Literal["static", "dynamic"], policy)
    if source == TEXT:
        return StepMask(from_text(mask), policy=chosen)
    if source == BINS:
        return StepMask(
            from_bins(_numbers("compute_bins", compute_bins), _numbers("cache_bins", cache_bins)), policy=chosen
        )
    return StepMask(name=source, policy=chosen)


def _numbers(name: str, text: str) -> list[int]:
    parts = [p for p in text.replace(",", " ").split() if p]
    if any(not (p.isascii() and p.isdigit()) or len(p) > 5 for p in parts):
        raise ValueError(f"{name} is a list of step counts, such as 4,2,1, not {text[:60]!r}")
    return [int(p) for p in parts]


class StepMaskNode(io.ComfyNode):
    """-> STEP_MASK. `step_mask_of` explains the widgets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkipstoneStepMask",
            display_name="Step Mask",
            category=method_node.AUTO,
            description=(
                "Chooses by hand which steps are computed (1) and which may be skipped (0). Connect it to step_mask of a method node. A "
                "mask for another number of steps is stretched to the run's."
            ),
            search_aliases=["skipstone", "scm", "steps computation mask", "step mask", "cache mask"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=[*NAMES, TEXT, BINS],
                    default="medium",
                    tooltip=(
                        "slow, medium, fast, ultra: cache-dit's masks, made for 28, 15, 9 and 8 steps and stretched to others. mask, bins: "
                        "the fields below."
                    ),
                ),
                io.String.Input(
                    "mask",
                    optional=True,
                    default=MASK,
                    tooltip="Source mask: 1 computes a step, 0 may skip it.",
                    extra_dict=widgets.shown({"source": [TEXT]}),
                ),
                io.String.Input(
                    "compute_bins",
                    optional=True,
                    default=COMPUTE_BINS,
                    tooltip="Source bins: how many steps in a row are computed, in turn with cache_bins.",
                    extra_dict=widgets.shown({"source": [BINS]}),
                ),
                io.String.Input(
                    "cache_bins",
                    optional=True,
                    default=CACHE_BINS,
                    tooltip="Source bins: how many steps in a row are skipped between them.",
                    extra_dict=widgets.shown({"source": [BINS]}),
                ),
                io.Combo.Input(
                    "policy",
                    options=[*POLICIES],
                    optional=True,
                    default="static",
                    tooltip="static: every 0 is skipped. dynamic: at a 0 the method decides.",
                ),
            ],
            outputs=[StepMaskType.Output(display_name="step_mask")],
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool | str:
        if any(v is None for v in values.values()):  # a linked value, which is not known yet
            return True
        try:
            step_mask_of(**values)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(step_mask_of(**values))


NODES = [StepMaskNode]
