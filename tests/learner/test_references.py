"""References that are shared between runs: what finds one again, what does not, and who writes when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from actors.contracts import EpisodeRequest
from actors.engine import EngineConfig
from actors.errors import UserError
from actors.references import DECISION_OPTIONS, Reference, ReferenceKind
from learner.references import ReferenceStore

KIND = ReferenceKind.of(EngineConfig(), "backbone@1", "float32", "scorers@1")


def reference(prompt: str, seed: int, **scores: float) -> Reference:
    return Reference(EpisodeRequest(prompt, seed), scores or {"clip_score": 0.1}, nfe=5)


def by_request(*references: Reference) -> dict[EpisodeRequest, Reference]:
    return {each.request: each for each in references}


#: Another value of every option, and what else it takes to be possible.
OTHERS: dict[str, dict[str, Any]] = {
    "solver": {"solver": "ddim"},
    "num_steps": {"num_steps": 9},
    "eta": {"eta": 0.5, "solver": "ddim"},
    "guidance_rule": {"guidance_rule": "none"},
    "guidance_scale": {"guidance_scale": 1.0},
    "warmup_steps": {"warmup_steps": 1},
    "stop_from": {"stop_from": 0.5},
    "actions": {"actions": ("continue", "stop")},
    "max_nfe": {"max_nfe": 11},
    "max_attempts": {"max_attempts": 2},
    "restart_needs_look": {"restart_needs_look": True},
    "refine_steps": {"refine_steps": 3},
    "refine_noise": {"refine_noise": 0.4},
    "refine_threshold": {"refine_threshold": 0.4},
    "refine_region": {"refine_region": "grid"},
    "refine_grid": {"refine_grid": 5},
    "refine_share": {"refine_share": 0.5},
    "refine_head": {"refine_head": "head.safetensors"},
    "look_price": {"look_price": 0.9},
    "max_decisions": {"max_decisions": 63},
    "timestep_spacing": {"timestep_spacing": "leading"},
    "timesteps": {"timesteps": tuple(range(950, 0, -100))},
    "flow_shift": {"flow_shift": 3.0},
}


@pytest.mark.parametrize("option", [field.name for field in fields(EngineConfig)])
def test_an_option_that_changes_the_image_is_part_of_the_key_and_no_other_is(option: str) -> None:
    """An option that is new is part of it until somebody says that it decides nothing."""
    changed = replace(EngineConfig(), **OTHERS[option])
    before = EngineConfig(solver="ddim") if option == "eta" else EngineConfig()
    keys = {ReferenceKind.of(engine, "b", "float32", "s").key for engine in (before, changed)}
    assert len(keys) == (1 if option in DECISION_OPTIONS else 2)


def test_another_backbone_type_or_scorer_is_another_kind() -> None:
    kinds = [
        KIND,
        replace(KIND, backbone="backbone@2"),
        replace(KIND, dtype="float16"),
        replace(KIND, scorers="scorers@2"),
    ]
    assert len({kind.key for kind in kinds}) == 4
    assert replace(KIND).key == KIND.key


def test_what_was_kept_is_found_by_the_next_run_and_by_no_other_kind(tmp_path: Path) -> None:
    first = ReferenceStore(tmp_path, KIND)
    assert first.read() == {}
    kept = [reference("a cat", 1, clip_score=0.1), reference('a "dog"', 2**31, clip_score=1 / 3)]
    first.add([replace(kept[0], request=EpisodeRequest("a cat", 1, tier="easy")), kept[1]])
    assert ReferenceStore(tmp_path, KIND).read() == by_request(*kept)
    assert ReferenceStore(tmp_path, replace(KIND, backbone="backbone@2")).read() == {}


def test_only_what_is_missing_is_run_and_in_the_order_asked_for(tmp_path: Path) -> None:
    asked: list[list[EpisodeRequest]] = []

    def compute(missing: list[EpisodeRequest]) -> Iterator[list[Reference]]:
        asked.append(missing)
        for request in missing:
            yield [Reference(request, {"clip_score": float(request.seed)}, nfe=5)]

    requests = [EpisodeRequest("a", seed, tier="easy") for seed in range(4)]
    ReferenceStore(tmp_path, KIND).complete(requests[1:3], ["clip_score"], compute)
    found = ReferenceStore(tmp_path, KIND).complete(requests, ["clip_score"], compute)
    assert asked == [requests[1:3], [requests[0], requests[3]]]
    assert [each.scores["clip_score"] for each in found] == [0.0, 1.0, 2.0, 3.0]
    ReferenceStore(tmp_path, KIND).complete(requests, ["clip_score"], compute)
    assert len(asked) == 2


def test_a_score_that_an_earlier_run_had_no_use_for_is_added(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, KIND)
    store.add([reference("a", 0, clip_score=0.1)])

    def compute(missing: list[EpisodeRequest]) -> list[list[Reference]]:
        return [[Reference(request, {"clip_score": 0.2, "aesthetic": 5.0}, nfe=5) for request in missing]]

    (found,) = store.complete([EpisodeRequest("a", 0)], ["clip_score", "aesthetic"], compute)
    assert found.scores == {"clip_score": 0.1, "aesthetic": 5.0}, "a score that was read once stays"


def test_an_interruption_costs_the_last_piece_only(tmp_path: Path) -> None:
    def compute(missing: list[EpisodeRequest]) -> Iterator[list[Reference]]:
        yield [reference("a", 0)]
        yield [reference("a", 1)]
        raise KeyboardInterrupt

    requests = [EpisodeRequest("a", seed) for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        ReferenceStore(tmp_path, KIND).complete(requests, ["clip_score"], compute)
    assert set(ReferenceStore(tmp_path, KIND).read()) == set(requests[:2])


def test_two_that_began_from_the_same_files_lose_nothing_to_each_other(tmp_path: Path) -> None:
    """The lost update: both have read, then both write."""
    one, other = ReferenceStore(tmp_path, KIND), ReferenceStore(tmp_path, KIND)
    for store in (one, other):
        assert store.read() == {}
    one.add([reference("a", 0), reference("a", 1)])
    other.add([reference("a", 1), reference("a", 2)])
    rows = by_request(*(reference("a", seed) for seed in range(3)))
    assert one.read() == other.read() == ReferenceStore(tmp_path, KIND).read() == rows


def test_many_writers_and_readers_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(writer: int) -> None:
        try:
            store = ReferenceStore(tmp_path, KIND)
            for seed in range(5):
                store.add([reference(f"writer {writer}", seed), reference("all", seed)])
                assert EpisodeRequest(f"writer {writer}", seed) in store.read()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(ReferenceStore(tmp_path, KIND).read()) == 6 * 5 + 5


def test_a_file_that_was_not_finished_is_not_read_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies within a write leaves a name that no reader looks for; an error leaves nothing."""
    store = ReferenceStore(tmp_path, KIND)
    store.add([reference("a", 0)])
    (store.folder / ".000001-dead.parquet.part").write_bytes(b"PAR1 and then nothing")
    assert set(ReferenceStore(tmp_path, KIND).read()) == {EpisodeRequest("a", 0)}
    before = sorted(store.folder.iterdir())

    def full_disk(table: object, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.add([reference("a", 1)])
    assert sorted(store.folder.iterdir()) == before


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, KIND)
    store.add([reference("a", 0)])
    (path,) = store.folder.iterdir()
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=rf"references=.*{path.name}: damaged, delete it"):
        ReferenceStore(tmp_path, KIND).read()


def test_what_is_not_finite_is_never_kept(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, KIND)
    with pytest.raises(ValueError, match="JSON compliant"):
        store.add([reference("a", 0, clip_score=float("nan"))])
    assert store.read() == {}
