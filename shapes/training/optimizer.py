"""Muon for matrices and convolutions, AdamW for everything else, in one optimiser.

Muon (Jordan et al., 2024) replaces a momentum matrix by its nearest semi-orthogonal one, found by a
Newton-Schulz iteration; the update is scaled by 0.2 * sqrt(max(rows, columns)), so that its root mean
square is that of AdamW and one learning rate serves both (Liu et al., arXiv 2502.16982).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix_RC: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The semi-orthogonal matrix nearest to `matrix_RC`, singular values within about 0.7 to 1.2."""
    wide = matrix_RC.T if matrix_RC.shape[0] > matrix_RC.shape[1] else matrix_RC
    x = wide / (wide.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix_RC.shape[0] > matrix_RC.shape[1] else x


def warmup_cosine(step: int, steps: int, peak: float, warmup: int, floor: float = 0.0) -> float:
    """Learning rate: up over `warmup` steps, down along a cosine to `floor * peak` at the end."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1, (step + 1) / warmup) * ((1 - floor) * cosine + floor)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class MuonAdamW(torch.optim.Optimizer):
    """Steps parameters of two or more dimensions by Muon, the others (and `adamw_only`) by AdamW.

    Convolutions are matrices of shape [out, in * height * width].
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        adamw_only: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        apart = {id(p) for p in adamw_only}
        everything = list(parameters)
        muon = [p for p in everything if p.ndim >= 2 and id(p) not in apart]
        adamw = [p for p in everything if p.ndim < 2 or id(p) in apart]
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas}
        super().__init__([{"params": muon, "muon": True}, {"params": adamw, "muon": False}], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; parameters without a gradient stay."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                direction = self._muon if group["muon"] else self._adamw
                parameter.add_(direction(parameter, self.state[parameter], group), alpha=-group["lr"])

    @staticmethod
    def _muon(parameter: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
        gradient = parameter.grad
        assert gradient is not None
        buffer = state.setdefault("momentum", torch.zeros_like(gradient))
        buffer.lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(buffer, group["momentum"]).flatten(1)
        scale = 0.2 * max(nesterov.shape) ** 0.5
        return (orthogonalised(nesterov) * scale).view_as(parameter)

    @staticmethod
    def _adamw(parameter: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
        gradient = parameter.grad
        assert gradient is not None
        first, second = group["betas"]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        mean = state["mean"] / (1 - first ** state["step"])
        square = state["square"] / (1 - second ** state["step"])
        return mean / (square.sqrt() + 1e-8)
