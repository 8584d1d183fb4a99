"""Traces: the same decisions again, with the metric of each preview and the masks that were used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import EngineConfig
from actors.errors import UserError
from evaluation.baselines.names import parse_baseline
from evaluation.baselines.opening import rule
from evaluation.generate import Job, generate
from evaluation.methods import read_policy
from evaluation.traces import _MaskRecorder, read_traces, trace, write_traces
from tests.evaluation.fakes import ENGINE, judge, open_fake_bench, saved_policy

REQUESTS = tuple(EpisodeRequest(f"prompt {index}", 100 + index, "1") for index in range(5))


def test_a_trace_follows_the_evaluations_own_decisions(tmp_path: Path) -> None:
    bench = open_fake_bench()
    policy = read_policy(saved_policy(tmp_path / "policy"), greedy=True, seed=0)
    rows = generate(bench, Job(policy, REQUESTS, 3)).rows
    traced = trace(bench, policy, rows, slots=3)
    for row, one, again, episode in zip(
        rows, traced.traces, traced.made.rows, traced.made.episodes, strict=True
    ):
        assert one.actions == row.actions == again.actions
        assert one.nfe[-1] == row.nfe
        assert one.quality[-1] == pytest.approx(row.quality)
        assert len(one.nfe) == len(one.quality) == len(one.actions) + 1
        assert list(one.nfe) == sorted(one.nfe)
        expected = judge(np.stack(episode.preview_images), [row.prompt] * len(row.actions))
        np.testing.assert_allclose(one.quality[:-1], expected, atol=1e-6)
    write_traces(tmp_path / "traces.parquet", traced.traces)
    assert read_traces(tmp_path / "traces.parquet") == list(traced.traces)


def test_no_file_is_no_traces_and_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    assert read_traces(tmp_path / "nowhere.parquet") == []
    (tmp_path / "torn.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"torn\.parquet"):
        read_traces(tmp_path / "torn.parquet")


@pytest.mark.parametrize("region", ["random", "grid", "change"])
def test_recording_a_mask_changes_no_image(region: str) -> None:
    """The mask is that of the refinement itself, also where the region draws from the episode's noise."""
    bench = open_fake_bench()
    policy_engine: EngineConfig = replace(ENGINE, refine_region=region)  # type: ignore[arg-type]
    baseline = parse_baseline("refine@6")

    def run(recorded: bool) -> tuple[list[EpisodeResult], dict[tuple[EpisodeRequest, int], np.ndarray]]:
        opened = rule(baseline, baseline.engine_config(policy_engine), bench)
        masks: dict[tuple[EpisodeRequest, int], np.ndarray] = {}
        if recorded:
            opened = replace(opened, decider=_MaskRecorder(opened.decider, opened.engine, masks))
        return opened.run(REQUESTS, slots=3), masks

    (plain, _), (recorded, masks) = run(False), run(True)
    for one, other in zip(plain, recorded, strict=True):
        torch.testing.assert_close(one.latents_CHW, other.latents_CHW, rtol=0, atol=0)
    assert {request for request, _ in masks} == set(REQUESTS)
    for (request, index), mask in masks.items():
        (episode,) = [one for one in recorded if one.request == request]
        assert episode.decisions[index].action == "refine"
        assert mask.shape == (8, 8)
        assert mask.dtype == np.uint8
