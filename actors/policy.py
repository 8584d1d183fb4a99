"""The policy and value networks, how a policy decides, and how it is kept on disk.

Always true here: plain torch, so that a policy trains, evaluates and serves without RLlib; logits are
finite, and an illegal action's is so low that its probability is exactly 0; a policy file is written
aside and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from actors.episode import Episode
from actors.errors import UserError
from actors.files import written_aside
from actors.observations import Observer

ILLEGAL_LOGIT = -1e9
OBSERVATION_LIMIT = 10.0
"""Normalised observations are clipped here: a feature never seen in training cannot take over."""
SMALLEST_STD = 1e-6
"""Of a feature that never varied while it was measured."""
STOP = "stop"
ONWARD = ("continue", "leap", "refine", "reuse")
"""The actions, up to a dash in their names, that go on along the schedule."""
WEIGHTS_FILE = "policy.safetensors"
METADATA_FILE = "policy.json"


class _NormalisedMLP(nn.Module):
    """Linear layers with ReLU over normalised inputs; orthogonal weights, zero biases."""

    obs_mean: torch.Tensor
    obs_std: torch.Tensor

    def __init__(self, in_dim: int, out_dim: int, hidden: Sequence[int], out_gain: float) -> None:
        super().__init__()
        self.register_buffer("obs_mean", torch.zeros(in_dim))
        self.register_buffer("obs_std", torch.ones(in_dim))
        widths = [in_dim, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [_orthogonal(nn.Linear(width_in, width_out), 2.0**0.5), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _orthogonal(nn.Linear(widths[-1], out_dim), out_gain))

    def normalised(self, inputs_BD: torch.Tensor) -> torch.Tensor:
        """Inputs in standard deviations from their mean, clipped; an exact 0 is unknown and stays 0."""
        scaled_BD = (inputs_BD - self.obs_mean) / self.obs_std.clamp_min(SMALLEST_STD)
        known_BD = scaled_BD.clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        return known_BD.masked_fill(inputs_BD == 0, 0.0)


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class PolicyNetwork(_NormalisedMLP):
    """Policy part of an observation and legal actions in, logits out.

    obs_mean and obs_std are buffers (0 and 1 until someone measures them) and are saved with the weights.
    The last layer starts a hundred times smaller, so that the first policy is almost uniform.
    """

    def __init__(self, policy_dim: int, num_actions: int, hidden: Sequence[int] = (512, 256)) -> None:
        super().__init__(policy_dim, num_actions, hidden, out_gain=0.01)
        self.policy_dim, self.num_actions, self.hidden = policy_dim, num_actions, tuple(hidden)

    def set_initial_logits(self, logits_A: Sequence[float]) -> None:
        """What the untrained network's logits lie near, whatever it observes."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(logits_A))

    def forward(self, policy_BD: torch.Tensor, mask_BA: torch.Tensor) -> torch.Tensor:
        """[B, A] logits; ILLEGAL_LOGIT where the mask is False."""
        logits_BA: torch.Tensor = self.layers(self.normalised(policy_BD))
        return logits_BA.masked_fill(~mask_BA, ILLEGAL_LOGIT)


class ValueNetwork(_NormalisedMLP):
    """The critic's part of an observation (policy part and critic-only part) in, values out."""

    def __init__(self, in_dim: int, hidden: Sequence[int] = (512, 256)) -> None:
        super().__init__(in_dim, 1, hidden, out_gain=1.0)

    def forward(self, critic_BD: torch.Tensor) -> torch.Tensor:
        """[B] values."""
        values_B1: torch.Tensor = self.layers(self.normalised(critic_BD))
        return values_B1.squeeze(-1)


