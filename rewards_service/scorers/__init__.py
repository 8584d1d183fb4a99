"""Frozen reward models, one file each; every class here is a `Scorer` of `rewards_service.contracts`."""
