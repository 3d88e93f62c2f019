"""Loading a model by name: random from a seed, from open_clip, the hub, a folder, or MLflow's registry."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import load_checkpoint as load_open_clip_weights
from open_clip.pretrained import get_pretrained_cfg

from his2lip.errors import CheckpointError, His2lipError, ModelError, did_you_mean, nearest
from his2lip.models.architecture import TINY_CONFIG, TINY_PREPROCESS, build_clip
from his2lip.models.catalogue import BACKBONES, Backbone
from his2lip.models.checkpoint import OPEN_CLIP, OURS, WEIGHTS, load_checkpoint
from his2lip.models.encoder import DualEncoder, Precision
from his2lip.models.hub import absent, check_tag, fetch_open_clip, fetch_package, fetch_transformers
from his2lip.models.naming import LOCAL, folder_of
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import (
    COPY,
    META,
    current_folder,
    is_checkpoint,
    read_steady,
    similarity_of,
)
from his2lip.models.registered import fetch_checkpoint, is_elsewhere
from his2lip.models.remote_code import refuse_programs
from his2lip.models.tokenizer import CaptionTokenizer, build_tokenizer, clip_tokenizer
from his2lip.models.transformers_folder import WEIGHTS as TRANSFORMERS_WEIGHTS
from his2lip.models.transformers_folder import from_transformers
from his2lip.models.weights import check_kinds, check_values, weights_of

_OF_CLIP = ("clip", "plip")  # backbones with CLIP's own tokenizer and context

# Weight files of a hub repository: open_clip's own names, then others in use.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


def load_model(
    name: str | Path, *, device: str = "cpu", precision: Precision = "fp32", seed: int = 0
) -> DualEncoder:
    """A model by name, in evaluation mode on `device`.

    name   tiny, clip, plip, biomedclip, musk, conch; an open_clip architecture with a pretrained tag
           (`ViT-B-16:laion2b_s34b_b88k`), or without one for random weights by `seed` (`ViT-S-16`);
           hf-hub:ORG/NAME; local-dir:PATH; the folder of a checkpoint, or of a CLIP that open_clip or
           transformers saved; models:/NAME@ALIAS of MLflow

    Raises ModelError for an unknown name or weights that are not on this machine and cannot be fetched,
    CheckpointError for a folder that does not exist and for damaged weights.
    """
    model = _resolve(str(name), precision, seed)
    return model.to(device).eval()


def check_model_name(name: str) -> None:
    """Raises what `load_model` raises for an unknown name or a folder without a model; loads nothing."""
    folder = Path(folder_of(name))
    if name in BACKBONES or is_elsewhere(name) or name.startswith("hf-hub:"):
        return
    if folder.is_dir() or is_checkpoint(folder):
        read_steady(folder, lambda: _weights_in(current_folder(folder)))
        return
    if name.startswith(LOCAL) or os.sep in name:  # no name of open_clip has one
        fix = _nearest_folder(folder)
        if name.count(os.sep) == 1:
            fix = f"{fix.removesuffix('?')}, or is it hf-hub:{name}?"
        raise CheckpointError("there is no folder of this model", where=folder, fix=fix)
    architecture = name.partition(":")[0]
    if architecture not in open_clip.list_models():
        fix = did_you_mean(architecture, _names(architecture))
        raise ModelError(f"unknown model '{name}'", key=name, fix=fix)


def _weights_in(folder: Path) -> Path:
    """The weights in the folder of a model. Raises CheckpointError where it is none, or has no weights."""
    if (folder / OPEN_CLIP).exists():
        names: tuple[str, ...] = (WEIGHTS,) if is_checkpoint(folder) else _WEIGHTS
    elif (folder / "config.json").is_file():
        names = TRANSFORMERS_WEIGHTS
    else:
        what = f"this is not a checkpoint: it has neither {OPEN_CLIP} nor config.json"
        fix = f"did you mean '{folder / 'best'}'?" if is_checkpoint(folder / "best") else None
        raise CheckpointError(what, where=folder, key=OPEN_CLIP, fix=fix)
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    if weights is None:
        what = "this directory has no weights"
        raise CheckpointError(what, where=folder, key=names[0], fix=f"add {names[0]}")
    return weights


def _nearest_folder(missing: Path) -> str:
    """What is wrong in the path of a folder that does not exist."""
    while not missing.parent.is_dir():
        missing = missing.parent
    beside = [path.name for path in missing.parent.iterdir() if path.is_dir()]
    here = f"'{missing.parent}' has no '{missing.name}'"
    close = nearest(missing.name, beside)
    return f"{here}, did you mean '{close}'?" if close else here


def load_tokenizer(name: str | Path) -> CaptionTokenizer:
    """The tokenizer of a model by name, without its weights where it is known without them.

    Raises as `load_model` does, which reads the other models.
    """
    name = str(name)
    if name in _OF_CLIP:
        return clip_tokenizer()
    if name == "tiny":
        return build_tokenizer(TINY_CONFIG)
    architecture, _, tag = name.partition(":")
    if architecture in open_clip.list_models():
        return build_tokenizer(config_of_tag(architecture, tag) if tag else _config(architecture))
    return load_model(name).tokenizer


def _config(architecture: str) -> dict[str, Any]:
    config = open_clip.get_model_config(architecture)
    assert config is not None, architecture
    return config


def _resolve(name: str, precision: Precision, seed: int) -> DualEncoder:
    if name == "tiny":
        return _random(name, TINY_CONFIG, TINY_PREPROCESS, precision, seed)
    if name in BACKBONES:
        backbone = BACKBONES[name]
        assert backbone.source is not None
        return _fetched(backbone.source, precision, backbone)
    if is_elsewhere(name):
        with tempfile.TemporaryDirectory(prefix="his2lip-") as scratch:
            return load_checkpoint(fetch_checkpoint(name, scratch), precision=precision)
    if name.startswith("hf-hub:"):
        return _fetched(name, precision)
    check_model_name(name)
    folder = Path(folder_of(name))
    if folder.is_dir() or is_checkpoint(folder):
        return _from_folder(folder, precision)
    architecture, _, tag = name.partition(":")
    if tag:
        return _fetched(name, precision)
    config = open_clip.get_model_config(architecture)
    size = config["vision_cfg"].get("image_size", 224)
    return _random(name, config, Preprocess.from_open_clip({"size": size}), precision, seed)


def _random(
    name: str, config: dict[str, Any], preprocess: Preprocess, precision: Precision, seed: int
) -> DualEncoder:
    """`config` with weights drawn from `seed`."""
    return DualEncoder(
        build_clip(config, seed=seed),
        name=name,
        config=config,
        preprocess=preprocess,
        tokenizer=build_tokenizer(config),
        precision=precision,
    )


def _from_folder(folder: Path, precision: Precision) -> DualEncoder:
    """A checkpoint of his2lip, open_clip's hub layout, or a transformers CLIPModel."""
    if is_checkpoint(folder):
        return load_checkpoint(folder, precision=precision)
    refuse_programs(folder)
    weights = _weights_in(folder)
    if (folder / OPEN_CLIP).is_file():
        name = f"{LOCAL}{folder}"
        return _hub_layout(folder / OPEN_CLIP, weights, name=name, tokenizer=folder, precision=precision)
    return from_transformers(folder, name=str(folder), precision=precision)


def _fetched(source: str, precision: Precision, named: Backbone | None = None) -> DualEncoder:
    """A model whose weights come from the hub or its cache. Raises ModelError where they cannot be had."""
    name = named.name if named else source
    kind, _, identifier = source.partition(":")
    loaders: dict[str, Callable[[str, str, Precision], DualEncoder]] = {
        "hf-hub": _from_hub,
        "transformers": _from_transformers_hub,
        "package": _from_package,
    }
    if kind not in loaders:
        check_tag(kind, identifier)
    try:
        return loaders.get(kind, _pretrained)(identifier if kind in loaders else source, name, precision)
    except His2lipError:
        raise
    except Exception as error:  # open_clip, the hub client and the file system each raise their own
        raise absent(source, named) from error


def _pretrained(source: str, name: str, precision: Precision) -> DualEncoder:
    """An open_clip architecture with one of its pretrained tags, and with the activation of the tag."""
    architecture, _, tag = source.partition(":")
    config = config_of_tag(architecture, tag)
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # of libraries, about each other
            warnings.simplefilter("ignore", category)
        clip = open_clip.create_model(
            architecture,
            pretrained=tag,
            pretrained_text=False,
            force_quick_gelu=bool(config.get("quick_gelu")),
        )
    return DualEncoder(
        clip,
        name=name,
        config=config,
        preprocess=Preprocess.from_open_clip(clip.visual.preprocess_cfg),
        tokenizer=build_tokenizer(config),
        precision=precision,
    )


