"""Weights that others publish, as models of ours: PLIP and its kin, and the authors' released format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip import CLIP
from open_clip.transformer import VisionTransformer
from torch import nn

from his2lip.errors import CheckpointError, ModelError, did_you_mean
from his2lip.models.architecture import build_clip, build_tokenizer, load_weights
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder, Precision
from his2lip.models.hf_clip import (
    INDEX_BUFFERS,
    open_clip_config,
    rules,
    to_open_clip,
    to_transformers,
    transformers_config,
)
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import read_json
from his2lip.models.weights import check_tensors, read_tensors

Tokenizer = Literal["clip", "bert"]

BERT = "bert-base-uncased"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers

# OpenAI's ViT-B/32, which both the CLIP and the PLIP variant of the released code start from.
CLIP_B32: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}

# The released code's input: any image squashed to 224 px by torchvision's Resize, MIHIC's mean and deviation.
RELEASED_PREPROCESS = Preprocess(
    size=(224, 224),
    mean=(0.7424657, 0.7176911, 0.7305417),
    std=(0.2142405, 0.2137353, 0.2084592),
    interpolation="bilinear",
    resize_mode="squash",
)


def from_transformers(folder: str | Path, *, name: str, precision: Precision = "fp32") -> DualEncoder:
    """A CLIPModel as transformers saves it (config.json, weights, preprocessor_config.json): PLIP is one."""
    folder = Path(folder)
    weights = next((folder / w for w in _WEIGHTS if (folder / w).is_file()), None)
    if weights is None:
        raise CheckpointError("this directory has no weights", where=folder, fix=f"expected {_WEIGHTS[0]}")
    config = open_clip_config(_clip_config(folder))
    found = {k: v for k, v in read_tensors(weights).items() if k not in INDEX_BUFFERS}
    clip = build_clip(config)
    check_tensors(found, _expected(clip, config), where=weights)
    clip.load_state_dict(to_open_clip(found, config))
    return DualEncoder(
        clip,
        name=name,
        config=config,
        preprocess=_preprocess(folder, config["vision_cfg"]["image_size"]),
        tokenizer=build_tokenizer(config),
        precision=precision,
    ).eval()


def from_released(
    file: str | Path,
    *,
    backbone: Literal["clip", "plip"],
    tokenizer: Tokenizer = "clip",
    tokenizer_source: str | Path = BERT,
    config: Mapping[str, Any] = CLIP_B32,
) -> DualEncoder:
    """A fine-tuned model as the HIS2LIP authors release it: one state dict.

    It holds a whole CLIPModel for each side (`text_encoder.model.*`, `vision_encoder.model.*`), a bias-free
    `projection_head.weight` after each, and `logit_scale`. Of each CLIPModel one tower is used; the heads
    fold into the towers' own projections. Features are not normalised there: this model compares by `dot`.

    tokenizer   whose ids the text tower was trained on: CLIP's, or bert-base-uncased (the released default),
                read from `tokenizer_source` (folder or hub name)
    """
    found = {k: v for k, v in read_tensors(file).items() if not k.endswith(INDEX_BUFFERS)}
    config = _with_tokenizer(config, tokenizer)
    clip = build_clip(config)
    check_tensors(found, _released_names(clip, config), where=file)
    image, text = _side(found, "vision_encoder", config), _side(found, "text_encoder", config)
    state = {k: (image if k.startswith("visual.") else text)[k] for k in text}
    state["visual.proj"] = _fold(state["visual.proj"], found["vision_encoder.projection_head.weight"])
    state["text_projection"] = _fold(state["text_projection"], found["text_encoder.projection_head.weight"])
    state["logit_scale"] = found["logit_scale"].reshape(())
    clip.load_state_dict(state)
    return DualEncoder(
        clip,
        name=f"his2{backbone}",
        config=config,
        preprocess=RELEASED_PREPROCESS,
        tokenizer=build_tokenizer(config, tokenizer_source),
        similarity="dot",
    ).eval()


def from_open_clip(file: str | Path, *, architecture: str) -> DualEncoder:
    """A state dict as open_clip's training saves it (`epoch_N.pt`), of one of open_clip's architectures.

    Preprocessing is open_clip's default at the architecture's size, as open_clip gives it to a bare file.
    """
    if architecture not in open_clip.list_models():
        fix = did_you_mean(architecture, open_clip.list_models())
        raise ModelError(f"open_clip has no architecture '{architecture}'", fix=fix)
    config = open_clip.get_model_config(architecture)
    clip = build_clip(config)
    load_weights(clip, read_tensors(file), where=file)
    return DualEncoder(
        clip,
        name=architecture,
        config=config,
        preprocess=Preprocess.from_open_clip({"size": config["vision_cfg"].get("image_size", 224)}),
        tokenizer=build_tokenizer(config),
    ).eval()


def _clip_config(folder: Path) -> dict[str, Any]:
    """The folder's CLIPConfig, with transformers' defaults for what an old file leaves out."""
    from transformers import CLIPConfig

    tree = read_json(folder / "config.json")
    if tree.get("model_type") != "clip":
        kind = tree.get("model_type")
        raise ModelError(f"this is a transformers model of type '{kind}', not a CLIPModel", where=folder)
    return CLIPConfig(**tree).to_dict()


def _preprocess(folder: Path, size: int) -> Preprocess:
    """What the folder's image processor does: shortest edge and centre crop, or a squash to a fixed size."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Preprocess.from_open_clip({"size": size})
    tree = read_json(path)
    config = {"size": size, "interpolation": _RESAMPLE.get(tree.get("resample", 3), "bicubic")}
    if not tree.get("do_center_crop", True) and "height" in tree.get("size", {}):
        config["resize_mode"] = "squash"
    return Preprocess.from_open_clip(config | {"mean": tree.get("image_mean"), "std": tree.get("image_std")})


