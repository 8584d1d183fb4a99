"""The denoising engine and the Ray actor that runs it."""
