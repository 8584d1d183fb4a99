"""AdaDiff: how many steps a prompt gets, chosen from the prompt alone (Zhang et al. 2023, arXiv 2311.14768).

A small network reads the pooled prompt embedding and chooses a step count. It is trained here by REINFORCE on
the reward model's score of the finished image less a price a step; the baseline is the mean of the other
choices drawn for the same prompt. Every (prompt, seed, step count) is made into an image once, before the
training, and what that costs is told with the file: it is the training cost.

Always true here: the exact verifier has no say, nor has a forecast; a file opens only on the backbone it was
fitted on, with the solver and guidance of its training, which are those that an evaluation gives it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import EngineConfig
from actors.errors import UserError
from actors.files import written_aside
from evaluation.baselines.names import parse_baseline
from evaluation.baselines.oracles import fixed_schedule
from evaluation.bench import Bench

STEPS = (3, 4, 5, 7, 10, 15, 20)
PRICE = 0.004
"""Score that one more NFE has to be worth; sigma .2 at .02 of it, the default of `reward=outcome`."""
HIDDEN = 64
UPDATES = 600
DRAWS = 8
"""Choices drawn for each prompt in an update."""
LEARNING_RATE = 3e-3
ENTROPY = 0.01


@dataclass(frozen=True)
class Fitted:
    """What a file of chosen step counts says about itself. nfe: denoiser calls that its training cost.

    sampling: how its images were made, one line.
    """

    steps: tuple[int, ...]
    backbone: str
    sampling: str
    prompts: int
    nfe: int
    price: float
    mean_steps: float


class StepCountNetwork(torch.nn.Module):
    """Logits [B, S] over step counts from pooled prompt embeddings [B, D], which it normalises itself."""

    def __init__(self, text_dim: int, choices: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(text_dim)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(text_dim, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, choices)
        )

    def forward(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        """Higher is more probable."""
        logits_BS: torch.Tensor = self.layers(self.norm(pooled_BD))
        return logits_BS


def fit(
    bench: Bench,
    requests: Sequence[EpisodeRequest],
    config: EngineConfig,
    path: Path,
    *,
    steps: Sequence[int] = STEPS,
    price: float = PRICE,
    slots: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fitted:
    """Make the images, train, and write the file.

    requests: training prompts with a seed each. config: a policy's; what the baseline takes from it counts.
    """
    config = parse_baseline(f"adadiff@{path}").engine_config(config)
    scores_RS = np.empty((len(requests), len(steps)))
    for column, count in enumerate(steps):
        ends = fixed_schedule(bench, config, count).run(requests, slots=slots)
        for start in range(0, len(ends), slots):
            part = ends[start : start + slots]
            images = bench.backbone.decode(torch.stack([end.latents_CHW for end in part]))
            prompts = [end.request.prompt for end in part]
            scores = bench.scorer(bench.finished)(images, prompts)
            scores_RS[start : start + slots, column] = scores[bench.finished]
        progress(column + 1, len(steps))
    pooled = bench.backbone.encode_prompts([request.prompt for request in requests]).pooled_BD
    network = train(pooled.float().cpu().clone(), scores_RS - price * np.array(steps), seed=seed)
    chosen = network(pooled.float().cpu().clone()).argmax(1).tolist()
    fitted = Fitted(
        steps=tuple(steps),
        backbone=bench.backbone.identity,
        sampling=_sampling(config),
        prompts=len(requests),
        nfe=sum(steps) * len(requests),
        price=price,
        mean_steps=float(np.mean([steps[choice] for choice in chosen])),
    )
    with written_aside(path) as aside:
        save_file(network.state_dict(), aside, {"adadiff": json.dumps(asdict(fitted))})
    return fitted


def train(pooled_RD: torch.Tensor, reward_RS: NDArray[np.float64], *, seed: int = 0) -> StepCountNetwork:
    """REINFORCE with the mean of a prompt's other draws as its baseline (RLOO: Kool et al. 2019)."""
    assert np.isfinite(reward_RS).all(), "a missing or non-finite reward"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = StepCountNetwork(pooled_RD.shape[1], reward_RS.shape[1])
        optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        rewards_RS = torch.from_numpy(reward_RS).float()
        for _ in range(UPDATES):
            choice = torch.distributions.Categorical(logits=network(pooled_RD))
            drawn_KR = choice.sample(torch.Size([DRAWS]))
            return_KR = rewards_RS.expand(DRAWS, -1, -1).gather(2, drawn_KR[..., None])[..., 0]
            others_KR = (return_KR.sum(0) - return_KR) / (DRAWS - 1)
            advantage_KR = return_KR - others_KR
            advantage_KR = advantage_KR / advantage_KR.std().clamp_min(1e-6)
            loss = -(advantage_KR * choice.log_prob(drawn_KR)).mean() - ENTROPY * choice.entropy().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def _sampling(config: EngineConfig) -> str:
    """What the images of a step count depend on besides it, in words."""
    told = f"{config.solver}, guidance {config.guidance_scale:g} ({config.guidance_rule})"
    return f"{told}, flow shift {config.flow_shift:g}" if config.flow_shift is not None else told


def load(path: str | Path) -> tuple[StepCountNetwork, Fitted]:
    """What `fit` wrote; UserError for anything else."""
    try:
        with safe_open(str(path), "pt") as file:
            fitted = Fitted(**json.loads((file.metadata() or {})["adadiff"]))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        fitted = replace(fitted, steps=tuple(fitted.steps))
        network = StepCountNetwork(len(state["norm.weight"]), len(fitted.steps))
        network.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"baseline 'adadiff@{path}': not a file of `addiffusion baselines fit-adadiff` ({error})"
        ) from error
    return network.eval(), fitted


class StepCountSampler:
    """Chooses each prompt's step count, and runs the prompts of one count together."""

    def __init__(self, path: str, config: EngineConfig, bench: Bench) -> None:
        self._network, self.fitted = load(path)
        if self.fitted.backbone != bench.backbone.identity:
            raise UserError(
                f"baseline 'adadiff@{path}': fitted on {self.fitted.backbone},"
                f" this is {bench.backbone.identity}"
            )
        if self.fitted.sampling != _sampling(config):
            raise UserError(
                f"baseline 'adadiff@{path}': fitted with {self.fitted.sampling}, this is {_sampling(config)}"
            )
        self._bench = bench
        self._config = config

    @torch.inference_mode()
    def run(
        self, requests: Sequence[EpisodeRequest], *, slots: int, record_previews: bool = False
    ) -> list[EpisodeResult]:
        """Finished episodes in the order of the requests."""
        pooled_BD = self._bench.backbone.encode_prompts([request.prompt for request in requests]).pooled_BD
        groups: dict[int, list[int]] = defaultdict(list)
        for place, choice in enumerate(self._network(pooled_BD.float().cpu()).argmax(1).tolist()):
            groups[self.fitted.steps[choice]].append(place)
        results: dict[int, EpisodeResult] = {}
        for count, places in groups.items():
            fixed = fixed_schedule(self._bench, self._config, count)
            ends = fixed.run(
                [requests[place] for place in places], slots=slots, record_previews=record_previews
            )
            results.update(zip(places, ends, strict=True))
        return [results[place] for place in range(len(requests))]
