"""What was computed before: a frozen, deterministic model gives the same answer to the same question.

Training asks the same questions again and again: a request comes back every pass, its first steps are the
same whatever is decided later, and so is its second try after a restart. Denoiser calls and scores are kept
here and found by everything that they depend on.

Always true here: an entry is found by the prompt and the bits of the latents, never by a position or a
history that could go stale; memory is bounded, what was used longest ago goes first; nobody changes an
entry. Costs are counted as if everything had been computed: an NFE is what the image costs a user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import cachetools
import numpy as np
import torch
from numpy.typing import NDArray

from actors.contracts import ScoreRow
from actors.episode import Episode

_MIB = 2**20


class _Sized(Protocol):
    @property
    def nbytes(self) -> int:
        """Bytes that keeping it takes."""
        ...


Entry = TypeVar("Entry", bound=_Sized)


class Memo(Generic[Entry]):
    """Entries by key, at most `mib` mebibytes of them. `asked` and `found` count what was looked up."""

    def __init__(self, mib: float) -> None:
        self.asked = self.found = 0
        self._entries: cachetools.LRUCache[Hashable, Entry] = cachetools.LRUCache(
            mib * _MIB, getsizeof=lambda entry: entry.nbytes
        )

    @property
    def nbytes(self) -> float:
        """Bytes of all entries."""
        return float(self._entries.currsize)

    @property
    def bytes_to_come(self) -> float:
        """By how much it may still grow."""
        return float(self._entries.maxsize) - self.nbytes

    def recall(self, keys: Sequence[Hashable]) -> list[Entry | None]:
        """The entry of each key, None where there is none."""
        entries = [self._entries.get(key) for key in keys]
        self.asked += len(entries)
        self.found += sum(entry is not None for entry in entries)
        return entries

    def keep(self, keys: Sequence[Hashable], entries: Sequence[Entry]) -> None:
        """Remember them, as far as they fit."""
        for key, entry in zip(keys, entries, strict=True):
            if entry.nbytes <= self._entries.maxsize:
                self._entries[key] = entry


@dataclass(frozen=True, slots=True)
class Call:
    """What one denoiser call gave one episode, as the engine uses it; features on the CPU.

    null_clean_CHW is None where the guidance rule does not need it, attention_HW where it was not recorded.
    """

    clean_CHW: torch.Tensor
    null_clean_CHW: torch.Tensor | None
    features_F: torch.Tensor
    attention_HW: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        tensors = (self.clean_CHW, self.null_clean_CHW, self.features_F, self.attention_HW)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def detached(self) -> Call:
        """A copy that does not hold on to the batch it came from."""
        null_clean_CHW, attention_HW = self.null_clean_CHW, self.attention_HW
        return Call(
            self.clean_CHW.clone(),
            None if null_clean_CHW is None else null_clean_CHW.clone(),
            self.features_F.clone(),
            None if attention_HW is None else attention_HW.clone(),
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """What the scorers said of one preview."""

    scores: dict[str, NDArray[np.float32]]

    @classmethod
    def of(cls, row: ScoreRow) -> Scored:
        """A copy that does not hold on to the batch it came from."""
        return cls({name: np.array(values, np.float32) for name, values in row.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(values.nbytes for values in self.scores.values())


def call_keys(batch: Sequence[Episode], attention_B: Sequence[bool]) -> list[Hashable]:
    """By what the next denoiser call of each episode is found; `attention_B`: where attention is needed.

    The guidance rule says what the network is asked, the solver what is made of its answer.
    """
    latents_BCHW = torch.stack([episode.latents_CHW for episode in batch])
    return [
        (
            episode.request.prompt,
            episode.timestep,
            episode.guidance_scale,
            episode.config.guidance_rule,
            episode.config.solver,
            attention,
            digest,
        )
        for episode, attention, digest in zip(batch, attention_B, _digests(latents_BCHW), strict=True)
    ]


def score_keys(episodes: Sequence[Episode], outputs: Sequence[str]) -> list[Hashable]:
    """By what these scores of each episode's present clean prediction are found."""
    clean_BCHW = torch.stack([episode.clean_CHW for episode in episodes])
    return [
        (episode.request.prompt, tuple(outputs), digest)
        for episode, digest in zip(episodes, _digests(clean_BCHW), strict=True)
    ]


def _digests(tensors_BCHW: torch.Tensor) -> list[bytes]:
    """16 bytes a row, of all its bits; one transfer from the device."""
    rows = tensors_BCHW.float().cpu().contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
