"""What a process keeps between training runs: a frozen backbone, and what it was asked before.

A sweep's trials run one after another in the same processes. Loading the backbone and filling the memos is
most of what a short training costs, and neither depends on what the trials vary.

Always true here: everything belongs to one backbone as it was loaded and one set of reward models; whoever
changes either makes a new `Kept`. What is kept never travels: in another process a copy begins empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.contracts import Backbone
from actors.memo import Call, Memo, Scored


class Kept:
    """A backbone that is loaded once, and two memos: `mib` for denoiser calls, a quarter of it for scores.

    Engines of any configuration may share them: a call is found by all that the network is asked and by the
    solver (`memo.call_keys`), a score by the image, its prompt and the outputs (`memo.score_keys`).
    """

    def __init__(self, make_backbone: Callable[[], Backbone], mib: float) -> None:
        self.calls: Memo[Call] | None = Memo(mib) if mib else None
        self.scores: Memo[Scored] | None = Memo(mib / 4) if mib else None
        self._make_backbone = make_backbone
        self._mib = mib
        self._backbone: Backbone | None = None

    def backbone(self) -> Backbone:
        """The backbone, loaded when it is first asked for."""
        if self._backbone is None:
            self._backbone = self._make_backbone()
        return self._backbone

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        """RLlib copies its configuration, and with it this, within the process."""
        return self

    def __reduce__(self) -> tuple[type[Kept], tuple[Callable[[], Backbone], float]]:
        return Kept, (self._make_backbone, self._mib)
