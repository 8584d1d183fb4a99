"""Baselines: names.py says which there are, opening.py makes one; the rest is one file a way to sample."""

from evaluation.baselines.names import (
    DEFAULT_BASELINES,
    FAMILIES,
    Baseline,
    check_baselines,
    parse_baseline,
)

__all__ = ["DEFAULT_BASELINES", "FAMILIES", "Baseline", "check_baselines", "parse_baseline"]
