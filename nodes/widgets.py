"""What the method nodes have in common: guards, the step mask, where the history is kept, and the checks of their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, Literal, ParamSpec, TypeVar

from comfy_api.latest import io

from ..core.step.auto.method import AutoMethod
from ..core.step.method import Method
from ..core.step.policies import Cap, Mask, Policy, StepMask, Warmup, Window
from ..patch.step.attach import attach
from .reporting import Reporter

CUSTOM = "Custom"
CATEGORY = "Skipstone/step cache"
DEVICES = ("auto", "gpu", "cpu")
StepMaskType = io.Custom("STEP_MASK")
# where a preset depends on the number of steps, the widgets show what it is at so many
TYPICAL_STEPS = 50
Values = dict[str, Any]
"""Of a node's widgets, by name."""
P = ParamSpec("P")
T = TypeVar("T")
ALIASES = ["skipstone", "step cache", "cache", "skip steps"]


def among(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")


@dataclass(frozen=True)
class Guards:
    """Where everything is computed, whatever the method. most: share of the steps that are warmup at most. Raises ValueError for a
    share out of 0..1 or a negative count."""

    warmup: int = 2
    start_percent: float = 0.0
    end_percent: float = 1.0
    max_skips: int = 0
    of_steps: bool = False
    most: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start_percent", "end_percent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1, not {getattr(self, name)}")
        for name in ("warmup", "max_skips"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a number of steps, not {getattr(self, name)}")

    def values(self, of_steps: bool = False) -> Values:
        """Its widgets' values, on a node whose shares are of the steps or of the timestep range. A share of the steps is there shown as
        the warmup that it is at TYPICAL_STEPS."""
        if self.of_steps and not of_steps:
            first = max(self.warmup, int(self.start_percent * TYPICAL_STEPS))
            return {**Guards(first, max_skips=self.max_skips).values(), "end_percent": self.end_percent}
        return {name: getattr(self, name) for name in ("warmup", "start_percent", "end_percent", "max_skips")}

    def policies(self, mask: object = None) -> tuple[Policy, ...]:
        window = Window(self.start_percent, self.end_percent, self.of_steps)
        guards: tuple[Policy, ...] = (Warmup(self.warmup, self.most), window, Cap(self.max_skips))
        if mask is None:
            return guards
        if not isinstance(mask, StepMask):
            raise ValueError(f"step_mask takes the output of a Step Mask node, not {type(mask).__name__}")
        return (*guards, Mask(mask))


def decides_alone(mask: object) -> bool:
    """Is it a step mask that leaves nothing to the method?"""
    return isinstance(mask, StepMask) and mask.policy == "static"


def device(value: str) -> Literal["auto", "gpu", "cpu"]:
    among("history_device", value, DEVICES)
    return value  # type: ignore[return-value]


def patched(node: type[io.ComfyNode], model: Any, method: Method | AutoMethod) -> io.NodeOutput:
    """What a method node returns: the MODEL with the method on it, whose reports go to the browser under the node's id.

    Such nodes are `not_idempotent`: by that ComfyUI does not give one the MODEL that it cached for another with the same inputs.
    """
    reporter = Reporter(node.hidden.unique_id)
    return io.NodeOutput(attach(model, method, (reporter,), (reporter.watch,)))


def model() -> Any:
    return io.Model.Input("model", tooltip="The model to sample faster.")


def presets(table: Mapping[str, Values]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """For what makes a method of a node's values: a preset stands for those in `table`, whatever else is given for them. The same table
    is given to `preset`, for the browser. Raises ValueError for a preset that is not in it."""

    def known(make: Callable[P, T]) -> Callable[P, T]:
        default = signature(make).parameters["preset"].default

        @wraps(make)
        def of(preset: str = default, *rest: Any, **values: Any) -> T:
            among("preset", preset, (*table, CUSTOM))
            return make(preset, *rest, **{**values, **table.get(preset, {})})  # type: ignore[arg-type]

        return of  # type: ignore[return-value]

    return known


def preset(table: Mapping[str, Values], default: str, tooltip: str) -> Any:
    """The combo of presets. With it the browser is told the values that each stands for: web/js/presets.js shows them."""
    return io.Combo.Input(
        "preset",
        options=[*table, CUSTOM],
        default=default,
        tooltip=f"{tooltip} Changing one of the values makes it Custom.",
        extra_dict={
            "skipstone": {"presets": {name: dict(values) for name, values in table.items()}, "otherwise": CUSTOM}
        },
    )


Shown = Mapping[str, Iterable[Any]] | None
"""Where a widget has a meaning: with these values of others. Elsewhere the browser hides it."""


def shown(where: Shown) -> dict[str, Any]:
    """For an input's extra_dict."""
    return {"skipstone": {"shown": {name: [*values] for name, values in where.items()}}} if where else {}


def custom(where: Shown = None) -> dict[str, Any]:
    """Likewise, for a value that only counts with Custom: the browser folds it away with a preset."""
    return {"skipstone": {"custom": True, **shown(where).get("skipstone", {})}}


def number(
    name: str, default: float, low: float, high: float, tooltip: str, step: float = 0.01, where: Shown = None
) -> Any:
    return io.Float.Input(
        name,
        default=default,
        min=low,
        max=high,
        step=step,
        advanced=True,
        tooltip=f"Custom: {tooltip}",
        extra_dict=custom(where),
    )


def count(name: str, default: int, low: int, high: int, tooltip: str, where: Shown = None) -> Any:
    return io.Int.Input(
        name,
        default=default,
        min=low,
        max=high,
        advanced=True,
        tooltip=f"Custom: {tooltip}",
        extra_dict=custom(where),
    )


def limit(name: str, default: int, what: str) -> Any:
    return count(
        name,
        default,
        0,
        1000,
        f"at most so many evaluations {what}: one a step with most samplers, two with heun. 0: no limit.",
    )


def choice(name: str, options: Iterable[str], default: str, tooltip: str, where: Shown = None) -> Any:
    return io.Combo.Input(
        name,
        options=[*options],
        default=default,
        advanced=True,
        tooltip=f"Custom: {tooltip}",
        extra_dict=custom(where),
    )


def guards(default: Guards) -> list[Any]:
    """Widgets for a Guards, with its values as defaults."""
    share = (
        "this share of the steps" if default.of_steps else "this share of the timestep range (as in ControlNet nodes)"
    )
    return [
        count("warmup", default.warmup, 0, 1000, "the first steps, always computed."),
        number("start_percent", default.start_percent, 0.0, 1.0, f"nothing is skipped before {share}."),
        number("end_percent", default.end_percent, 0.0, 1.0, f"nothing is skipped after {share}."),
        limit("max_skips", default.max_skips, "in a row are skipped"),
    ]


SMALL = "Where past outputs are kept. They are as small as the latent; cpu only helps when memory is very tight."


def common(device: str = SMALL) -> list[Any]:
    """The inputs that every method ends with. They hold with every preset. device: the tooltip of history_device."""
    return [
        io.Combo.Input(
            "history_device",
            options=[*DEVICES],
            default="auto",
            advanced=True,
            tooltip=device,
        ),
        StepMaskType.Input(
            "step_mask",
            optional=True,
            tooltip=(
                "From a Step Mask node: which steps to compute. A static mask decides alone, a dynamic one lets the method skip "
                "only where it has a 0."
            ),
        ),
    ]
