"""Running a set of scorers on one batch, and the checks that every answer passes wherever it was made.

Always true: what leaves `score_batch` has exactly the outputs that were asked for, one finite row an
image. A scorer that returns anything else is a `ScoringError` that names the scorer and the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rewards_service.contracts import Images, Scorer, Scores


class ScoringError(RuntimeError):
    """A scorer failed, or gave an answer that must not be used."""


def score_batch(
    scorers: Sequence[Scorer], images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None
) -> Scores:
    """Scores uint8 images [N, H, W, 3] against N prompts with those scorers that give a wanted output.

    Raises ValueError for a batch or an output name nobody can score, ScoringError for a bad answer.
    """
    check_batch(images, prompts)
    sources = output_sources(scorers)
    wanted = check_outputs(outputs, sources)
    scores: Scores = {}
    for scorer in scorers:
        if not any(sources[name] == scorer.name for name in wanted):
            continue
        try:
            answer = scorer.score(images, prompts)
        except ScoringError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ScoringError(
                f"scorer {scorer.name!r} failed on {len(prompts)} prompts from {prompts[0]!r}: {reason}"
            ) from error
        scores.update({name: answer[name] for name in scorer.outputs if name in wanted and name in answer})
    check_scores(scores, {name: sources[name] for name in wanted}, prompts)
    return {name: scores[name] for name in wanted}


def output_sources(scorers: Sequence[Scorer]) -> dict[str, str]:
    """Which scorer gives which output; two that give the same one are a mistake."""
    sources: dict[str, str] = {}
    for scorer in scorers:
        for name in scorer.outputs:
            if name in sources:
                raise ValueError(f"scorers {sources[name]!r} and {scorer.name!r} both give output {name!r}")
            sources[name] = scorer.name
    return sources


def check_outputs(outputs: Sequence[str] | None, sources: Mapping[str, str]) -> tuple[str, ...]:
    """The wanted outputs, all of them for None."""
    unknown = [name for name in outputs or () if name not in sources]
    if unknown:
        raise ValueError(f"outputs: {unknown[0]!r} is scored by nobody; accepted: {', '.join(sources)}")
    return tuple(sources) if outputs is None else tuple(outputs)


def check_batch(images: Images, prompts: Sequence[str]) -> None:
    """The user's side of the contract: N > 0 RGB images in uint8 and as many prompts."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images: {images.dtype}{list(images.shape)}; accepted: uint8 [N, H, W, 3]")
    if len(images) == 0 or len(images) != len(prompts):
        raise ValueError(
            f"{len(images)} images and {len(prompts)} prompts; accepted: equally many, at least 1"
        )


def check_scores(scores: Scores, sources: Mapping[str, str], prompts: Sequence[str]) -> None:
    """The scorers' side: every output of `sources` (output to scorer) present, N rows, finite."""
    for name, scorer in sources.items():
        rows = scores.get(name)
        if rows is None or rows.ndim not in (1, 2) or len(rows) != len(prompts):
            found = "nothing" if rows is None else f"an array of shape {list(rows.shape)}"
            raise ScoringError(
                f"scorer {scorer!r} gave {found} as {name!r} for {len(prompts)} prompts from {prompts[0]!r}"
            )
        finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
        if not finite.all():
            prompt = prompts[int(np.argmin(finite))]
            raise ScoringError(f"scorer {scorer!r} gave a non-finite {name!r} for the prompt {prompt!r}")
