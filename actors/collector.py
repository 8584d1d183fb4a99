"""Gathers training episodes: engine, policy and scoring service in one loop, without Ray.

The slots are split into groups. A group's turn is: take the scores of its previews, decide, refill
finished slots, denoise, send the new previews off; then the next group has its turn, so that one group
is scored elsewhere while another denoises.

Always true here: an episode's decisions depend on its own request, its own generator and the policy,
never on the group, slot or batch it sat in; every decision is taken on scores that have arrived; a
preview is scored once, and with a memo not at all if it was scored in an earlier episode; episodes come
back in the order of the requests, all of them finished. A twin (see `actors.branching`) shares what was
before its fork, and waits for a free slot like a request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actors.engine import Engine, Episode
from actors.ledger import RewardLedger
from actors.memo import Memo, Scored, score_keys
from actors.observations import EMBEDDINGS, Observer
from actors.slots import Group, Slot, shared_seconds
from actors.trajectory import TrainingRequest, Trajectory
from rewards_service.arithmetic import RewardConfig, required_outputs
from rewards_service.contracts import RewardClient

#: Observations and masks of B episodes in, logits [B, A] out (illegal actions far below the legal ones).
Policy = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]]


@dataclass
class CollectorTimes:
    """Seconds of one `collect`: all of it, in the denoiser, and waiting for scores; and what was done in it.

    previews: scored; calls: of the denoiser, one for each episode in it; remembered: of these, not made.
    """

    wall: float = 0.0
    denoising: float = 0.0
    waiting: float = 0.0
    previews: int = 0
    calls: int = 0
    remembered: int = 0


class _Seen(NamedTuple):
    """One decision of one slot: what was observed, which actions are legal, and what the policy said."""

    observation: NDArray[np.float32]
    mask: NDArray[np.bool_]
    logits: NDArray[np.float32]
    log_probs: NDArray[np.float64]


class Collector:
    """Runs training requests through `slots` slots in `groups` groups.

    Where the observation holds the preview's embeddings (`seed`), every decision is scored, and counted
    as a look, as it is when the policy is used. memo: scores of earlier previews, not asked for again.
    """

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        client: RewardClient,
        *,
        slots: int,
        groups: int,
        memo: Memo[Scored] | None = None,
        record_previews: bool = False,
    ) -> None:
        """`record_previews` keeps an image a decision, which has to be decoded for it."""
        self.memo = memo
        self.engine = engine
        self.observer = observer
        self.client = client
        self.record_previews = record_previews
        self.capacities = [len(range(group, slots, groups)) for group in range(groups)]
        self.times = CollectorTimes()

    def collect(
        self,
        requests: Sequence[TrainingRequest],
        policy: Policy,
        reward: RewardConfig,
        *,
        greedy: bool = False,
    ) -> list[Trajectory]:
        """Finish every request; a twin comes right after its trunk.

        Raises what the scoring client raises (a missing or non-finite score).
        """
        started = time.perf_counter()
        self.times = CollectorTimes()
        queue = deque(enumerate(requests))
        groups = [Group() for _ in self.capacities]
        finished: dict[tuple[int, bool], Trajectory] = {}
        while queue or any(group.slots or group.twins for group in groups):
            for group, capacity in zip(groups, self.capacities, strict=True):
                self._receive(group)
                self._decide(group, policy, greedy)
                self._close(group, finished)
                self._refill(group, queue, capacity, reward)
                self._denoise(group)
                self._send(group, reward)
        self.times.wall = time.perf_counter() - started
        assert len(finished) >= len(requests)
        return [finished[place] for place in sorted(finished)]

    def _receive(self, group: Group) -> None:
        if group.pending is None:
            return
        started = time.perf_counter()
        with shared_seconds(group.awaiting):
            scores = group.pending.result()
        self.times.waiting += time.perf_counter() - started
        rows = [{name: values[row] for name, values in scores.items()} for row in range(len(group.awaiting))]
        for slot, row in zip(group.awaiting, rows, strict=True):
            slot.enter(row)
        if self.memo is not None:
            self.memo.keep(group.awaited, [Scored.of(row) for row in rows])
        group.pending, group.awaiting, group.awaited = None, [], []

    def _close(self, group: Group, finished: dict[tuple[int, bool], Trajectory]) -> None:
        for slot in [slot for slot in group.slots if slot.episode.finished and slot.scores is not None]:
            assert slot.scores is not None
            trajectory, episode = slot.trajectory, slot.episode
            trajectory.quality = slot.ledger.finish(
                cost=episode.cost, nfe=episode.nfe, num_steps=self.engine.config.num_steps, scores=slot.scores
            )
            trajectory.rewards, trajectory.parts = slot.ledger.rewards, slot.ledger.parts
            trajectory.result = episode.result()
            finished[slot.order, trajectory.is_twin] = trajectory
            group.slots.remove(slot)

    def _decide(self, group: Group, policy: Policy, greedy: bool) -> None:
        while True:
            for slot in group.slots:
                if slot.scores is not None and self._is_shown(slot.episode):
                    seen, shown_CHW = slot.scores, slot.episode.clean_CHW
                    self.engine.receive_look(
                        slot.episode, {name: seen[name] for name in self.observer.look_outputs}
                    )
                    slot.forget_if_replaced(shown_CHW)
            deciding = [slot for slot in group.slots if self._can_decide(slot.episode)]
            if not deciding:
                return
            with shared_seconds(deciding):
                group.twins.extend(self._decide_once(deciding, policy, greedy))

    def _decide_once(self, deciding: list[Slot], policy: Policy, greedy: bool) -> list[Slot]:
        """One decision of each slot; gives the twins of those that fork here."""
        twins = []
        episodes = [slot.episode for slot in deciding]
        if self.record_previews:
            for slot, image_HWC in zip(deciding, self.engine.preview(episodes), strict=True):
                slot.trajectory.previews.append(image_HWC)
        for slot, episode in zip(deciding, episodes, strict=True):
            slot.trajectory.seconds_spent.append(slot.trajectory.seconds)
            slot.ledger.reach(cost=episode.cost, nfe=episode.nfe, attempt=episode.attempt, scores=slot.scores)
        mask_BA = self.engine.legal(episodes)
        observations_BD = self._observe(deciding, mask_BA)
        logits_BA = policy(observations_BD, mask_BA)
        assert np.isfinite(logits_BA).all(), "the policy's logits are not finite"
        log_probs_BA = _log_softmax(logits_BA)
        rows = zip(observations_BD, mask_BA, logits_BA, log_probs_BA, strict=True)
        for slot, seen in zip(deciding, map(_Seen._make, rows), strict=True):
            log_probs = seen.log_probs
            action = int(np.argmax(seen.logits)) if greedy else _draw(log_probs, slot.generator)
            assert seen.mask[action], f"action {self.engine.action_names[action]} is not legal here"
            if (
                slot.trajectory.training.fork_at == len(slot.trajectory.actions)
                and not slot.trajectory.is_twin
            ):
                others = log_probs.copy()
                others[action] = -np.inf
                if np.exp(others).sum() > 0.0:
                    twin = slot.fork()
                    self._take(twin, _draw(others, twin.generator), seen)
                    twins.append(twin)
            self._take(slot, action, seen)
        return twins

    def _take(self, slot: Slot, action: int, seen: _Seen) -> None:
        trajectory = slot.trajectory
        trajectory.observations.append(seen.observation)
        trajectory.actions.append(action)
        trajectory.logits.append(seen.logits)
        trajectory.log_probs.append(float(seen.log_probs[action]))
        trajectory.entropies.append(float(-(np.exp(seen.log_probs) * seen.log_probs)[seen.mask].sum()))
        refines = self.engine.action_names[action] == "refine"
        slot.ledger.decide(attention_entropy(slot.episode.attention_HW if refines else None))
        slot.unscored_decisions += 1
        shown_CHW = slot.episode.clean_CHW
        self.engine.act(slot.episode, action)
        slot.forget_if_replaced(shown_CHW)

    def _can_decide(self, episode: Episode) -> bool:
        """Whether nothing of what it observes is still to be scored."""
        return episode.state == "deciding" and not self._is_shown(episode)

    def _is_shown(self, episode: Episode) -> bool:
        """Whether scores, once they are there, go into the policy's observation."""
        if episode.state == "looking":
            return True
        return self.observer.scores_every_decision and episode.state == "deciding" and not episode.looked_here

    def _observe(self, slots: list[Slot], mask_BA: NDArray[np.bool_]) -> NDArray[np.float32]:
        embeddings = None
        if self.observer.needs_embeddings:
            embeddings = {name: np.stack([slot.latest[name] for slot in slots]) for name in EMBEDDINGS}
        return self.observer.observe(
            [slot.episode for slot in slots],
            mask_BA,
            critic=np.stack([slot.critic_quality for slot in slots]),
            embeddings=embeddings,
        )

    def _refill(
        self,
        group: Group,
        queue: deque[tuple[int, TrainingRequest]],
        capacity: int,
        reward: RewardConfig,
    ) -> None:
        free = capacity - sum(not slot.episode.finished for slot in group.slots)
        while free > 0 and group.twins:
            twin = group.twins.popleft()
            group.slots.append(twin)
            free -= not twin.episode.finished
        taken = [queue.popleft() for _ in range(min(free, len(queue)))]
        if not taken:
            return
        started = time.perf_counter()
        episodes = self.engine.begin([training.request for _, training in taken])
        seconds = (time.perf_counter() - started) / len(taken)
        for (order, training), episode in zip(taken, episodes, strict=True):
            ledger = RewardLedger(reward, training.target, training.request.prompt)
            generator = np.random.default_rng(training.stream)
            trajectory = Trajectory(training, seconds=seconds)
            group.slots.append(Slot(episode, ledger, trajectory, order, generator))

    def _denoise(self, group: Group) -> None:
        running = [slot for slot in group.slots if slot.episode.state == "denoising"]
        if not running:
            return
        memo, started = self.engine.memo, time.perf_counter()
        found = 0 if memo is None else memo.found
        with shared_seconds(running):
            self.engine.denoise([slot.episode for slot in running])
        self.times.denoising += time.perf_counter() - started
        self.times.calls += len(running)
        self.times.remembered += 0 if memo is None else memo.found - found
        for slot in running:
            slot.scores = None

    def _send(self, group: Group, reward: RewardConfig) -> None:
        outputs = self._outputs(reward)
        group.awaiting = [slot for slot in group.slots if slot.scores is None and self._due(slot, reward)]
        if self.memo is not None and group.awaiting:
            self._remember(group, self.memo, outputs)
        if not group.awaiting:
            return
        prompts = [slot.episode.request.prompt for slot in group.awaiting]
        with shared_seconds(group.awaiting):
            images = self.engine.preview([slot.episode for slot in group.awaiting])
            group.pending = self.client.submit(images, prompts, outputs)
        self.times.previews += len(prompts)

    def _remember(self, group: Group, memo: Memo[Scored], outputs: Sequence[str]) -> None:
        """Enter the scores that are known; the others are awaited."""
        keys = score_keys([slot.episode for slot in group.awaiting], outputs)
        due, group.awaiting, group.awaited = group.awaiting, [], []
        for slot, key, known in zip(due, keys, memo.recall(keys), strict=True):
            if known is not None:
                slot.enter(known.scores)
            else:
                group.awaiting.append(slot)
                group.awaited.append(key)

    def _outputs(self, reward: RewardConfig) -> tuple[str, ...]:
        """What the reward and the observation are made of."""
        return tuple(sorted({*required_outputs(reward), *self.observer.look_outputs}))

    def _due(self, slot: Slot, reward: RewardConfig) -> bool:
        if slot.episode.state in ("looking", "finished"):
            return True
        if slot.episode.state != "deciding":
            return False
        first = not slot.trajectory.actions
        return first or self.observer.scores_every_decision or slot.unscored_decisions >= reward.score_every


def attention_entropy(attention_HW: torch.Tensor | None) -> float:
    """Entropy of an attention map over the positions, 1 where it is the same everywhere.

    0 without a map: no refinement, or one whose region does not go by attention.
    """
    if attention_HW is None:
        return 0.0
    shares_N = attention_HW.float().flatten() / attention_HW.float().sum().clamp_min(1e-12)
    return float(torch.special.entr(shares_N).sum() / np.log(len(shares_N)))


def _log_softmax(logits_BA: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits_BA.astype(np.float64) - logits_BA.max(axis=1, keepdims=True)
    log_probs_BA: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probs_BA


def _draw(log_probs: NDArray[np.float64], generator: np.random.Generator) -> int:
    """Inverse of the cumulative distribution at one uniform number: the same whatever the batch."""
    cumulative = np.cumsum(np.exp(log_probs))
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
