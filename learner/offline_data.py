"""Stored episodes as offline learning takes them: surveyed, and split by prompt.

Always true here: episodes stay whole; all episodes of a prompt are on one side of the split, since the
same prompt and seed meet the same observations again; files are read one after the other, so that memory
holds one of them and not all.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray

from actors import trajectory_store
from actors.errors import UserError
from actors.observations import Observer
from actors.policy import PolicyNetwork, ValueNetwork

#: Of the held-out decisions so many are measured on, evenly spaced: a run's first ones are its worst.
_MEASURED = 20_000
_COLUMNS = ("prompt", "obs", "actions", "rewards", "terminateds")


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a prompt is measured on: always the same ones, and more of them with a larger share."""
    return zlib.crc32(prompt.encode()) < share * 2**32


@dataclass(frozen=True)
class Decisions:
    """N stored decisions: observations_ND as the observer made them, actions_N, returns_N from there on."""

    observations_ND: NDArray[np.float32]
    actions_N: NDArray[np.int64]
    returns_N: NDArray[np.float64]

    @torch.inference_mode()
    def measure(self, network: PolicyNetwork, observer: Observer) -> dict[str, float]:
        """Mean negative log-likelihood of the actions, and how often they are the network's best."""
        log_probs_NA, nll_N = self._log_probs(network, observer)
        accuracy = float((log_probs_NA.argmax(dim=1) == torch.from_numpy(self.actions_N)).float().mean())
        return {"held_out_nll": float(nll_N.mean()), "held_out_accuracy": accuracy}

    @torch.inference_mode()
    def measure_others(self, network: PolicyNetwork, observer: Observer, action: int) -> dict[str, float]:
        """The same of the decisions that were another action, given that they were; nothing if none was."""
        actions_N = torch.from_numpy(self.actions_N)
        other_N = actions_N != action
        if not other_N.any():
            return {}
        logits_NA, _ = self._log_probs(network, observer)
        logits_NA = logits_NA[other_N].index_fill(1, torch.tensor(action), -torch.inf)
        done_N1 = actions_N[other_N, None]
        nll_N1 = -logits_NA.log_softmax(dim=1).gather(1, done_N1)
        accuracy = float((logits_NA.argmax(dim=1, keepdim=True) == done_N1).float().mean())
        return {"held_out_others_nll": float(nll_N1.mean()), "held_out_others_accuracy": accuracy}

    @torch.inference_mode()
    def weighted_nll(
        self, network: PolicyNetwork, value: ValueNetwork, observer: Observer, beta: float
    ) -> float:
        """The same likelihood, each action weighted as MARWIL does: exp(beta * advantage / its scale)."""
        _, critic_ND, _ = observer.split(torch.from_numpy(self.observations_ND))
        advantages_N = torch.from_numpy(self.returns_N) - value(critic_ND)
        weights_N = (beta * advantages_N / advantages_N.square().mean().sqrt().clamp_min(1e-8)).softmax(dim=0)
        return float((weights_N * self._log_probs(network, observer)[1]).sum())

    def _log_probs(self, network: PolicyNetwork, observer: Observer) -> tuple[torch.Tensor, torch.Tensor]:
        policy_ND, _, mask_NA = observer.split(torch.from_numpy(self.observations_ND))
        log_probs_NA = network(policy_ND, mask_NA).log_softmax(dim=1)
        chosen_N1 = log_probs_NA.gather(1, torch.from_numpy(self.actions_N)[:, None])
        return log_probs_NA, -chosen_N1.squeeze(1)


@dataclass(frozen=True)
class Survey:
    """What is in some folders: files to learn from, episodes on both sides, and decisions to measure on.

    mean_return: the behaviour's, undiscounted, over the episodes that are learnt from.
    """

    files: tuple[str, ...]
    episodes: int
    held_out_episodes: int
    decisions: int
    mean_return: float
    held_out: Decisions | None


def survey(folders: Sequence[Path], share: float, gamma: float) -> Survey:
    """Read everything; gamma discounts the held-out returns.

    Raises what `trajectory_store.files` raises, and UserError if nothing is left to learn from.
    """
    files: list[str] = []
    episodes = held_out_episodes = decisions = seen = 0
    every = _spacing(folders, share)
    returns = 0.0
    observations: list[NDArray[np.float32]] = []
    actions: list[NDArray[np.int64]] = []
    returns_to_go_N: list[NDArray[np.float64]] = []
    for file in trajectory_store.files(folders):
        before = episodes
        for rows in trajectory_store.stream_file(file, _COLUMNS):
            out_N = _held_out_rows(rows, share)
            ends_N = rows["terminateds"].to_numpy()
            episodes += int((ends_N & ~out_N).sum())
            held_out_episodes += int((ends_N & out_N).sum())
            decisions += int((~out_N).sum())
            returns += float(rows["rewards"].to_numpy()[~out_N].sum(dtype=np.float64))
            measured = rows.filter(pyarrow.array(out_N))
            chosen = evenly(seen, measured.num_rows, every)
            seen += measured.num_rows
            if len(chosen):
                observations.append(trajectory_store.vectors(measured, "obs")[chosen])
                actions.append(measured["actions"].to_numpy().astype(np.int64)[chosen])
                returns_to_go_N.append(returns_to_go(measured, gamma)[chosen])
        if episodes > before:
            files.append(str(file))
    if not episodes:
        raise UserError(f"held_out={share}: every prompt is held out, nothing is left to learn from; give 0")
    held_out = None
    if actions:
        parts = (observations, actions, returns_to_go_N)
        held_out = Decisions(*(np.concatenate(part) for part in parts))  # type: ignore[arg-type]
    return Survey(tuple(files), episodes, held_out_episodes, decisions, returns / episodes, held_out)


def evenly(before: int, count: int, every: int) -> NDArray[np.int64]:
    """Which of `count` rows, that come after `before` others, are taken of every so many."""
    return np.arange(-before % every, count, every)


def _spacing(folders: Sequence[Path], share: float) -> int:
    """Of how many held-out decisions one is measured on."""
    rows = trajectory_store.stream(folders, ("prompt",))
    total = sum(int(_held_out_rows(each, share).sum()) for each in rows)
    return max(-(-total // _MEASURED), 1)


def returns_to_go(rows: pyarrow.Table, gamma: float) -> NDArray[np.float64]:
    """Discounted sum of the rewards of each decision and those after it in its episode; whole episodes."""
    rewards_N, last_N = rows["rewards"].to_numpy(), rows["terminateds"].to_numpy()
    returns_N = np.zeros(len(rewards_N))
    running = 0.0
    for row in range(len(rewards_N) - 1, -1, -1):
        running = float(rewards_N[row]) + (0.0 if last_N[row] else gamma * running)
        returns_N[row] = running
    return returns_N


def learnt_rows(rows: pyarrow.Table, share: float) -> pyarrow.Table:
    """The rows of the prompts that are learnt from."""
    return rows.filter(pyarrow.array(~_held_out_rows(rows, share)))


def _held_out_rows(rows: pyarrow.Table, share: float) -> NDArray[np.bool_]:
    encoded = rows["prompt"].combine_chunks().dictionary_encode()
    names = np.array([is_held_out(prompt, share) for prompt in encoded.dictionary.to_pylist()])
    chosen: NDArray[np.bool_] = names[encoded.indices.to_numpy()]
    return chosen
