"""Baselines, metrics, significance, figures and the report."""
