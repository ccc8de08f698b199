"""A preset is values for the widgets: what the browser shows for it, and writes into them, is what it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from skipstone.core.step.indicators.blocks import Probed
from skipstone.core.step.method import Method
from skipstone.core.step.policies import Budget, Cap, PerModel, Ratios, RunContext, Schedule, Warmup, Window
from skipstone.core.step.predictors import Spectrum
from skipstone.nodes import (
    dbcache,
    dicache,
    easycache,
    firstblock,
    magcache,
    meancache,
    spectrum,
    stepmask,
    taylorseer,
    teacache,
)
from skipstone.nodes.auto import StepCacheAuto
from skipstone.tests.core.grids import flow

STEPS = 50
METHODS: dict[Any, Any] = {
    meancache.MeanCache: meancache.method_of,
    easycache.EasyCache: easycache.easycache_of,
    easycache.UCache: easycache.ucache_of,
    spectrum.Spectrum: spectrum.spectrum_of,
    taylorseer.TaylorSeer: taylorseer.taylorseer_of,
    firstblock.FirstBlockCache: firstblock.firstblock_of,
    dbcache.DBCache: dbcache.dbcache_of,
    dbcache.CacheDiT: dbcache.cachedit_of,
    teacache.TeaCache: teacache.teacache_of,
    magcache.MagCache: magcache.magcache_of,
    dicache.DiCache: dicache.dicache_of,
}


def inputs(node: Any) -> dict[str, Any]:
    return {i.id: i for i in node.define_schema().inputs}


def told(widget: Any) -> dict[str, Any]:
    """What the browser hears of it beyond what ComfyUI's own widgets have."""
    return dict(widget.as_dict().get("skipstone", {}))


def presets(node: Any) -> dict[str, dict[str, Any]]:
    return dict(told(inputs(node)["preset"])["presets"])


EVERY = [pytest.param(node, name, id=f"{node.__name__}-{name}") for node in METHODS for name in presets(node)]
NODES = [*METHODS, stepmask.StepMaskNode, StepCacheAuto]


def in_words(method: Method) -> dict[str, Any]:
    """What it does in a run of 50 steps, with a model that no preset has values of its own for. Apart from its title, and from `fit`: a
    preset takes fewer blocks where the model has not so many, and a number that someone wrote is an error there."""
    context = RunContext(flow(STEPS), method.predictor)  # type: ignore[arg-type]
    rules: list[Any] = []
    for policy in method.policies:
        policy = policy.otherwise if isinstance(policy, PerModel) else policy
        if isinstance(policy, Warmup | Window | Cap):
            policy.start(context)
            continue
        if isinstance(policy, Ratios):  # has a window and a cap of its own
            context.force(range(int(policy.retention * STEPS)))
            context.max_skipped_steps = min(context.max_skipped_steps, policy.max_skips or context.max_skipped_steps)
            policy = replace(policy, retention=0.0, max_skips=0)
        if isinstance(policy, Schedule):
            policy = replace(policy, budget=Budget.of(policy.budget.share(STEPS)))
        rules.append(policy)
    blocks = method.blocks and replace(method.blocks, fit=False)
    indicator = replace(method.indicator, per_model=()) if isinstance(method.indicator, Probed) else method.indicator
    rest = replace(method, variant="", policies=(), blocks=blocks, indicator=indicator)
    return {"forced": context.forced, "longest": context.max_skipped_steps, "rules": rules, "rest": rest}


@pytest.mark.parametrize(("node", "preset"), EVERY)
def test_a_preset_is_custom_with_the_values_it_writes(node, preset):
    make, values = METHODS[node], presets(node)[preset]
    expected, got = make(preset), make("Custom", **values)
    if (node, preset) == (spectrum.Spectrum, spectrum.SDCPP):
        # no widget sets the length of the history and the fit
        assert isinstance(expected.predictor, Spectrum)
        expected = replace(expected, predictor=replace(expected.predictor, keep=100, half=False))
    assert in_words(got) == in_words(expected)


@pytest.mark.parametrize(("node", "preset"), EVERY)
def test_a_widget_that_counts_for_a_preset_is_written_by_it(node, preset):
    """Every other one has no meaning then, and is hidden, or holds with every preset."""
    values = presets(node)[preset]
    for name, widget in inputs(node).items():
        assert bool(told(widget).get("custom")) == (widget.tooltip or "").startswith("Custom:"), name
        if name not in values and told(widget).get("custom"):
            where = told(widget)["shown"]
            assert any(values.get(other) not in options for other, options in where.items()), name


@pytest.mark.parametrize(("node", "preset"), EVERY)
def test_its_values_are_ones_that_the_widgets_take(node, preset):
    widgets = inputs(node)
    for name, value in presets(node)[preset].items():
        widget = widgets[name]
        if widget.io_type == "COMBO":
            assert value in widget.options
        elif widget.io_type == "BOOLEAN":
            assert isinstance(value, bool)
        else:
            assert widget.min <= value <= widget.max
            step = widget.step or 1
            assert value / step == pytest.approx(round(value / step)), "it would be rounded when it is typed"


@pytest.mark.parametrize("node", METHODS)
def test_what_else_is_given_with_a_preset_is_not_looked_at(node):
    """So old files, and callers without a browser, get the preset whatever their other values are."""
    make, table = METHODS[node], presets(node)
    for one in table:
        for values in table.values():
            assert make(one, **values) == make(one)


@pytest.mark.parametrize("node", NODES)
def test_where_a_widget_is_shown_is_told_in_values_that_there_are(node):
    widgets = inputs(node)
    for name, widget in widgets.items():
        for other, options in told(widget).get("shown", {}).items():
            assert other in widgets and other != name
            for value in options:
                assert value in widgets[other].options if widgets[other].io_type == "COMBO" else value is not None
