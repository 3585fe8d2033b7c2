"""Modules for Hugging Face `evaluate`, each a folder that is a Space of the Hub as it stands."""

from __future__ import annotations

from pathlib import Path


def metric_path() -> str:
    """Where the metric "exposure" lies: a folder for `evaluate.load`, or to upload as a Space.

    Example:
        >>> import evaluate
        >>> metric = evaluate.load(metric_path())
        >>> metric.compute(predictions=[3.0, 9.5], references=[4.0, 8.0, 9.0, 9.5])["exposure"]
        [2.0, 0.0]
    """
    return str(Path(__file__).parent / "exposure")
