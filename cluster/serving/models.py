"""What is served: where its versions come from, and a version opened for painting.

Always true here: a version is looked up without loading it, and opened beside the one that paints; versions
of one backbone share its weights; a name that leads nowhere is a UserError.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.policy import load_policy
from actors.policy_folder import CALIBRATION
from actors.serving_loop import PaintingModel
from cluster.runs import find_policy, registered_settings, run_policy, settings_of
from cluster.serving.events import ModelCard, Refused

if TYPE_CHECKING:
    from actors.contracts import Decider
    from evaluation.bench import Bench, BenchRecipe
    from tune_configs.loading import Settings


@dataclass(frozen=True)
class ModelSource:
    """The name that a user gave, and where it is looked up. Raises UserError where it leads nowhere."""

    name: str
    runs_dir: Path
    tracking_uri: str | None = None
    device: str | None = None

    @property
    def public_name(self) -> str:
        """What clients call it: without folders of this machine."""
        return Path(self.name).name if self._is_folder() else self.name

    @property
    def moves(self) -> bool:
        """Whether the name may lead to another version later, as an alias does."""
        return "@" in self.name and not self._is_folder()

    def version(self) -> str:
        """Which version the name leads to now."""
        if self._is_folder() or ("@" not in self.name and "/" not in self.name):
            from learner.registry import weights_digest

            return weights_digest(find_policy(self.name, self.runs_dir))[:12]
        from learner.champions import Champions

        return Champions(self._uri()).find(self.name).version

    def folder(self, version: str) -> Path:
        """The policy's files of a version."""
        if self._is_folder():
            return find_policy(self.name, self.runs_dir)
        from learner import registry

        return registry.policy_folder(self._label(version), uri=self._uri())

    def settings(self, version: str) -> Settings:
        """What a version was trained with: device, weights' type and reward models are among it."""
        if self._is_folder():
            return settings_of(self.folder(version))
        return registered_settings(self._label(version), self._uri())

    def _label(self, version: str) -> str:
        """A version of the registered model, whether an alias or a version was given."""
        return f"{self.name.partition('@')[0].partition('/')[0]}/{version}"

    def _is_folder(self) -> bool:
        return run_policy(self.name, self.runs_dir) is not None

    def _uri(self) -> str:
        from learner import registry

        return self.tracking_uri or registry.tracking_uri(self.runs_dir)


@dataclass(eq=False)
class OpenedModel:
    """A version that paints; `careful` is its policy without early stops."""

    card: ModelCard
    painting: PaintingModel
    decider: Decider
    careful: Decider
    recipe: BenchRecipe
    bench: Bench

    def decider_for(self, max_nfe: int | None, quality_floor: float | None) -> Decider | Refused:
        """The most economical way to decide that reaches the floor, or why there is none."""
        if quality_floor is None:
            return self.decider
        quality = self.card.quality
        if quality is None:
            return _unreachable(
                "quality_floor: the served policy was never calibrated; leave it out, or calibrate the policy"
                " (addiffusion registry calibrate)",
            )
        if max_nfe is not None and max_nfe < self.card.max_nfe:
            return _unreachable(
                f"quality_floor: calibrated for a budget of {self.card.max_nfe} NFE; leave out max_nfe"
            )
        if quality_floor <= quality["stopping_early"]:
            return self.decider
        if quality_floor <= quality["never_stopping_early"]:
            return self.careful
        return _unreachable(
            f"quality_floor: the served policy reaches {quality['never_stopping_early']:.4f}"
            f" ({quality['score']}), even where it never stops early"
        )


def open_model(source: ModelSource, version: str, beside: OpenedModel | None = None) -> OpenedModel:
    """Load a version; with the weights of the one beside it, where it has the same backbone and scorers."""
    from evaluation.bench import bench_recipe
    from evaluation.methods import PolicyMethod, read_policy

    folder = source.folder(version)
    policy = read_policy(folder, greedy=True, seed=0)
    config = source.settings(version).evaluation
    if source.device is not None:
        config = replace(config, device=source.device)
    recipe = bench_recipe(policy.trained.backbone, config)
    shared = beside if beside is not None and beside.recipe == recipe else None
    bench = shared.bench if shared is not None else recipe()
    opened = policy.open(bench)
    never = PolicyMethod(replace(policy.trained, stop_threshold=1.0), greedy=True, seed=0).open(bench)
    engine = opened.engine
    return OpenedModel(
        card=ModelCard(
            name=source.public_name,
            version=version,
            size=shared.card.size if shared is not None else _image_size(bench),
            max_nfe=engine.config.max_nfe,
            num_steps=engine.config.num_steps,
            actions=engine.action_names,
            quality=reached_quality(load_policy(folder)[1]),
        ),
        painting=PaintingModel(engine, opened.observer, opened.scorer),
        decider=opened.decider,
        careful=never.decider,
        recipe=recipe,
        bench=bench,
    )


def reached_quality(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """What a calibrated policy's certificate says of the mean quality that it reaches.

    Stopping early it is, with the certificate's confidence, at most delta below never doing so.
    """
    certificate = metadata.get(CALIBRATION)
    if not isinstance(certificate, dict):
        return None
    try:
        best = float(certificate["quality_never_stopping"])
        return {
            "score": str(certificate["score"]),
            "stopping_early": best - float(certificate["delta"]),
            "never_stopping_early": best,
            "confidence": float(certificate["confidence"]),
        }
    except (KeyError, TypeError, ValueError):
        return None


def check_source(source: ModelSource) -> str:
    """The version that will be served; UserError if there is none, or its files or settings are damaged."""
    version = source.version()
    load_policy(source.folder(version))
    source.settings(version)
    return version


def _image_size(bench: Bench) -> str:
    import torch

    backbone = bench.backbone
    height, width = backbone.decode(torch.zeros(1, *backbone.latent_shape, device=backbone.device)).shape[1:3]
    return f"{width}x{height}"


def _unreachable(message: str) -> Refused:
    return Refused(422, message, param="quality_floor", code="quality_floor_unreachable")
