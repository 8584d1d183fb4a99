"""A policy as a plain folder: safetensors, JSON and a short README.

Always true here: the folder appears under its name when it is whole, or not at all; what is there already is
never touched. Loading it takes torch and this project's engine, neither MLflow nor Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.errors import UserError
from actors.policy import METADATA_FILE, WEIGHTS_FILE
from actors.policy_folder import REGION_HEAD_FILE, read_trained_policy

ABOUT_FILE = "registered.json"
_README = """# {title}

A trained AdDiffusion policy for the backbone `{backbone}`.

```python
from diffusers import DiffusionPipeline
from actors.sampler import AdaptiveSampler{scorer_import}

pipeline = DiffusionPipeline.from_pretrained("{pipeline}")
sampler = AdaptiveSampler.from_pretrained("{folder}"{scorer})
image = sampler(pipeline, "a prompt", seeds=0).images[0]
```

| file | |
|---|---|
| `{weights}` | the network, and in its header everything else about it: this file alone is the policy |
| `{metadata}` | that header, for people |
{head}| `{about}` | what the registry said of it when it was exported |

{notes}"""
_LOOKS = """It looks at previews: give `AdaptiveSampler` the `scorer` of its training ({outputs}).
"""
_CALIBRATED = """It stops early where `stop` is more probable than {threshold:g}. Calibrated on {prompts}
prompts: on others like those that costs at most {delta:g} of quality in the mean, with {confidence:.0%}
confidence.
"""


def export_policy(policy_dir: Path, folder: Path, about: Mapping[str, Any]) -> None:
    """Copy a policy and what is known about it. Raises UserError if `folder` is there or cannot be made."""
    if folder.exists() or folder.is_symlink():
        raise UserError(f"FOLDER={folder}: is there already; give one that is not")
    if not folder.absolute().parent.is_dir() or not os.access(folder.absolute().parent, os.W_OK):
        raise UserError(f"FOLDER={folder}: give a folder in one that exists and can be written to")
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        for name in (WEIGHTS_FILE, METADATA_FILE, REGION_HEAD_FILE):
            if (policy_dir / name).is_file():
                shutil.copyfile(policy_dir / name, aside / name)
        (aside / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(_readme(aside, folder, about), encoding="utf-8")
        aside.chmod(0o755)
        os.rename(aside, folder)
    except OSError as error:
        raise UserError(f"FOLDER={folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _readme(policy_dir: Path, folder: Path, about: Mapping[str, Any]) -> str:
    trained = read_trained_policy(policy_dir)
    looks = "look" in trained.engine.actions or trained.observation.policy == "seed"
    shapes = trained.backbone.name == "shapes"
    notes = _LOOKS.format(outputs=", ".join(trained.observation.look_scores)) if looks else ""
    if trained.stop_threshold is not None:
        metadata = json.loads((policy_dir / METADATA_FILE).read_text(encoding="utf-8"))["metadata"]
        notes += _CALIBRATED.format(threshold=trained.stop_threshold, **_promise(metadata["calibration"]))
    head = f"| `{REGION_HEAD_FILE}` | where a refinement denoises again |\n"
    return _README.format(
        title=f"{about.get('model', 'policy')}, version {about.get('version', '?')}",
        backbone=trained.backbone_identity,
        pipeline="shapes/models/pipeline" if shapes else trained.backbone.name,
        folder=folder,
        scorer_import=", shapes_scorer" if looks and shapes else "",
        scorer=", scorer=shapes_scorer()" if looks and shapes else ", scorer=..." if looks else "",
        weights=WEIGHTS_FILE,
        metadata=METADATA_FILE,
        head=head if (policy_dir / REGION_HEAD_FILE).is_file() else "",
        about=ABOUT_FILE,
        notes=notes,
    )


def _promise(calibration: Mapping[str, Any]) -> dict[str, Any]:
    return {name: calibration[name] for name in ("delta", "confidence", "prompts")}
