"""Known models: the named backbones with source and licence, and the models in the Hugging Face cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from his2lip.models.naming import LOCAL

_HUB = "huggingface.co/"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")  # suffixes of weight files
_COPY = "load it once with a connection, or type local-dir:PATH for a copy"
_GATED = "ask for access on that page, type `hf auth login`, then load it once with a connection"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A named model.

    source      how it loads: ARCH:tag or hf-hub:ORG/NAME (open_clip), transformers:ORG/NAME (a CLIPModel),
                package:ORG/NAME (its authors' package, a frozen baseline); None where it needs no weights
    weights     the address of its weights
    commercial  whether the licence allows commercial use; None where that is not stated
    fix         what the user can do where the weights are missing
    """

    name: str
    what: str
    source: str | None
    weights: str
    licence: str
    commercial: bool | None = True
    fix: str = _COPY

    @property
    def frozen(self) -> bool:
        """Whether it is only a baseline, which cannot be trained: it runs in its authors' package."""
        return (self.source or "").startswith("package:")

    @property
    def repository(self) -> str | None:
        """The hub repository of the weights; None where there is none."""
        return self.weights.removeprefix(_HUB) if self.weights.startswith(_HUB) else None


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="tiny",
            what="small convolutional and causal towers at 64 px, random by seed",
            source=None,
            weights="none: drawn from the seed",
            licence="Apache-2.0 (ours)",
            fix="nothing: it needs no download",
        ),
        Backbone(
            name="clip",
            what="OpenAI CLIP, ViT-B/32",
            source="ViT-B-32-quickgelu:openai",
            weights="huggingface.co/timm/vit_base_patch32_clip_224.openai",
            licence="MIT",
        ),
        Backbone(
            name="plip",
            what="PLIP: CLIP ViT-B/32 tuned on pathology images and posts",
            source="transformers:vinid/plip",
            weights="huggingface.co/vinid/plip",
            licence="not stated by its authors",
            commercial=None,
            fix="load it once with a connection, or type the PATH of a folder with its files",
        ),
        Backbone(
            name="biomedclip",
            what="BiomedCLIP: ViT-B/16 and PubMedBERT, 256 tokens",
            source="hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            weights="huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            licence="MIT",
        ),
        Backbone(
            name="musk",
            what="MUSK: BEiT-3 large at 384 px, in its authors' package; frozen",
            source="package:xiangjx/musk",
            weights="huggingface.co/xiangjx/musk",
            licence="CC BY-NC-ND 4.0, not for commercial use, gated",
            commercial=False,
            fix=_GATED,
        ),
        Backbone(
            name="conch",
            what="CONCH: CoCa ViT-B/16 at 448 px, in its authors' package; frozen",
            source="package:MahmoodLab/conch",
            weights="huggingface.co/MahmoodLab/conch",
            licence="CC BY-NC-ND 4.0, not for commercial use, gated",
            commercial=False,
            fix=f"{_GATED}, or type local-dir:PATH for a copy in open_clip's format",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A model in the Hugging Face cache: `name` loads it, `repository` is its source on the hub."""

    name: str
    repository: str


def cached_models() -> list[CachedModel]:
    """Two-tower models in the cache, by the names that load them; without the named backbones."""
    named = {backbone.repository for backbone in BACKBONES.values()}
    found, unnamed = [], set()
    for repository, folder in _snapshots().items():
        if repository in named or not _has_weights(folder):
            continue
        if (folder / "open_clip_config.json").is_file():
            found.append(CachedModel(name=f"hf-hub:{repository}", repository=repository))
        elif _is_clip_model(folder):
            found.append(CachedModel(name=f"{LOCAL}{folder}", repository=repository))
        else:
            unnamed.add(repository)
    return found + (_tags_of(unnamed) if unnamed else [])


def cached_backbones() -> set[str]:
    """Names of the backbones whose weights are in the cache, or that need none."""
    here = cached_repositories()
    return {b.name for b in BACKBONES.values() if b.repository is None or b.repository in here}


def cached_repositories() -> list[str]:
    """The repositories in the Hugging Face cache that have weights, sorted by name."""
    return sorted(repository for repository, folder in _snapshots().items() if _has_weights(folder))


def _snapshots() -> dict[str, Path]:
    """Repository to the folder of its latest files in the Hugging Face cache."""
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


def _tags_of(repositories: set[str]) -> list[CachedModel]:
    """The repositories of open_clip's pretrained tags, ARCH:TAG; importing its table takes seconds."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    found: dict[str, CachedModel] = {}
    for architecture, tag in list_pretrained():
        repository = get_pretrained_cfg(architecture, tag).get("hf_hub", "").rpartition("/")[0]
        if repository in repositories:
            found.setdefault(repository, CachedModel(name=f"{architecture}:{tag}", repository=repository))
    return list(found.values())