def _from_hub(repository: str, name: str, precision: Precision) -> DualEncoder:
    """A hub repository in open_clip's layout, whatever the name of its weight file."""
    config, weights = fetch_open_clip(repository)
    return _hub_layout(config, weights, name=name, tokenizer=None, precision=precision)


def _from_transformers_hub(repository: str, name: str, precision: Precision) -> DualEncoder:
    """A hub repository with a transformers CLIPModel."""
    return from_transformers(fetch_transformers(repository), name=name, precision=precision)


def _from_package(repository: str, name: str, precision: Precision) -> DualEncoder:
    """A model that runs in its authors' package, with the weight file of their hub repository."""
    from his2lip.models.packages import from_package, require_package

    require_package(name)
    return from_package(name, weights=fetch_package(name, repository), precision=precision)


def _hub_layout(
    config_file: Path, weights: Path, *, name: str, tokenizer: Path | None, precision: Precision
) -> DualEncoder:
    """open_clip's hub layout: its configuration, weights and tokenizer.

    A folder of it, which is then `tokenizer`, that is what is left of a checkpoint is refused.
    """
    try:
        tree = json.loads(config_file.read_text(encoding="utf-8"))
        config = tree["model_cfg"]
        size = {"size": config.get("vision_cfg", {}).get("image_size", 224)}
        preprocess = Preprocess.from_open_clip(tree.get("preprocess_cfg", {}) | size)
        ours = tree.get(OURS, {})
        similarity = similarity_of(ours, where=config_file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{OPEN_CLIP} cannot be used: {error!r}"
        raise CheckpointError(what, where=config_file, key=OPEN_CLIP) from None
    if ours and tokenizer is not None:
        raise CheckpointError(f"this checkpoint has no {META}", where=tokenizer, key=META, fix=COPY)
    clip = build_clip(config, weights=weights)
    check = clip.register_load_state_dict_pre_hook(
        lambda network, state, *_: check_kinds(state, weights_of(network), where=weights)
    )
    try:
        load_open_clip_weights(clip, str(weights), strict=True, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch, safetensors and pickle each raise their own
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the weights do not fit or cannot be read: {reason}", where=weights) from None
    finally:
        check.remove()
    check_values(clip.state_dict(), where=weights)
    return DualEncoder(
        clip,
        name=name,
        config=config,
        preprocess=preprocess,
        tokenizer=build_tokenizer(config, tokenizer),
        precision=precision,
        similarity=similarity,
    )


def config_of_tag(architecture: str, tag: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of an architecture, with the activation that a pretrained tag was trained with.

    With another activation (QuickGELU or GELU) the same weights compute other features. Raises ModelError for
    an unknown tag, and where open_clip records GELU for a tag of an architecture with QuickGELU.
    """
    check_tag(architecture, tag)
    config = open_clip.get_model_config(architecture)
    quick = bool(get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    if config.get("quick_gelu") and not quick:
        what = (
            f"open_clip records GELU for the tag '{tag}' and QuickGELU for its architecture '{architecture}'"
        )
        raise ModelError(what, key="quick_gelu", fix="choose another tag or architecture")
    return config | {"quick_gelu": True} if quick else config


def _names(architecture: str) -> list[str]:
    """Names to suggest: the backbones, and open_clip's where the name looks like one of them."""
    return [*BACKBONES, *open_clip.list_models()] if "-" in architecture else list(BACKBONES)
