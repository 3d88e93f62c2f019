"""Backbones by name: what each is, where its weights come from, under which licence, and how it loads."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import open_clip

from his2lip.errors import CheckpointError, ModelError, did_you_mean
from his2lip.models.build import build_clip, build_tokenizer
from his2lip.models.checkpoint import is_checkpoint, load_checkpoint
from his2lip.models.encoder import DualEncoder, Precision
from his2lip.models.preprocess import Preprocess
from his2lip.models.tiny import TINY_CONFIG, TINY_PREPROCESS


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A named model. `source` is what open_clip loads; None where it takes a way of its own."""

    name: str
    what: str
    source: str | None
    weights: str
    licence: str
    mend: str


BACKBONES: dict[str, Backbone] = {
    b.name: b
    for b in (
        Backbone(
            name="tiny",
            what="small convolutional and causal towers at 64 px, random by seed",
            source=None,
            weights="none: drawn from the seed",
            licence="Apache-2.0 (ours)",
            mend="nothing: it needs no download",
        ),
        Backbone(
            name="clip",
            what="OpenAI CLIP ViT-B/32",
            source="ViT-B-32-quickgelu:openai",
            weights="OpenAI, through open_clip from huggingface.co/timm/vit_base_patch32_clip_224.openai",
            licence="MIT",
            mend="load it once with a connection, or type local-dir:PATH for a copy",
        ),
        Backbone(
            name="biomedclip",
            what="BiomedCLIP, ViT-B/16 with PubMedBERT",
            source="hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            weights="huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            licence="MIT",
            mend="load it once with a connection, or type local-dir:PATH for a copy",
        ),
    )
}


def list_backbones() -> list[Backbone]:
    """The models known by a name of their own; every open_clip name loads too."""
    return list(BACKBONES.values())


def load_model(
    name: str | Path, *, device: str = "cpu", precision: Precision = "fp32", seed: int = 0
) -> DualEncoder:
    """A model by name, in evaluation mode on `device`.

    name   tiny, clip, biomedclip; an open_clip architecture, with its pretrained tag or random by `seed`
           (`ViT-B-16:laion2b_s34b_b88k`, `ViT-S-16`); hf-hub:ORG/NAME; local-dir:PATH; one of our checkpoint
           directories; models:/NAME@ALIAS of MLflow
    Raises ModelError for an unknown name or weights that are not here, CheckpointError for broken ones.
    """
    model = _resolve(str(name), precision, seed)
    return model.to(device).eval()


def _resolve(name: str, precision: Precision, seed: int) -> DualEncoder:
    if name == "tiny":
        return _random(name, TINY_CONFIG, TINY_PREPROCESS, precision, seed)
    if name in BACKBONES:
        source = BACKBONES[name].source
        assert source is not None
        return _open_clip(source, precision, named=BACKBONES[name])
    if name.startswith("models:/"):
        return load_checkpoint(_from_mlflow(name), precision=precision)
    if name.startswith(("local-dir:", "hf-hub:")):
        folder = name.removeprefix("local-dir:")
        if is_checkpoint(folder):
            return load_checkpoint(folder, precision=precision)
        return _open_clip(name, precision)
    if Path(name).is_dir() or is_checkpoint(name):
        return load_checkpoint(name, precision=precision)
    architecture, _, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        raise ModelError(f"unknown model '{name}'", mend=did_you_mean(architecture, _names(architecture)))
    if tag:
        return _open_clip(name, precision)
    config = open_clip.get_model_config(architecture)
    size = config["vision_cfg"].get("image_size", 224)
    return _random(name, config, Preprocess.from_open_clip({"size": size}), precision, seed)


def _random(name: str, config: dict, preprocess: Preprocess, precision: Precision, seed: int) -> DualEncoder:
    """`config` with weights drawn from `seed`."""
    clip = build_clip(config, seed=seed)
    return DualEncoder(
        clip,
        name=name,
        config=config,
        preprocess=preprocess,
        tokenizer=build_tokenizer(config),
        precision=precision,
    )


def _open_clip(source: str, precision: Precision, *, named: Backbone | None = None) -> DualEncoder:
    """Weights that open_clip fetches or finds: ARCH:tag, hf-hub: or local-dir:."""
    remote = source.startswith(("hf-hub:", "local-dir:"))
    architecture, _, tag = (source, "", "") if remote else source.partition(":")
    if tag and tag not in open_clip.list_pretrained_tags_by_model(architecture):
        known = open_clip.list_pretrained_tags_by_model(architecture)
        raise ModelError(f"'{architecture}' has no pretrained weights '{tag}'", mend=did_you_mean(tag, known))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clip = open_clip.create_model(
                architecture, pretrained=tag or None, pretrained_text=False, require_pretrained=True
            )
        config = open_clip.get_model_config(architecture)
    except Exception as error:  # open_clip, the hub client and the file system each raise their own
        raise _absent(source, named, error) from error
    local = source.removeprefix("local-dir:") if source.startswith("local-dir:") else None
    return DualEncoder(
        clip,
        name=named.name if named else source,
        config=config,
        preprocess=Preprocess.from_open_clip(clip.visual.preprocess_cfg),
        tokenizer=build_tokenizer(config, local),
        precision=precision,
    )


def _absent(source: str, named: Backbone | None, error: Exception) -> ModelError:
    """One sentence for weights that could not be had: where they come from, the licence, what to type."""
    if source.startswith("local-dir:"):
        return CheckpointError(f"open_clip cannot load this directory: {error}", where=source)
    if named is not None:
        origin = f"{named.weights}, licence {named.licence}"
        what = f"the weights of '{named.name}' ({origin}) are not on this machine"
        return ModelError(what, mend=named.mend)
    mend = "load it once with a connection (`hf auth login` first if gated), or type local-dir:PATH"
    return ModelError(f"the weights of '{source}' are not here and could not be fetched", mend=mend)


def _names(architecture: str) -> list[str]:
    """Names to suggest from: ours, and open_clip's when the name looks like one of theirs."""
    return [*BACKBONES, *open_clip.list_models()] if "-" in architecture else list(BACKBONES)


def _from_mlflow(uri: str) -> Path:
    """The checkpoint directory inside a registered MLflow model, fetched if it is remote."""
    import mlflow

    root = Path(mlflow.artifacts.download_artifacts(uri))
    found = sorted(root.rglob("his2lip.json"), key=lambda p: len(p.parts))
    if not found:
        raise CheckpointError("this registered model carries no his2lip checkpoint", where=uri)
    return found[0].parent