class PolicyDecider:
    """A policy network as a Decider: its best action, or one drawn from its distribution if not greedy.

    What is drawn follows from `seed`, the request and the number of the decision alone, so that an episode
    is the same whichever others it shares a batch or a process with.

    stop_threshold: how probable `stop` has to be for an image to be stopped early, that is while its schedule
    goes on (see `stops_early`). Above it the image is stopped, up to it another action is taken; 1 never
    stops early. None: stop is an action like any other.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        observer: Observer,
        greedy: bool = True,
        seed: int = 0,
        stop_threshold: float | None = None,
    ) -> None:
        assert stop_threshold is None or 0.0 <= stop_threshold <= 1.0, stop_threshold
        self.network = network.eval()
        self.observer = observer
        self.greedy = greedy
        self.seed = seed
        self.stop_threshold = stop_threshold

    @torch.inference_mode()
    def __call__(
        self,
        episodes: Sequence[Episode],
        observations_BD: NDArray[np.float32],
        mask_BA: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """An action index for each episode."""
        logits_BA = self.logits(observations_BD, mask_BA)
        if self.stop_threshold is not None and STOP in self.observer.actions:
            early_B = torch.from_numpy(stops_early(self.observer.actions, mask_BA))
            stop = self.observer.actions.index(STOP)
            stopped_B = early_B & (logits_BA.softmax(dim=1)[:, stop] > self.stop_threshold)
            logits_BA[early_B, stop] = ILLEGAL_LOGIT
            logits_BA[stopped_B] = ILLEGAL_LOGIT
            logits_BA[stopped_B, stop] = 0.0
        if self.greedy:
            greedy_B: NDArray[np.int64] = logits_BA.argmax(dim=1).numpy()
            return greedy_B
        cumulative_BA = logits_BA.double().softmax(dim=1).cumsum(dim=1).numpy()
        drawn_B1 = np.array([[_uniform(self.seed, episode)] for episode in episodes])
        # The first action whose probability reaches beyond the number drawn: never one of probability 0.
        drawn_B: NDArray[np.int64] = (cumulative_BA <= drawn_B1 * cumulative_BA[:, -1:]).sum(1)
        return drawn_B

    @torch.inference_mode()
    def logits(self, observations_BD: NDArray[np.float32], mask_BA: NDArray[np.bool_]) -> torch.Tensor:
        """[B, A], as the network gives them."""
        policy_BD, _, _ = self.observer.split(torch.from_numpy(observations_BD))
        logits_BA: torch.Tensor = self.network(policy_BD, torch.from_numpy(mask_BA))
        return logits_BA


def _uniform(seed: int, episode: Episode) -> float:
    """A number in [0, 1) for an episode's next decision, the same wherever it is asked for."""
    request = episode.request
    told = f"{seed}\n{request.seed}\n{len(episode.decisions)}\n{request.prompt}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:6], "big") / 2**48


def stops_early(actions: Sequence[str], mask_BA: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[B]: whether `stop` here is early, that is legal beside an action that goes on along the schedule.

    At the schedule's end, and where the budget is used up, there is none.
    """
    onward = [index for index, name in enumerate(actions) if name.partition("-")[0] in ONWARD]
    early_B: NDArray[np.bool_] = mask_BA[:, onward].any(axis=1) & mask_BA[:, list(actions).index(STOP)]
    return early_B


def save_policy(folder: str | Path, network: PolicyNetwork, metadata: dict[str, Any]) -> None:
    """Write `policy.safetensors` (weights, and in its header sizes and metadata) and `policy.json`.

    The safetensors file alone is the policy and is replaced in one rename; the JSON file repeats its
    header for people and for tools without torch.
    """
    folder = Path(folder)
    header = {
        "policy_dim": network.policy_dim,
        "num_actions": network.num_actions,
        "hidden": list(network.hidden),
        "metadata": metadata,
    }
    weights = {name: values.detach().cpu().contiguous() for name, values in network.state_dict().items()}
    packed = {"policy": json.dumps(header)}
    with written_aside(folder / WEIGHTS_FILE) as aside:
        aside.write_bytes(save(weights, metadata=packed))  # which says what ails a disk, as an OSError
    with written_aside(folder / METADATA_FILE) as aside:
        aside.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def load_policy(folder: str | Path) -> tuple[PolicyNetwork, dict[str, Any]]:
    """The network, in eval mode on the CPU, and the metadata. UserError if missing or damaged."""
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"policy folder is {str(folder)!r}; accepted: a folder with {WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["policy"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = PolicyNetwork(header["policy_dim"], header["num_actions"], header["hidden"])
        network.load_state_dict(weights)
        metadata: dict[str, Any] = header["metadata"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"policy file is {str(path)!r} and is damaged ({reason}); accepted: a file of save_policy"
        ) from error
    return network.eval(), metadata
