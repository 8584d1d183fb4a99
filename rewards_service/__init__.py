"""Scorers, the batching service with its client, and the reward arithmetic."""