def _expected(clip: nn.Module, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the transformers tensors that fill `clip`."""
    ours = clip.state_dict()
    return {name: rule.shape(ours[rule.ours].shape) for rule in rules(config) for name in rule.theirs}


def _released_names(clip: nn.Module, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    whole, dim = _expected(clip, config), int(config["embed_dim"])
    names: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    for side in ("text_encoder", "vision_encoder"):
        names |= {f"{side}.model.{name}": shape for name, shape in whole.items()}
        names[f"{side}.projection_head.weight"] = (dim, dim)
    return names


Tensors = Mapping[str, torch.Tensor]


def _side(found: Tensors, side: str, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The CLIPModel of one side, as open_clip's state dict."""
    prefix = f"{side}.model."
    theirs = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    return to_open_clip(theirs, config)


def _fold(projection: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """open_clip's projection (width, D), then a linear head (D, D), as one; in float64 on the way."""
    return (projection.double() @ head.double().t()).to(projection.dtype)


def _with_tokenizer(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """A CLIP tower takes BERT's ids silently: which ids it was trained on is part of the model."""
    if tokenizer == "clip":
        return dict(config)
    return dict(config) | {"text_cfg": dict(config["text_cfg"]) | {"hf_tokenizer_name": BERT}}


_PIL_NUMBER = {"bilinear": 2, "bicubic": 3}


def to_open_clip_folder(
    model: DualEncoder, folder: str | Path, *, meta: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint is one already: open_clip loads the folder as `local-dir:` (native towers without us).

    meta   the model's own provenance, which stays with it
    """
    return save_checkpoint(folder, model, meta=dict(meta or {}) | {"exported": "open_clip"})


def to_transformers_folder(model: DualEncoder, folder: str | Path, *, conditions: Sequence[str] = ()) -> Path:
    """`CLIPModel.from_pretrained(folder)`: config.json, model.safetensors and preprocessor_config.json.

    conditions   what its README.md says of terms of use, a line each

    Raises ModelError where transformers' CLIPModel is another network: towers that are not open_clip's own
    ViT and causal transformer, another tokenizer than CLIP's, or settings that CLIPModel has no name for. The
    tokenizer to use there is `openai/clip-vit-base-patch32`, whose ids are the same.
    """
    _require_clip_model(model)
    processor = _processor(model.preprocess)
    from transformers import CLIPConfig, CLIPModel

    network = CLIPModel(CLIPConfig(**transformers_config(model.config)))
    network.load_state_dict(to_transformers(model.clip.state_dict(), model.config))
    network.save_pretrained(folder)
    path = Path(folder) / "preprocessor_config.json"
    path.write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")
    (Path(folder) / "README.md").write_text(_card(model, conditions), encoding="utf-8")
    return Path(folder)


def _card(model: DualEncoder, conditions: Sequence[str]) -> str:
    """What transformers' files have no field for: how features compare, the weights' digest, the terms."""
    lines = [f"# {model.name}", "", f"Written by his2lip; weights sha256 {model.tensor_digest()}.", ""]
    lines += [f"Compare image and text features by {model.similarity}.", "", "## Terms of use", ""]
    return "\n".join([*lines, *(f"- {line}" for line in conditions), ""])


def _require_clip_model(model: DualEncoder) -> None:
    """CLIPModel has one design: refuses what it cannot hold, and says which setting that is."""
    vision, text = model.config["vision_cfg"], model.config["text_cfg"]
    known_vision = {"image_size", "patch_size", "layers", "width", "head_width", "mlp_ratio"}
    known_text = {
        "context_length",
        "vocab_size",
        "layers",
        "width",
        "heads",
        "mlp_ratio",
        "pool_type",
        "eos_id",
    }
    native = isinstance(model.clip, CLIP) and isinstance(model.clip.visual, VisionTransformer)
    unknown = sorted((set(vision) - known_vision) | (set(text) - known_text))
    if not native or unknown or text.get("pool_type", "argmax") not in ("argmax", "eos"):
        reason = f" ({', '.join(unknown)})" if unknown else ""
        what = f"'{model.name}' is not a network that transformers' CLIPModel holds{reason}"
        raise ModelError(what, fix="export it for open_clip, which holds every model of ours")


def _processor(preprocess: Preprocess) -> dict[str, Any]:
    """CLIPImageProcessor's settings; a squash is a resize to a fixed height and width without a crop."""
    height, width = preprocess.size
    squash = preprocess.resize_mode == "squash"
    if preprocess.resize_mode == "longest" or (not squash and height != width):
        mode = f"'{preprocess.resize_mode}' to {height} x {width}"
        what = f"transformers' CLIPImageProcessor has no resize mode {mode}"
        raise ModelError(what, fix="export it for open_clip")
    fixed = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": fixed if squash else {"shortest_edge": height},
        "resample": _PIL_NUMBER[preprocess.interpolation],
        "do_center_crop": not squash,
        "crop_size": fixed,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }
