"""Inputs that method nodes share: presets, guards, the step mask, the device of the history; and checks of their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from comfy_api.latest import io

from ..core.step.clock import Coordinate
from ..core.step.policies import Cap, Mask, Policy, StepMask, Warmup, Window

CUSTOM = "Custom"
DEVICES = ("auto", "gpu", "cpu")
COORDINATES = get_args(Coordinate)
StepMaskType = io.Custom("STEP_MASK")
TYPICAL_STEPS = 50
"""The number of steps for which widgets show a preset's values that depend on it."""
Values = dict[str, Any]
"""Values of a node's widgets, by name."""
P = ParamSpec("P")
T = TypeVar("T")


def among(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}")


@dataclass(frozen=True)
class Guards:
    """Where every method computes.

    Args:
        warmup (int, default 2): the first steps.
        start_percent (float, default 0.0): everything before this share of the schedule, 0 to 1.
        end_percent (float, default 1.0): everything after this share of the schedule, 0 to 1.
        max_skips (int, default 0): evaluations skipped in a row at most; 0 for no limit.
        of_steps (bool, default False): the two shares are of the steps; otherwise of the timestep range, as in ControlNet nodes.
        most (float, default 1.0): share of the run's steps that warmup takes at most.

    Raises ValueError for a share outside 0 to 1 or a negative count.
    """

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
        """The widgets' values. of_steps: the node's shares are of the steps. On a node whose shares are of the timestep range, a share
        of the steps is shown as warmup, as many steps as it is at TYPICAL_STEPS."""
        if self.of_steps and not of_steps:
            first = max(self.warmup, int(self.start_percent * TYPICAL_STEPS))
            return {**Guards(first, max_skips=self.max_skips).values(), "end_percent": self.end_percent}
        return {name: getattr(self, name) for name in ("warmup", "start_percent", "end_percent", "max_skips")}

    def policies(self, mask: object = None) -> tuple[Policy, ...]:
        """The guards as policies, followed by the step mask where there is one. Raises ValueError where `mask` is no StepMask."""
        window = Window(self.start_percent, self.end_percent, self.of_steps)
        guards: tuple[Policy, ...] = (Warmup(self.warmup, self.most), window, Cap(self.max_skips))
        if mask is None:
            return guards
        if not isinstance(mask, StepMask):
            raise ValueError(f"step_mask takes the output of a Step Mask node, not {type(mask).__name__}")
        return (*guards, Mask(mask))


def decides_alone(mask: object) -> bool:
    """Whether it is a step mask that leaves no decision to the method."""
    return isinstance(mask, StepMask) and mask.policy == "static"


def device(value: str) -> Literal["auto", "gpu", "cpu"]:
    """Raises ValueError unless it is one of DEVICES."""
    among("history_device", value, DEVICES)
    return value  # type: ignore[return-value]


# presets


