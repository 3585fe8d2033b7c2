"""The paper's experiments, one module each; see `study` for how they are run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paper.study import Experiment

# In the order of the results page.
NAMES = (
    "secret",
    "distribution",
    "pareto",
    "early",
    "overfitting",
    "factors",
    "private",
    "epsilon",
    "autocomplete",
)


def find(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in NAMES:
        raise ValueError(f"experiment {name!r} is not known; there are {', '.join(NAMES)}")
    module = importlib.import_module(f"paper.{name}")
    experiment: Experiment = module.EXPERIMENT
    return experiment
