"""The Hugging Face hub: what of it is in this machine's cache, and whether it would give the rest.

Always true here: nothing is downloaded; a hub that does not answer costs seconds, however much is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

TIMEOUT_S = 5.0


def in_cache(repository: str, file: str | None) -> bool:
    """Whether the hub's cache holds a repository's file, or anything of it."""
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    if file is not None:
        return isinstance(try_to_load_from_cache(repository, file), str)
    return any(repository == cached.repo_id for cached in scan_cache_dir().repos)


def refusal(repositories: Iterable[str]) -> str:
    """What to do where the hub would not give some of these; empty where it would."""
    wanted, refused = sorted(set(repositories)), []
    for repository in wanted:
        try:
            reason = _reason(repository)
        except Exception as error:  # no network, a proxy, HF_HUB_OFFLINE, a hub that is down
            downloads = "; ".join(f"hf download {each}" for each in wanted)
            return f"the hub does not answer ({type(error).__name__}); where it does: {downloads}"
        if reason is not None:
            refused.append(f"{repository}: {reason}")
    return "; ".join(refused)


def _reason(repository: str) -> str | None:
    """Why the hub does not give it; None if it does. Raises what the client raises where nobody answers."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    hub = HfApi()
    try:
        if hub.model_info(repository, timeout=TIMEOUT_S).gated:
            hub.auth_check(repository)
    except GatedRepoError:
        return "accept its terms on the hub, then: hf auth login"
    except (RepositoryNotFoundError, HFValidationError):
        return "no folder here, and the hub knows no such repository or keeps it from you: hf auth login"
    return None
