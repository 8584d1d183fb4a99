"""What an evaluation measures: prompts, seeds, baselines, and how sure it has to be.

Always true here: plain data that can be compared, stored and printed; every value is checked when it is
made, so that a mistake is one clear line before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.backbones.config import DEVICES, Dtype, is_device
from actors.errors import UserError
from actors.prompts import EVALUATION_OPTIONS, Columns, Prompt, PromptOptions, load_prompts
from evaluation.baselines import DEFAULT_BASELINES, parse_baseline
from evaluation.metrics.config import MetricsConfig
from rewards_service.scorers_config import ScorersConfig

QUALITIES = {
    "strict": "strict score",
    "image_reward": "image reward",
    "clip_score": "CLIP score",
    "hps_v2": "HPS v2",
    "pick_score": "PickScore",
    "aesthetic": "aesthetic score",
}
"""What hypotheses can be decided by, as `evaluation.metrics.names` has it, and how tables call it."""


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """The options of `addiffusion evaluate`."""

    prompts: str = "shapes"
    """Where prompts come from: `shapes`, a file or a dataset, as `actors.prompts.load_prompts` takes it."""
    split: str = "test"
    column: str | None = None
    """Of a table: which column holds the prompts, where it is not called `prompt`."""
    tier_column: str | None = None
    """Of a table: which column holds the tiers, where it is not called `tier`."""
    prompts_per_tier: int = 50
    """At most so many of each tier; a file without tiers counts as one tier."""
    seeds: int = 3
    """Images a prompt."""
    seed: int = 0
    """Fixes the prompts drawn, every image's noise, and the resamples."""
    baselines: tuple[str, ...] = DEFAULT_BASELINES
    quality: str | None = None
    """What decides, one of QUALITIES; None: `strict` for the embedded world's prompts, or `image_reward`."""
    resamples: int = 10_000
    margin: float = 0.01
    """How much worse than DDIM-50 (Euler-50 for flow models) still counts as not worse (H1), in its units."""
    nfe_limit: float = 30.0
    """The mean NFE within which H1 has to hold."""
    slots: int = 16
    """Images that share one denoiser call; the batch size at which seconds are measured."""
    workers: int = 2
    """Processes with one thread each: 1 runs in this process, more are actors on Ray."""
    address: str | None = None
    """Of a Ray cluster that runs already, where there is more than one worker; else one is started here."""
    worker_gpus: float = 1.0
    """What Ray reserves for each worker, where device is a GPU."""
    greedy: bool = True
    """True: the policy's most likely action; False: an action drawn from its distribution."""
    device: str = "cpu"
    dtype: Dtype = "float32"
    """Of the backbone's weights."""
    scorers: ScorersConfig | str | None = None
    """The reward models, as `backbone.scorers` names them."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Of `addiffusion metrics`."""
    strips: int = 6
    """Images whose decisions the report shows, and as many failures."""
    traced: int = 40
    """Images of the policy whose quality is followed from decision to decision."""

    def __post_init__(self) -> None:
        for name, least in (
            ("prompts_per_tier", 1),
            ("seeds", 1),
            ("seed", 0),
            ("resamples", 100),
            ("slots", 1),
            ("workers", 1),
            ("strips", 0),
            ("traced", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"evaluation.{name}={value}: must be an integer of at least {least}")
        for name in ("margin", "nfe_limit", "worker_gpus"):
            if not getattr(self, name) >= 0:
                raise UserError(f"evaluation.{name}={getattr(self, name)}: must be a number of at least 0")
        if not is_device(self.device):
            raise UserError(f"evaluation.device={self.device}: give {DEVICES}")
        if self.quality not in (None, *QUALITIES):
            raise UserError(f"evaluation.quality={self.quality}: give null or one of {', '.join(QUALITIES)}")
        if self.quality == "strict" and self.prompts != "shapes":
            raise UserError(
                "evaluation.quality=strict: judges prompts of the embedded world (evaluation.prompts=shapes),"
                f" not {self.prompts}"
            )
        if not self.baselines:
            raise UserError("evaluation.baselines is empty: name at least one, for instance dpmpp-10")
        for name in self.baselines:
            parse_baseline(name)
        if len(set(self.baselines)) < len(self.baselines):
            raise UserError(f"evaluation.baselines={','.join(self.baselines)}: one is named twice")

    @property
    def decided_by(self) -> str:
        """The one of QUALITIES that decides."""
        return self.quality or ("strict" if self.prompts == "shapes" else "image_reward")

    def load_prompts(
        self, limit: int | None = None, options: PromptOptions = EVALUATION_OPTIONS
    ) -> list[Prompt]:
        """The prompts that these options mean. Raises UserError, in the words of `options`."""
        columns = Columns(self.column, self.tier_column)
        return load_prompts(self.prompts, self.split, limit, self.seed, options, columns, exhaust=True)