def presets(table: Mapping[str, Values]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function that makes a method of a node's values: a preset of `table` replaces the values that it stands for,
    whatever else is given for them. Pass the same table to `preset`. The function raises ValueError for an unknown preset."""

    def known(make: Callable[P, T]) -> Callable[P, T]:
        default = signature(make).parameters["preset"].default

        @wraps(make)
        def of(preset: str = default, *rest: Any, **values: Any) -> T:
            among("preset", preset, (*table, CUSTOM))
            return make(preset, *rest, **{**values, **table.get(preset, {})})  # type: ignore[arg-type]

        return of  # type: ignore[return-value]

    return known


def preset(table: Mapping[str, Values], tooltip: str, default: str = "Balanced") -> Any:
    """The combo of presets, the only required widget. The browser gets the values of each preset too: web/js/presets.js shows them."""
    return io.Combo.Input(
        "preset",
        options=[*table, CUSTOM],
        default=default,
        tooltip=f"{tooltip} Editing a value changes it to Custom.",
        extra_dict={
            "skipstone": {"presets": {name: dict(values) for name, values in table.items()}, "otherwise": CUSTOM}
        },
    )


Shown = Mapping[str, Iterable[Any]] | None
"""Other widgets' values with which a widget has a meaning. With any other value the browser hides it."""


def shown(where: Shown) -> dict[str, Any]:
    """An input's extra_dict for `where`."""
    return {"skipstone": {"shown": {name: [*values] for name, values in where.items()}}} if where else {}


def custom(where: Shown = None) -> dict[str, Any]:
    """An input's extra_dict, for a value that counts only with Custom: the browser folds it away with a preset."""
    return {"skipstone": {"custom": True, **shown(where).get("skipstone", {})}}


# values that count only with Custom: a preset replaces them, so callers of the API need not send them


def number(
    name: str,
    default: float,
    low: float,
    high: float,
    tooltip: str,
    step: float = 0.01,
    where: Shown = None,
    label: str | None = None,
) -> Any:
    return io.Float.Input(
        name,
        display_name=label,
        default=default,
        min=low,
        max=high,
        step=step,
        **_minor(f"Custom: {tooltip}", custom(where)),
    )


def count(
    name: str, default: int, low: int, high: int, tooltip: str, where: Shown = None, label: str | None = None
) -> Any:
    return io.Int.Input(
        name, display_name=label, default=default, min=low, max=high, **_minor(f"Custom: {tooltip}", custom(where))
    )


def limit(name: str, default: int, what: str) -> Any:
    tooltip = f"maximum number of evaluations {what}. Most samplers make one evaluation a step, heun two. 0: no limit."
    return count(name, default, 0, 1000, tooltip)


def choice(name: str, options: Iterable[str], default: str, tooltip: str, where: Shown = None) -> Any:
    return io.Combo.Input(name, options=[*options], default=default, **_minor(f"Custom: {tooltip}", custom(where)))


def flag(name: str, default: bool, tooltip: str, where: Shown = None) -> Any:
    return io.Boolean.Input(name, default=default, **_minor(f"Custom: {tooltip}", custom(where)))


def coordinate(default: str, where: Shown = None) -> Any:
    tooltip = (
        "variable of the polynomial. sigma. time: sigma as a share of noise, 0 to 1. log-SNR: logarithm of signal to noise. index: "
        "number of the step."
    )
    return choice("coordinate", COORDINATES, default, tooltip, where)


def guards(default: Guards) -> list[Any]:
    """Widgets for a Guards, with its values as defaults."""
    share = "share of the steps" if default.of_steps else "share of the timestep range (as in ControlNet nodes)"
    return [
        count("warmup", default.warmup, 0, 1000, "number of first steps that are always computed."),
        number("start_percent", default.start_percent, 0.0, 1.0, f"no skips before this {share}."),
        number("end_percent", default.end_percent, 0.0, 1.0, f"no skips after this {share}."),
        limit("max_skips", default.max_skips, "skipped in a row"),
    ]


# values that count with every preset


def option(name: str, options: Iterable[str], default: str, tooltip: str, where: Shown = None) -> Any:
    return io.Combo.Input(name, options=[*options], default=default, **_minor(tooltip, shown(where)))


def common(device: Any = None) -> list[Any]:
    """The last inputs of every method. device: the widget for where the history is kept, by default `history_device()`."""
    mask = StepMaskType.Input(
        "step_mask",
        optional=True,
        tooltip=(
            "From a Step Mask node: which steps to compute. A static mask replaces the method's decisions. A dynamic mask allows skips "
            "only where it has a 0."
        ),
    )
    return [device or history_device(), mask]


def history_device(more: str = "") -> Any:
    tooltip = (
        "Where past outputs are kept, each as large as the latent. auto: on the GPU, in main memory where all of them take more than "
        "256 MB. cpu: in main memory."
    )
    return option("history_device", DEVICES, "auto", tooltip + more)


def _minor(tooltip: str, extra: dict[str, Any]) -> dict[str, Any]:
    return {"optional": True, "advanced": True, "tooltip": tooltip, "extra_dict": extra}
