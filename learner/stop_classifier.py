"""A policy that has learnt when to stop from preferences: direct preference optimisation of one question.

Rafailov et al., 2023 (arXiv 2305.18290): with chosen decision w, rejected l and reference policy r,

    loss = -log sigmoid(beta * (log pi(w) / r(w) - log pi(l) / r(l)))

The two answers are "stop" and "go on", whose probability is that of all other actions together; the
reference is the behaviour's own probability, as it is stored.

Always true here: what going on means stays the behaviour's: between the other actions the policy imitates
the stored distributions, before and while preferences move the question whether to go on at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute
import torch
from torch.nn import functional

from actors import trajectory_store
from actors.errors import UserError
from actors.observations import Observer
from actors.policy import PolicyNetwork
from actors.trajectory_origin import Origin
from learner.offline_config import OfflineConfig
from learner.offline_data import evenly, learnt_rows
from learner.preferences import find_pairs, read_choices, read_pairs, write_pairs

PAIRS_FILE = "pairs.parquet"
#: So many decisions, evenly spaced over all, keep the policy to the behaviour.
_IMITATED = 50_000


def dpo_loss(
    chosen_logp_B: torch.Tensor,
    rejected_logp_B: torch.Tensor,
    chosen_reference_B: torch.Tensor,
    rejected_reference_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """[B] losses from log-probabilities of the policy and of the reference (Rafailov et al., 2023, eq. 7)."""
    margin_B = (chosen_logp_B - chosen_reference_B) - (rejected_logp_B - rejected_reference_B)
    return -functional.logsigmoid(beta * margin_B)


def stop_or_go(logits_BA: torch.Tensor, stop: int) -> torch.Tensor:
    """[B, 2]: log-probabilities of stopping and of going on."""
    others = [action for action in range(logits_BA.shape[1]) if action != stop]
    pair_B2 = torch.stack([logits_BA[:, stop], logits_BA[:, others].logsumexp(dim=1)], dim=1)
    return pair_B2.log_softmax(dim=1)


@dataclass(frozen=True)
class PairTensors:
    """P pairs: the policy's inputs and masks of both halves, what each did, the reference's view of it."""

    inputs_P2D: torch.Tensor
    mask_P2A: torch.Tensor
    stops_P2: torch.Tensor
    reference_P2: torch.Tensor

    def log_probs(self, network: PolicyNetwork, stop: int, rows_B: torch.Tensor) -> torch.Tensor:
        """[B, 2]: the network's log-probabilities of chosen and rejected decisions."""
        inputs_BD = self.inputs_P2D[rows_B].flatten(0, 1)
        logits_BA = network(inputs_BD, self.mask_P2A[rows_B].flatten(0, 1))
        answers_B2 = stop_or_go(logits_BA, stop)
        did_B = (~self.stops_P2[rows_B].flatten()).long()
        return answers_B2.gather(1, did_B[:, None]).view(-1, 2)

    def loss(self, network: PolicyNetwork, stop: int, beta: float, rows_B: torch.Tensor) -> torch.Tensor:
        """Mean DPO loss of some pairs."""
        log_probs_B2, reference_B2 = self.log_probs(network, stop, rows_B), self.reference_P2[rows_B]
        chosen, rejected = log_probs_B2.unbind(dim=1)
        return dpo_loss(chosen, rejected, reference_B2[:, 0], reference_B2[:, 1], beta).mean()


@dataclass(frozen=True)
class Behaviour:
    """N stored decisions: the policy's inputs, masks, and the distributions that were acted by."""

    inputs_ND: torch.Tensor
    mask_NA: torch.Tensor
    logits_NA: torch.Tensor

    def divergence(
        self, network: PolicyNetwork, rows_B: torch.Tensor, without: int | None = None
    ) -> torch.Tensor:
        """Mean KL of the network's distribution from the behaviour's; given that it is not `without`."""
        logits_BA = network(self.inputs_ND[rows_B], self.mask_NA[rows_B])
        behaviour_BA = self.logits_NA[rows_B]
        if without is not None:
            kept = [action for action in range(logits_BA.shape[1]) if action != without]
            legal_B = self.mask_NA[rows_B][:, kept].any(dim=1)
            logits_BA, behaviour_BA = logits_BA[legal_B][:, kept], behaviour_BA[legal_B][:, kept]
        if not len(logits_BA):
            return logits_BA.sum()
        log_probs_BA, target_BA = logits_BA.log_softmax(dim=1), behaviour_BA.log_softmax(dim=1)
        return functional.kl_div(log_probs_BA, target_BA, reduction="batchmean", log_target=True)


