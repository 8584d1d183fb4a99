"""The micro-batcher: what it merges, what it keeps apart, and whom a failure reaches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import numpy as np
import pytest

from rewards_service.batcher import MicroBatcher
from rewards_service.contracts import Scores
from rewards_service.scoring import ScoringError, score_batch
from tests.rewards_service.fakes import Gated, fake_scorers, flat_images


def run(scorer: Gated, body: Callable[[MicroBatcher], Awaitable[None]], max_images: int = 64) -> MicroBatcher:
    """Runs `body` beside a batcher over `scorer`."""

    async def main() -> MicroBatcher:
        batcher = MicroBatcher(partial(score_batch, [scorer]), max_images=max_images)
        try:
            await body(batcher)
        finally:
            scorer.gate.set()
            batcher.close()
        return batcher

    return asyncio.run(asyncio.wait_for(main(), timeout=30))


async def queued(batcher: MicroBatcher, calls: Sequence[Sequence[int]]) -> list[asyncio.Task[Scores]]:
    """Starts calls of flat images: the first alone, and the others once it keeps the scorer busy."""
    tasks = []
    for group in (calls[:1], calls[1:]):
        for levels in group:
            prompts = [str(level) for level in levels]
            tasks.append(asyncio.create_task(batcher.score(flat_images(levels), prompts)))
        for _ in range(20):
            await asyncio.sleep(0)
    return tasks


def test_queued_calls_share_a_batch_and_each_gets_its_own_rows() -> None:
    scorer = Gated()

    async def body(batcher: MicroBatcher) -> None:
        tasks = await queued(batcher, [[1], [2, 3], [40, 50, 60], [7]])
        scorer.gate.set()
        rows = [scores["brightness"].tolist() for scores in await asyncio.gather(*tasks)]
        assert rows == [[1], [2, 3], [40, 50, 60], [7]]

    batcher = run(scorer, body)
    # The first call found the scorer free and did not wait; the others came while it worked.
    assert scorer.sizes == [1, 6]
    assert (batcher.stats.calls, batcher.stats.images, batcher.stats.batches) == (4, 7, 2)


def test_a_lone_call_is_scored_at_once() -> None:
    scorer = Gated()
    scorer.gate.set()

    async def body(batcher: MicroBatcher) -> None:
        for level in range(3):
            scores = await batcher.score(flat_images([level]), ["a"])
            assert scores["brightness"].tolist() == [level]

    run(scorer, body)
    assert scorer.sizes == [1, 1, 1]


@pytest.mark.parametrize("max_images", [1, 4, 5, 64])
def test_size_is_counted_in_images(max_images: int) -> None:
    scorer = Gated()
    calls = [[0], *([i, i] for i in range(1, 9)), [9] * 7]

    async def body(batcher: MicroBatcher) -> None:
        tasks = await queued(batcher, calls)
        scorer.gate.set()
        for levels, scores in zip(calls, await asyncio.gather(*tasks), strict=True):
            assert scores["brightness"].tolist() == levels

    run(scorer, body, max_images=max_images)
    assert sum(scorer.sizes) == sum(len(levels) for levels in calls)
    # Only a call that is larger by itself may exceed the limit.
    assert {size for size in scorer.sizes if size > max_images} <= {len(levels) for levels in calls}
    if max_images == 5:
        assert scorer.sizes == [1, 4, 4, 4, 4, 7]


def test_calls_that_cannot_share_a_batch_do_not() -> None:
    scorer = Gated()

    async def body(batcher: MicroBatcher) -> None:
        tasks = await queued(batcher, [[0], [1], [2]])
        large = asyncio.create_task(batcher.score(flat_images([3], side=8), ["large"]))
        partial_ = asyncio.create_task(batcher.score(flat_images([4]), ["length only"], ["length"]))
        await asyncio.sleep(0)
        tasks += await queued(batcher, [[5]])
        scorer.gate.set()
        rows = [scores["brightness"].tolist() for scores in await asyncio.gather(*tasks, large)]
        assert rows == [[0], [1], [2], [5], [3]]
        assert {name: rows.tolist() for name, rows in (await partial_).items()} == {"length": [11]}

    run(scorer, body)
    assert scorer.sizes == [1, 3, 1, 1]


def test_a_poisoned_call_fails_alone() -> None:
    scorer = Gated()

    async def body(batcher: MicroBatcher) -> None:
        tasks = await queued(batcher, [[0], [1, 2], [3]])
        poisoned = asyncio.create_task(batcher.score(flat_images([9, 9]), ["fine", "poison"]))
        tasks += await queued(batcher, [[4]])
        scorer.gate.set()
        rows = [scores["brightness"].tolist() for scores in await asyncio.gather(*tasks)]
        assert rows == [[0], [1, 2], [3], [4]]
        with pytest.raises(ScoringError, match="from 'fine': RuntimeError: cannot swallow this"):
            await poisoned
        after = await batcher.score(flat_images([5]), ["still serving"])
        assert after["brightness"].tolist() == [5]

    assert run(scorer, body).stats.rerun_alone == 4


def test_a_nan_reaches_only_the_call_that_asked_for_it() -> None:
    async def main() -> None:
        batcher = MicroBatcher(partial(score_batch, fake_scorers(work=20)))
        calls = [batcher.score(flat_images([i]), ["nan" if i == 3 else "fine"]) for i in range(6)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        batcher.close()
        assert [i for i, answer in enumerate(answers) if isinstance(answer, ScoringError)] == [3]
        assert "the prompt 'nan'" in str(answers[3])

    asyncio.run(main())


def test_a_caller_that_gave_up_costs_nothing() -> None:
    scorer = Gated()

    async def body(batcher: MicroBatcher) -> None:
        first, gone, last = await queued(batcher, [[0], [1, 1, 1], [2]])
        gone.cancel()
        await asyncio.sleep(0)
        scorer.gate.set()
        assert (await first)["brightness"].tolist() == [0]
        assert (await last)["brightness"].tolist() == [2]

    run(scorer, body)
    assert scorer.sizes == [1, 1]


def test_limits_must_be_positive() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="max_images: 0; accepted: 1 or more"):
            MicroBatcher(lambda images, prompts, outputs: {"x": np.zeros(1, np.float32)}, max_images=0)

    asyncio.run(main())
