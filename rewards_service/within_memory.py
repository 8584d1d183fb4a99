"""A scorer that survives running out of memory: it scores fewer images at a time.

Always true: every row belongs to its own image, in whatever pieces a batch was scored; memory that is too
small for a single image is an error that says so. A size that did not fit is not tried again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import numpy as np

from rewards_service.contracts import Images, Scorer, Scores
from rewards_service.scoring import ScoringError

logger = logging.getLogger(__name__)


class WithinMemory:
    """A `Scorer` around another one.

    It shows that one at most `batch_size` images a call, half as many after each torch.OutOfMemoryError or
    MemoryError.
    """

    def __init__(self, scorer: Scorer, batch_size: int = sys.maxsize) -> None:
        self.name = scorer.name
        self.outputs = scorer.outputs
        self.batch_size = batch_size
        self._scorer = scorer

    def score(self, images: Images, prompts: Sequence[str]) -> Scores:
        """The scorer's outputs. Raises MemoryError if one image alone does not fit."""
        pieces: list[Scores] = []
        sizes: list[int] = []
        start = 0
        while start < len(prompts):
            stop = start + self.batch_size
            piece = self._fitting(images[start:stop], prompts[start:stop])
            if piece is not None:
                pieces.append(piece)
                sizes.append(len(prompts[start:stop]))
                start = stop
        return pieces[0] if len(pieces) == 1 else self._joined(pieces, sizes, prompts)

    def _fitting(self, images: Images, prompts: Sequence[str]) -> Scores | None:
        """The scores, or None when they did not fit and `batch_size` is smaller now."""
        try:
            return self._scorer.score(images, prompts)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block: the traceback's frames hold on to the tensors that did not fit.
        _empty_cache()
        if len(prompts) == 1:
            height, width = images.shape[1:3]
            raise MemoryError(
                f"no memory for a single image of {height} x {width}; give its pool more of a GPU "
                "(rewards.pools.NAME.gpus) or let previews be smaller"
            )
        self.batch_size = -(-len(prompts) // 2)
        logger.warning("scorer %r: out of memory; now %d images at a time", self.name, self.batch_size)
        return None

    def _joined(self, pieces: Sequence[Scores], sizes: Sequence[int], prompts: Sequence[str]) -> Scores:
        """Pieces in order. One of the wrong length is refused here: rows behind it would be others'."""
        for name in self.outputs:
            found = [len(piece.get(name, ())) for piece in pieces]
            if found != sizes:
                raise ScoringError(
                    f"scorer {self.name!r} gave {found} rows of {name!r} for pieces of {sizes} images, "
                    f"prompts from {prompts[0]!r}"
                )
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self.outputs}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time could help."""
    torch = sys.modules.get("torch")  # a scorer without torch does not wait for its import
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def _empty_cache() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
