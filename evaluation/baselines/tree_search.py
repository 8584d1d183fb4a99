"""Greedy diffusion tree search, after Jain et al. 2025 (Diffusion Tree Sampling, arXiv 2506.20701): DTS*.

A tree of denoising trajectories grows: a node is a trajectory after some denoiser calls, its children are
what different noise makes of it (DDIM with eta = 1), and a leaf is a finished image with its score. Each
round goes down from the root to the child with the best upper confidence bound, where a node has too few
children for its visits (progressive widening) adds one, finishes it, and hands the score up; a node is
worth its best leaf. What is new in a round costs only the calls below the node that was widened, so that K
* N calls make more than K images.

Always true here: never more than `budget` calls an image; the first image is the stochastic sampler's own.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from actors.contracts import EpisodeRequest
from actors.engine import Engine, Episode
from evaluation.baselines.search import Denoise, Plan, Score, Scores, branch, derived_seed

WIDENING = (1.0, 0.5)
"""C and alpha: a node has at most C * visits^alpha children. Small enough that a budget of a few images
branches below the root too; with C = 2 and alpha = .8 it is best-of-K."""
EXPLORATION = 0.5
"""Weight of the confidence bound, in ranges of the scores seen so far."""
PATIENCE = 200
"""Rounds without anything to add, after which a search ends."""


@dataclass(eq=False)
class _Node:
    """depth: denoiser calls behind it; the root has none, and no episode."""

    episode: Episode | None
    depth: int
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    best: float = -math.inf
    """The highest score of any leaf below."""


@dataclass(frozen=True)
class TreeSearch:
    """budget: denoiser calls an image."""

    budget: int

    @property
    def width(self) -> int:
        """A tree grows by one trajectory at a time."""
        return 1

    def plan(self, engine: Engine, request: EpisodeRequest) -> Plan:
        """At most `budget` denoiser calls, and a score for every finished image."""
        num_steps = len(engine.schedule)
        root = _Node(None, 0)
        spent = images = futile = 0
        best: tuple[float, Episode] | None = None
        low, high = math.inf, -math.inf
        while spent < self.budget and futile < PATIENCE:
            path = _descend(root, num_steps, self.budget - spent, max(high - low, 0.0))
            node = path[-1]
            if node.depth == num_steps or num_steps - node.depth > self.budget - spent:
                futile += 1
                _hand_up(path, node.best)
                continue
            futile = 0
            spent += num_steps - node.depth
            grown = yield from _finish(engine, request, node, num_steps, images)
            leaf = grown[-1].episode
            assert leaf is not None
            (score,) = yield Score([leaf])
            images += 1
            low, high = min(low, score), max(high, score)
            _hand_up([*path, *grown], float(score))
            if best is None or score > best[0]:
                best = float(score), leaf
        assert best is not None, "the budget did not allow one image"
        return best[1]


def _descend(root: _Node, num_steps: int, budget: int, score_range: float) -> list[_Node]:
    """From the root to the node that is to be widened, or to a leaf."""
    path = [root]
    while (node := path[-1]).depth < num_steps:
        affordable = num_steps - node.depth <= budget
        most = WIDENING[0] * max(node.visits, 1) ** WIDENING[1]
        if not node.children or (affordable and len(node.children) < most):
            break
        path.append(max(node.children, key=lambda child: _bound(child, node, score_range)))
    return path


def _bound(child: _Node, parent: _Node, score_range: float) -> float:
    """The child's value, and how much better it could be (UCT: Kocsis and Szepesvári 2006)."""
    doubt = math.sqrt(math.log(max(parent.visits, 1)) / max(child.visits, 1))
    return child.best + EXPLORATION * score_range * doubt


def _finish(
    engine: Engine, request: EpisodeRequest, node: _Node, num_steps: int, number: int
) -> Generator[Denoise | Score, Scores, list[_Node]]:
    """A new child of the node, and its trajectory to the end; every point of it becomes a node."""
    grown: list[_Node] = []
    parent = node
    while parent.depth < num_steps:
        seed = derived_seed(request.seed, "branch", number) if parent is node and number else None
        if parent.episode is None:
            (episode,) = engine.begin([replace(request, seed=request.seed if seed is None else seed)])
        else:
            episode = branch(engine, parent.episode, seed)
        yield Denoise([episode])
        child = _Node(episode, parent.depth + 1)
        parent.children.append(child)
        grown.append(child)
        parent = child
    return grown


def _hand_up(path: list[_Node], score: float) -> None:
    for node in path:
        node.visits += 1
        node.best = max(node.best, score)
