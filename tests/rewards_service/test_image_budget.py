"""The bound on images held, by itself: never passed, first come first served, nothing kept for ever."""

from __future__ import annotations

import asyncio

import pytest

from rewards_service.image_budget import ImageBudget


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Holder:
    """A task that holds images until it is let go."""

    def __init__(self, budget: ImageBudget, images: int) -> None:
        self.inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._hold(budget, images))

    async def _hold(self, budget: ImageBudget, images: int) -> None:
        async with budget.room(images):
            self.inside = True
            await self.leave.wait()


def test_the_bound_holds_and_nobody_is_overtaken() -> None:
    async def main() -> None:
        budget = ImageBudget(7)
        holders = [Holder(budget, images) for images in (3, 4, 5, 1, 20, 2)]
        await turns()
        assert [each.inside for each in holders] == [True, True, False, False, False, False]
        holders[0].leave.set()
        await turns()  # 4 held: the 5 do not fit, and the 1 behind them waits too
        assert [each.inside for each in holders[2:]] == [False] * 4
        holders[1].leave.set()
        await turns()
        assert [each.inside for each in holders[2:]] == [True, True, False, False]
        for each in holders[2:4]:
            each.leave.set()
        await turns()  # more than the bound by itself: alone
        assert [each.inside for each in holders[4:]] == [True, False]
        assert budget.most_held == 20
        holders[4].leave.set()
        await turns()
        assert holders[5].inside
        holders[5].leave.set()
        await holders[5].task
        assert budget.held == 0

    asyncio.run(main())


def test_a_caller_that_gives_up_keeps_nothing() -> None:
    async def main() -> None:
        budget = ImageBudget(4)
        inside, waiting, behind = (Holder(budget, images) for images in (4, 3, 4))
        await turns()
        waiting.task.cancel()
        inside.task.cancel()
        await turns()
        assert behind.inside
        assert budget.held == 4
        behind.task.cancel()
        await turns()
        assert budget.held == 0

    asyncio.run(main())


def test_a_bound_is_at_least_one_image() -> None:
    with pytest.raises(ValueError, match="limit: 0; accepted: 1 or more"):
        ImageBudget(0)
