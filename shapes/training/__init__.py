"""The recipe that trains the embedded world's models: `python -m shapes.training`, see `__main__`."""
