"""What lies between the steps that a run computed is read with the covariance of other models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from skipstone.core.step.calibration.costs import shipped
from skipstone.core.step.calibration.gram import Gram
from skipstone.core.step.calibration.regression import FEWEST, read
from skipstone.core.step.planning.edge_costs import edge_costs, edge_weights
from skipstone.core.step.planning.planner import Question, solve
from skipstone.core.step.predictors import Corrected

from .grids import flow

STEPS = 20
GRID = flow(STEPS)
TIMES = GRID.times[:-1]
FLUX, NEXTDIT = (gram.guided(3.0) for gram in shipped(flow=True))
COMPUTED = (0, 1, 2, 4, 6, 9, 11, 14, 17, 19)


def of(model: Gram, steps=range(STEPS)) -> Gram:
    """A recording of these steps."""
    at = list(steps)
    return Gram(TIMES[at], model.on(GRID)[np.ix_(at, at)])


def miss(products, model: Gram) -> float:
    """Relative, of the errors of lines between steps two apart, which edge costs are made of."""
    second = np.eye(STEPS)[1:-1] - (np.eye(STEPS)[:-2] + np.eye(STEPS)[2:]) / 2
    found, true = (np.sqrt((second @ m @ second.T).diagonal()) for m in (products, model.on(GRID)))
    return float(np.abs(np.log(found / true)).mean())


def test_a_recorded_step_is_read_as_it_was():
    assert np.allclose(read(of(FLUX), TIMES, [NEXTDIT]), FLUX.on(GRID), atol=2e-3)
    part = read(of(FLUX, COMPUTED), TIMES, [NEXTDIT])
    assert np.allclose(part[np.ix_(COMPUTED, COMPUTED)], FLUX.on(GRID)[np.ix_(COMPUTED, COMPUTED)], atol=2e-3)


@pytest.mark.parametrize(("model", "other"), [(FLUX, NEXTDIT), (NEXTDIT, FLUX)], ids=["flux", "nextdit"])
def test_a_run_that_skipped_is_read_better_than_with_lines_between_its_steps(model, other):
    part = of(model, COMPUTED)
    assert miss(read(part, TIMES, [other]), model) < 0.7 * miss(part.on(GRID), model)


@pytest.mark.parametrize(("model", "other"), [(FLUX, NEXTDIT), (NEXTDIT, FLUX)], ids=["flux", "nextdit"])
def test_plans_made_after_one_run_that_skipped_are_nearly_the_best(model, other):
    """The first run is planned with another model's costs. In what a plan minimises, at most 0.5 dB above one with all steps recorded, on
    average over budgets."""
    costs, weights = edge_costs(Corrected(0.65), GRID, of(model)), edge_weights(GRID)
    forced = tuple(i in (0, 1, STEPS - 1) for i in range(STEPS))
    losses = []
    for budget in range(8, 15):

        def planned(products, budget=budget):
            gram = Gram(TIMES, products / products.diagonal().max())
            anchors = solve(Question(Corrected(0.65), GRID.sigmas, True, gram, budget, 2.0, forced)).anchors
            edges = zip([anchors[0], *anchors], anchors, anchors[1:], strict=False)
            return anchors, 10 * np.log10(sum((weights[b] * costs[a, b, c]) ** 2 for a, b, c in edges))

        first, unlearned = planned(other.on(GRID))
        (_, learned), (_, best) = planned(read(of(model, first), TIMES, [other])), planned(model.on(GRID))
        losses.append((unlearned - best, learned - best))
    unlearned, learned = np.mean(losses, 0)
    assert learned < 0.5 and learned <= unlearned


def test_a_model_that_is_harder_to_predict_is_read_as_one():
    part = of(NEXTDIT, COMPUTED)
    noisy = replace(part, products=part.products + 0.01 * np.eye(len(COMPUTED)))
    between = [i for i in range(STEPS) if i not in COMPUTED]
    plain, rough = (read(p, TIMES, [FLUX]) for p in (part, noisy))
    assert miss(rough, NEXTDIT) > miss(plain, NEXTDIT)
    assert (rough.diagonal()[between] > plain.diagonal()[between]).all()


@pytest.mark.parametrize("n", [2, FEWEST - 1, FEWEST, 2000])
def test_recordings_of_any_length_give_a_covariance(n):
    times = np.sort(np.random.default_rng(1).uniform(0.001, 1, n))[::-1]
    values = np.random.default_rng(2).normal(size=(n, 40))
    found = read(Gram.of(times, values), TIMES, [FLUX, NEXTDIT])
    assert found.shape == (STEPS, STEPS) and np.isfinite(found).all()
    assert np.linalg.eigvalsh((found + found.T) / 2).min() > -1e-6 * np.trace(found)


def test_a_model_that_is_harder_to_predict_early_is_read_as_one():
    part = of(NEXTDIT, COMPUTED)
    early = [i for i, s in enumerate(COMPUTED) if s < 7]
    rough = part.products + 0.01 * np.diag([float(i in early) for i in range(len(COMPUTED))])
    found, plain = (read(replace(part, products=p), TIMES, [FLUX]).diagonal() for p in (rough, part.products))
    grown = found / plain
    assert grown[[3, 5]].min() > 1.001 and grown[[15, 16, 18]].max() < 1.0005


def test_outputs_of_zero_are_read_as_zero():
    part = replace(of(FLUX, COMPUTED), products=np.zeros((len(COMPUTED), len(COMPUTED))))
    assert np.abs(read(part, TIMES, [NEXTDIT])).max() < 1e-20


def test_recordings_of_runs_that_skipped_have_more_noise():
    """Errors of skipped steps move the latent, so later outputs deviate from those of a full run."""
    noise = 0.02 * np.diag([float(i > 4) for i in range(len(COMPUTED))])
    part = of(FLUX, COMPUTED)
    part = replace(part, products=part.products + noise)
    full, skipped = (miss(read(part, TIMES, [NEXTDIT], full), FLUX) for full in (True, False))
    assert skipped < full
