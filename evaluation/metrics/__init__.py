"""Metrics over stored images: values of single images, distances between sets, benchmarks' own formats."""
