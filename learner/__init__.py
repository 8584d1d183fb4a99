"""PPO on RLlib: policy module, training loop, checkpoints, registry."""
