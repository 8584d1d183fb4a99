"""The embedded world: captioned scenes, an exact verifier, small trained models; needs no download."""
