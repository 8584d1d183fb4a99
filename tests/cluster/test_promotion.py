"""Rows that a version keeps: of one prompt set and one bench, and never given out for another."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.contracts import EpisodeRequest, Images
from actors.policy_folder import read_trained_policy
from cluster.promotion import _Measuring
from evaluation.config import EvaluationConfig
from learner.champions import Champions, Version
from tests.evaluation.fakes import judge, open_fake_bench, saved_policy

CONFIG = EvaluationConfig(prompts="few.txt", workers=1, slots=4)
ONE, OTHER = ([EpisodeRequest(f"{name} {index}", index) for index in range(2)] for name in "ab")


class Kept:
    """A registry's files and tags of one version, in a folder."""

    def __init__(self, folder: Path, version: Version) -> None:
        self.folder, self.version = folder, version
        folder.mkdir()

    def attached(self, version: Version, path: str) -> Path | None:
        found = self.folder / Path(path).name
        return found if found.exists() else None

    def attach(self, version: Version, file: Path, folder: str) -> None:
        shutil.copy(file, self.folder)

    def tag(self, version: Version, tags: dict[str, Any]) -> None:
        self.version.tags.update({key: str(value) for key, value in tags.items()})


@pytest.mark.parametrize("named", [True, False])
def test_rows_of_an_earlier_bench_are_not_taken_for_those_of_the_last(tmp_path: Path, named: bool) -> None:
    """Prompts one on an old bench, prompts other on a new one: the first have to be measured anew."""
    policy_dir = saved_policy(tmp_path / "policy")
    version = Version("policy", "1", (), "now", "run", {})
    kept = Kept(tmp_path / "kept", version)

    def measuring(requests: list[EpisodeRequest], identity: str, red: float) -> _Measuring:
        trained = read_trained_policy(policy_dir)
        made = _Measuring(cast("Champions", kept), CONFIG, requests, trained, False, lambda *_: None)
        bench = open_fake_bench()

        def brighter(images: Images, prompts: Sequence[str]) -> NDArray[np.float32]:
            return (judge(images, prompts) + red).astype(np.float32)

        made.open_bench = lambda: replace(bench, identity=identity, judge=brighter)
        return made

    old = measuring(ONE, "oldbench", 0.0).rows(version, policy_dir, None)
    measuring(OTHER, "newbench", 5.0).rows(version, policy_dir, None)
    again = measuring(ONE, "newbench", 5.0)
    rows = again.rows(version, policy_dir, "newbench" if named else None)
    assert again.used == "newbench"
    assert [row.quality for row in rows] == pytest.approx([row.quality + 5 for row in old])
    third = measuring(ONE, "oldbench", 9.0)
    assert third.rows(version, policy_dir, "oldbench") == old, "kept, and found where they are asked for"
