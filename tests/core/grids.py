"""Grids as ComfyUI's schedulers make them: a flow's with a shift, and Karras' for models that predict noise."""

import numpy as np

from skipstone.core.step.clock import Grid


def flow(steps, shift=1.0):
    t = 1 - np.arange(steps + 1) / steps
    return Grid.of((shift * t / (1 + (shift - 1) * t)).tolist())


def karras(steps, low=0.03, high=14.6):
    ramp = np.linspace(0, 1, steps)
    return Grid.of([*((high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7).tolist(), 0.0], flow=False)
