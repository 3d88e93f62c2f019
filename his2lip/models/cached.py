"""Which published weights are on this machine: a look into the Hugging Face cache, offline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from his2lip.models.catalogue import BACKBONES

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A model in a cache: `name` loads it, `repository` is where it came from."""

    name: str
    repository: str


def cached_models() -> list[Cached]:
    """Two-tower models in the cache under the names that load them; the named backbones are left out."""
    named = {backbone.repository for backbone in BACKBONES.values()}
    found, unnamed = [], set()
    for repository, folder in _snapshots().items():
        if repository in named or not _has_weights(folder):
            continue
        if (folder / "open_clip_config.json").is_file():
            found.append(Cached(name=f"hf-hub:{repository}", repository=repository))
        elif _is_clip_model(folder):
            found.append(Cached(name=f"local-dir:{folder}", repository=repository))
        else:
            unnamed.add(repository)
    return found + (_tags_of(unnamed) if unnamed else [])


def cached_backbones() -> set[str]:
    """Names of the named backbones whose weights are here, or that need none."""
    here = {repository for repository, folder in _snapshots().items() if _has_weights(folder)}
    return {b.name for b in BACKBONES.values() if b.repository is None or b.repository in here}


def _snapshots() -> dict[str, Path]:
    """Repository -> the folder of its latest files in the Hugging Face cache."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return {}
    models = [repo for repo in cache.repos if repo.repo_type == "model" and repo.revisions]
    return {r.repo_id: max(r.revisions, key=lambda one: one.last_modified).snapshot_path for r in models}


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in _WEIGHTS and path.exists() for path in folder.iterdir())


def _is_clip_model(folder: Path) -> bool:
    try:
        tree: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and tree.get("model_type") == "clip"


def _tags_of(repositories: set[str]) -> list[Cached]:
    """Those that are one of open_clip's pretrained tags, ARCH:TAG; importing its table takes seconds."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    found: dict[str, Cached] = {}
    for architecture, tag in list_pretrained():
        repository = get_pretrained_cfg(architecture, tag).get("hf_hub", "").rpartition("/")[0]
        if repository in repositories:
            found.setdefault(repository, Cached(name=f"{architecture}:{tag}", repository=repository))
    return list(found.values())