def stop_updates(config: OfflineConfig, origin: Origin) -> Iterator[tuple[dict[str, float], PolicyNetwork]]:
    """Write the pairs, then one row of numbers and the policy so far after each iteration.

    Raises UserError where the actions hold no `stop`, and where there is no pair.
    """
    if "stop" not in origin.actions:
        raise UserError("algorithm=dpo: these trajectories have no action stop; give bc or marwil")
    stop, observer, options = origin.actions.index("stop"), origin.observer(), config.dpo
    choices = read_choices(config.folders, stop, origin.gamma)
    pairs = find_pairs(
        choices,
        kind=options.pairs,
        margin=options.margin,
        at_most=options.pairs_per_state,
        seed=config.seed,
    )
    path = config.run_dir / PAIRS_FILE
    write_pairs(path, config.folders, choices, pairs, config.held_out)
    prefer, measured = load_pairs(path, observer, held_out=False), load_pairs(path, observer, held_out=True)
    if not len(prefer.stops_P2):
        raise UserError(f"held_out={config.held_out}: every pair is held out, none is left to learn from")
    behaviour = load_behaviour(config, observer)
    network = new_network(config, origin)
    warmup = round(options.warmup_share * config.iterations)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    for iteration in range(config.iterations):
        prefers = iteration >= warmup
        for _ in range(config.updates_per_iteration):
            rows_B = _draw(len(behaviour.inputs_ND), config.minibatch_size, generator)
            loss = behaviour.divergence(network, rows_B, stop if prefers else None)
            if prefers:
                pairs_B = _draw(len(prefer.stops_P2), config.minibatch_size, generator)
                loss = loss + prefer.loss(network, stop, options.beta, pairs_B)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
            optimizer.step()
        row = _measure(network, prefer, stop, options.beta) | _drift(network, behaviour, stop)
        if iteration >= warmup - 1 and len(measured.stops_P2):
            found = _measure(network, measured, stop, options.beta)
            row |= {f"held_out_{name}": value for name, value in found.items()}
        yield row, network


def new_network(config: OfflineConfig, origin: Origin) -> PolicyNetwork:
    """An untrained policy with the run's input normalisation."""
    observer = origin.observer()
    torch.manual_seed(config.seed)
    network = PolicyNetwork(observer.policy_dim, observer.num_actions, config.hidden)
    network.obs_mean.copy_(torch.tensor(origin.mean[: observer.policy_dim]))
    network.obs_std.copy_(torch.tensor(origin.std[: observer.policy_dim]))
    return network


def _draw(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(count, (min(size, count),), generator=generator)


@torch.inference_mode()
def _measure(network: PolicyNetwork, prefer: PairTensors, stop: int, beta: float) -> dict[str, float]:
    """Over all pairs: the loss, and how often the policy gained more on what turned out better."""
    every_P = torch.arange(len(prefer.stops_P2))
    gained_P2 = prefer.log_probs(network, stop, every_P) - prefer.reference_P2
    return {
        "dpo_loss": float(prefer.loss(network, stop, beta, every_P)),
        "pair_accuracy": float((gained_P2[:, 0] > gained_P2[:, 1]).float().mean()),
        "pairs": float(len(every_P)),
        "pairs_for_stopping": float(prefer.stops_P2[:, 0].float().mean()),
    }


@torch.inference_mode()
def _drift(network: PolicyNetwork, behaviour: Behaviour, stop: int) -> dict[str, float]:
    """How far going on is from what it was, over some of the behaviour."""
    count = len(behaviour.inputs_ND)
    sample_B = torch.arange(0, count, max(count // 4096, 1))
    return {"divergence": float(behaviour.divergence(network, sample_B, stop))}


def load_pairs(path: Path, observer: Observer, *, held_out: bool) -> PairTensors:
    """The pairs of a file that are learnt from, or those that are held out; there may be none."""
    table = read_pairs(path)
    table = table.filter(pyarrow.compute.equal(table["held_out"], held_out))
    halves = ("chosen", "rejected")

    def both(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([table[f"{half}_{name}"].to_numpy() for half in halves], axis=1))

    observations = [trajectory_store.vectors(table, f"{half}_obs") for half in halves]
    inputs_P2D, _, mask_P2A = observer.split(torch.from_numpy(np.stack(observations, axis=1)))
    return PairTensors(inputs_P2D.contiguous(), mask_P2A, both("stops"), both("logp"))


def load_behaviour(config: OfflineConfig, observer: Observer) -> Behaviour:
    """Stored decisions and distributions, evenly spaced where there are more than are held."""
    total = sum(
        learnt_rows(rows, config.held_out).num_rows
        for rows in trajectory_store.stream(config.folders, ("prompt",))
    )
    every, first = -(-total // _IMITATED), 0
    observations, logits = [], []
    for stored in trajectory_store.stream(config.folders, ("prompt", "obs", "action_dist_inputs")):
        rows = learnt_rows(stored, config.held_out)
        chosen = evenly(first, rows.num_rows, every)
        first += rows.num_rows
        if len(chosen):
            observations.append(trajectory_store.vectors(rows, "obs")[chosen])
            logits.append(trajectory_store.vectors(rows, "action_dist_inputs")[chosen])
    inputs_ND, _, mask_NA = observer.split(torch.from_numpy(np.concatenate(observations)))
    return Behaviour(inputs_ND.contiguous(), mask_NA, torch.from_numpy(np.concatenate(logits)))
