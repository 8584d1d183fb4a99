"""Versions of a registered model, and which of them is the champion.

Always true here: the alias `champion` is what counts, and moves in one step of the registry. What was
champion before is kept as a list with the model, newest last, written after the alias has moved; a process
that dies in between loses an entry of that list, never the way back. No Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import yaml
from mlflow.tracking import MlflowClient

from actors.errors import UserError
from learner.registry import CANDIDATE, PREFIX, REFUSALS, WEIGHTS_TAG, check_there, impatient, quiet

CHAMPION = "champion"
HISTORY_TAG = "champions"
_KEPT = 200
"""Entries of a model's history; tags have a limited length."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: str
    aliases: tuple[str, ...]
    created: str
    run_id: str
    tags: dict[str, str]

    @property
    def label(self) -> str:
        """As commands take it."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Change:
    """One move of the champion: `action` is promote or rollback."""

    at: str
    action: str
    version: str
    before: str | None
    reason: str
    forced: bool = False


class Champions:
    """One registry, by its tracking address. UserError for one that is not there or does not answer."""

    def __init__(self, uri: str) -> None:
        check_there(uri, f"--tracking-uri={uri}")
        quiet()
        impatient()
        self.uri = uri
        with self._speaking():
            mlflow.set_tracking_uri(uri)
            self._client = MlflowClient(tracking_uri=uri)

    def models(self) -> list[str]:
        """All our registered models, by name; other people's on the same server are not among them."""
        names: list[str] = []
        page: str | None = None
        with self._speaking():
            while True:
                found = self._client.search_registered_models(f"name LIKE '{PREFIX}%'", page_token=page)
                names += [model.name for model in found]
                page = found.token
                if not page:
                    return sorted(names)

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, the newest first."""
        with self._speaking(name):
            aliases = self._client.get_registered_model(name).aliases
            found = self._client.search_model_versions(f"name='{name}'")
        listed = [_version(one, aliases) for one in found]
        return sorted(listed, key=lambda version: int(version.version), reverse=True)

    def find(self, reference: str) -> Version:
        """The version that NAME@ALIAS, NAME/VERSION or NAME names; of NAME the champion, else the candidate,
        else the newest.
        """
        if "@" in reference:
            name, _, alias = reference.partition("@")
            return self._only(name, reference, lambda version: alias in version.aliases)
        if "/" in reference:
            name, _, number = reference.rpartition("/")
            return self._only(name, reference, lambda version: version.version == number)
        known = self.versions(reference)
        for alias in (CHAMPION, CANDIDATE):
            for version in known:
                if alias in version.aliases:
                    return version
        if not known:
            raise UserError(f"model '{reference}': has no version yet")
        return known[0]

    def champion(self, name: str) -> Version | None:
        """The present champion, if there is one."""
        return next((one for one in self.versions(name) if CHAMPION in one.aliases), None)

    def by_weights(self, digest: str) -> Version | None:
        """The newest version that holds the very policy file of this digest."""
        with self._speaking():
            found = self._client.search_model_versions(f"tag.{WEIGHTS_TAG} = '{digest}'")
        newest = max(found, key=lambda one: int(one.version), default=None)
        return None if newest is None else self.find(f"{newest.name}/{newest.version}")

    def metrics(self, version: Version) -> dict[str, float]:
        """What was measured when it was trained."""
        with self._speaking():
            return dict(self._client.get_run(version.run_id).data.metrics)

    def params(self, version: Version) -> dict[str, str]:
        """The options of its run that are worth a column."""
        with self._speaking():
            return dict(self._client.get_run(version.run_id).data.params)

    def config(self, version: Version) -> dict[str, Any] | None:
        """All options of its run; None of a version that was registered without them."""
        file = self.attached(version, "config.yaml")
        return None if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))

    def history(self, name: str) -> list[Change]:
        """All moves of the champion, the newest last."""
        with self._speaking(name):
            stored = self._client.get_registered_model(name).tags.get(HISTORY_TAG, "[]")
        return [Change(**entry) for entry in json.loads(stored)]

    def tag(self, version: Version, tags: Mapping[str, object]) -> None:
        """Set tags of a version."""
        with self._speaking(version.name):
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, version.version, key, str(value))

    def attach(self, version: Version, file: Path, folder: str) -> None:
        """Keep a file with the version's run."""
        with self._speaking(version.name):
            self._client.log_artifact(version.run_id, str(file), folder)

    def attached(self, version: Version, path: str) -> Path | None:
        """A file that was kept with the version's run, here; None if there is none."""
        folder = path.rpartition("/")[0]
        with self._speaking(version.name):
            listed = [entry.path for entry in self._client.list_artifacts(version.run_id, folder or None)]
            if path not in listed:
                return None
            return Path(
                mlflow.artifacts.download_artifacts(
                    run_id=version.run_id, artifact_path=path, tracking_uri=self.uri
                )
            )

    def set_alias(self, version: Version, alias: str) -> None:
        """Move an alias other than the champion's."""
        assert alias != CHAMPION, "champions are promoted"
        with self._speaking(version.name):
            self._client.set_registered_model_alias(version.name, alias, version.version)

    def promote(self, version: Version, reason: str, *, forced: bool = False) -> Change:
        """Make it the champion; the one before stays in the history."""
        before = self.champion(version.name)
        change = Change(
            _now(), "promote", version.version, None if before is None else before.version, reason, forced
        )
        return self._move(version, change)

    def rollback(self, name: str, reason: str) -> Change:
        """Back to the champion before the present one; once more, to the one before that.

        Raises UserError if there was none, or if its version was deleted.
        """
        present = self.champion(name)
        stack = champions_before(self.history(name), None if present is None else present.version)
        if not stack:
            raise UserError(f"model '{name}': has had no champion before the present one")
        version = self.find(f"{name}/{stack[-1]}")
        before = None if present is None else present.version
        return self._move(version, Change(_now(), "rollback", version.version, before, reason))

    def _move(self, version: Version, change: Change) -> Change:
        with self._speaking(version.name):
            self._client.set_registered_model_alias(version.name, CHAMPION, version.version)
            entries = [asdict(entry) for entry in (*self.history(version.name), change)]
            self._client.set_registered_model_tag(version.name, HISTORY_TAG, json.dumps(entries[-_KEPT:]))
        kept = {"promoted_at" if change.action == "promote" else "rolled_back_to_at": change.at}
        self.tag(version, kept | ({"forced": change.reason} if change.forced else {}))
        return change

    def _only(self, name: str, reference: str, wanted: Callable[[Version], bool]) -> Version:
        versions = self.versions(name)
        for version in versions:
            if wanted(version):
                return version
        known = [
            label for one in versions for label in (one.version, *(f"@{alias}" for alias in one.aliases))
        ]
        raise UserError(f"model '{reference}': not in the registry; there is {', '.join(known) or 'none'}")

    @contextmanager
    def _speaking(self, name: str | None = None) -> Iterator[None]:
        """What the registry refuses, in one line."""
        try:
            yield
        except REFUSALS as error:
            what = f"model '{name}'" if name is not None else f"--tracking-uri={self.uri}"
            raise UserError(f"{what}: {str(error).splitlines()[0]} ({self.uri})") from error


def champions_before(history: list[Change], present: str | None) -> list[str]:
    """The versions that were champion before the present one and were not rolled back, the latest last."""
    stack: list[str] = []
    for change in history:
        if change.action == "rollback":
            while stack and stack[-1] != change.version:
                stack.pop()
        else:
            stack.append(change.version)
    if present in stack:
        while stack[-1] != present:
            stack.pop()
        stack.pop()
    return stack


def _version(found: Any, aliases: Mapping[str, str]) -> Version:
    return Version(
        name=found.name,
        version=str(found.version),
        aliases=tuple(sorted(alias for alias, of in aliases.items() if str(of) == str(found.version))),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        run_id=found.run_id,
        tags=dict(found.tags),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
