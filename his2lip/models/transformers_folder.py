"""Folders as transformers saves a CLIPModel: read as a DualEncoder, and written from one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from open_clip.transformer import VisionTransformer
from torch import nn

from his2lip.errors import CheckpointError, ModelError, first_line
from his2lip.models.architecture import build_clip
from his2lip.models.encoder import DualEncoder, Precision
from his2lip.models.hf_clip import (
    INDEX_BUFFERS,
    open_clip_config,
    require_representable,
    rules,
    to_open_clip,
    to_transformers,
    transformers_config,
)
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import EXPORTED, read_exported, read_json, similarity_of
from his2lip.models.remote_code import refuse_programs
from his2lip.models.tokenizer import build_tokenizer
from his2lip.models.weights import check_kinds, check_tensors, check_values, read_tensors

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PROCESSOR = "preprocessor_config.json"
_WHOLE_PROCESSOR = "processor_config.json"  # of CLIPProcessor, with the image processor's settings inside
_PIL_NUMBER = {"bilinear": 2, "bicubic": 3}
_INTERPOLATION = {number: name for name, number in _PIL_NUMBER.items()}

# The settings of open_clip's towers that CLIPModel can represent.
_VISION_SETTINGS = {"image_size", "patch_size", "layers", "width", "head_width", "mlp_ratio"}
_TEXT_SETTINGS = {
    *("context_length", "vocab_size", "layers", "width", "heads", "mlp_ratio", "pool_type", "eos_id")
}


def from_transformers(folder: str | Path, *, name: str, precision: Precision = "fp32") -> DualEncoder:
    """A CLIPModel (config.json, weights, the image processor's settings) such as PLIP, in evaluation mode.

    Raises ModelError for a model of another type, or with a setting that open_clip's CLIP or its
    preprocessing cannot represent; CheckpointError for files that are absent or damaged.
    """
    folder = Path(folder)
    refuse_programs(folder)
    weights = next((folder / w for w in WEIGHTS if (folder / w).is_file()), None)
    if weights is None:
        what = "this directory has no weights"
        raise CheckpointError(what, where=folder, key=WEIGHTS[0], fix=f"expected {WEIGHTS[0]}")
    clip_config = _clip_config(folder)
    require_representable(clip_config, where=folder / "config.json")
    _require_clip_tokenizer(folder)
    config = open_clip_config(clip_config)
    found = {k: v for k, v in read_tensors(weights).items() if k not in INDEX_BUFFERS}
    clip = build_clip(config, weights=weights)
    check_tensors(found, transformers_tensors(clip, config), where=weights)
    check_kinds(found, found, where=weights)
    check_values(found, where=weights)
    clip.load_state_dict(to_open_clip(found, config))
    return DualEncoder(
        clip,
        name=name,
        config=config,
        preprocess=_preprocess(folder, config["vision_cfg"]["image_size"]),
        tokenizer=build_tokenizer(config),
        precision=precision,
        similarity=similarity_of(read_exported(folder), where=folder / EXPORTED),
    ).eval()


def to_transformers_folder(model: DualEncoder, folder: str | Path, *, terms: Sequence[str] = ()) -> Path:
    """Writes what `CLIPModel.from_pretrained(folder)` reads, and the image processor's settings.

    terms   the terms of use for the folder's README.md, one sentence each

    Raises ModelError where CLIPModel is a different network: towers other than open_clip's own ViT and causal
    transformer, a tokenizer other than CLIP's, or settings that CLIPModel cannot represent. The tokenizer to
    use there is `openai/clip-vit-base-patch32`, which gives the same ids.
    """
    _require_clip_model(model)
    processor = _processor(model.preprocess)
    from transformers import CLIPConfig, CLIPModel

    network = CLIPModel(CLIPConfig(**transformers_config(model.config)))
    network.load_state_dict(to_transformers(model.clip.state_dict(), model.config))
    network.save_pretrained(folder)
    (Path(folder) / _PROCESSOR).write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")
    (Path(folder) / "README.md").write_text(_readme(model, terms), encoding="utf-8")
    return Path(folder)


def transformers_tensors(clip: nn.Module, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the transformers tensors from which `clip` is filled."""
    state = clip.state_dict()
    return {
        name: rule.shape(state[rule.open_clip].shape) for rule in rules(config) for name in rule.transformers
    }


def transformers_features(
    folder: Path, images: torch.Tensor, tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Raw features (B, D) by tower that transformers computes from the CLIPModel in `folder`.

    images float (B, 3, H, W), tokens int64 (B, L)
    """
    from transformers import CLIPModel

    network = CLIPModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    return {
        "image": network.get_image_features(pixel_values=images).pooler_output,
        "text": network.get_text_features(input_ids=tokens).pooler_output,
    }


def _clip_config(folder: Path) -> dict[str, Any]:
    """The folder's CLIPConfig, with transformers' defaults for settings that an old file leaves out."""
    from transformers import CLIPConfig

    tree = read_json(folder / "config.json")
    if tree.get("model_type") != "clip":
        what = f"this is a transformers model of type '{tree.get('model_type')}', not a CLIPModel"
        raise ModelError(what, where=folder, key="model_type", fix="convert a folder of a CLIPModel")
    try:
        return CLIPConfig(**tree).to_dict()
    except Exception as error:  # transformers checks the types of some settings, with errors of its own
        what = f"config.json cannot be used: {first_line(error)}"
        raise CheckpointError(
            what, where=folder, key="config.json", fix="copy the whole folder again"
        ) from None


def _require_clip_tokenizer(folder: Path) -> None:
    """Raises ModelError where the folder's tokenizer is not CLIP's, which the converted model will use."""
    file = folder / "tokenizer_config.json"
    kind = read_json(file).get("tokenizer_class") if file.is_file() else None
    if kind not in (None, "CLIPTokenizer", "CLIPTokenizerFast"):
        what = f"the text tower was trained with the tokenizer '{kind}', not CLIP's"
        raise ModelError(what, where=file, key="tokenizer_class", fix="convert a model with CLIP's tokenizer")


def _preprocess(folder: Path, size: int) -> Preprocess:
    """The folder's image processor: shortest edge and centre crop, or a squash to a fixed size.

    size  side of the model's images, in pixels
    Settings that its file leaves out are CLIPImageProcessor's. Raises ModelError, whose key is the setting,
    for one that `Preprocess` cannot represent.
    """
    path, tree = _image_processor(folder)
    given = {key: value for key, value in tree.items() if value is not None}
    crop, resample = given.get("do_center_crop", True), given.get("resample", _PIL_NUMBER["bicubic"])
    edge, square = {"shortest_edge": size}, {"height": size, "width": size}
    resized = _edges(given.get("size", size), square=given.get("default_to_square", False))
    mean, std = _channels(given.get("image_mean")), _channels(given.get("image_std"))
    represented = {
        "do_resize": given.get("do_resize", True),
        "size": resized in (edge, square),
        "resample": resample in list(_INTERPOLATION),
        "do_center_crop": crop or resized == square,  # else the images would not be square
        "crop_size": not crop or _edges(given.get("crop_size", size), square=True) == square,
        "do_rescale": given.get("do_rescale", True),
        "rescale_factor": _is_number(factor := given.get("rescale_factor", 1 / 255))
        and math.isclose(factor, 1 / 255, rel_tol=1e-6),
        "do_normalize": given.get("do_normalize", True),
        "image_mean": mean is None or len(mean) == 3,
        "image_std": std is None or (len(std) == 3 and min(std) > 0),
        "do_pad": not given.get("do_pad", False),
    }
    for key, fits in represented.items():
        if not fits:
            what = f"open_clip's preprocessing cannot represent this image processor: {key} is {given[key]}"
            fix = f"choose a model whose images are resized to its {size} px, scaled by 1/255 and normalised"
            raise ModelError(what, where=path, key=key, fix=fix)
    config = {"size": size, "interpolation": _INTERPOLATION[resample], "mean": mean, "std": std}
    return Preprocess.from_open_clip(config | ({"resize_mode": "squash"} if resized == square else {}))


def _image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(file, settings) of the folder's image processor, in the order in which transformers looks."""
    path = folder / _WHOLE_PROCESSOR
    tree = read_json(path) if path.is_file() else {}
    if "image_processor" not in tree:
        path = folder / _PROCESSOR
        return path, read_json(path) if path.is_file() else {}
    if not isinstance(tree["image_processor"], dict):
        raise CheckpointError("image_processor is not a mapping", where=path, key="image_processor")
    return path, tree["image_processor"]


def _edges(value: Any, *, square: bool) -> dict[str, Any]:
    """A size as transformers reads it: a number is the shortest edge (`square`: both), a list (h, w)."""
    if isinstance(value, Mapping):
        return {key: edge for key, edge in value.items() if edge is not None}
    if isinstance(value, list) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    return {"height": value, "width": value} if square else {"shortest_edge": value}


def _channels(value: Any) -> tuple[float, ...] | None:
    """A mean or standard deviation: one number for all channels, or a list; empty where it is neither."""
    if value is None or _is_number(value):
        return None if value is None else (value,) * 3
    return tuple(value) if isinstance(value, list) and all(map(_is_number, value)) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _readme(model: DualEncoder, terms: Sequence[str]) -> str:
    """What transformers' files have no field for: comparison of features, digest of weights, terms."""
    lines = [f"# {model.name}", "", f"Written by his2lip; weights sha256 {model.tensor_digest()}.", ""]
    lines += [f"Compare image and text features by {model.similarity}.", "", "## Terms of use", ""]
    return "\n".join([*lines, *(f"- {line}" for line in terms), ""])


def _require_clip_model(model: DualEncoder) -> None:
    """Raises ModelError, naming the settings, for a network that CLIPModel cannot represent."""
    vision, text = model.config["vision_cfg"], model.config["text_cfg"]
    native = isinstance(model.clip, CLIP) and isinstance(model.clip.visual, VisionTransformer)
    unknown = sorted((set(vision) - _VISION_SETTINGS) | (set(text) - _TEXT_SETTINGS))
    if not native or unknown or text.get("pool_type", "argmax") not in ("argmax", "eos"):
        reason = f" ({', '.join(unknown)})" if unknown else ""
        what = f"'{model.name}' is a network that transformers' CLIPModel cannot represent{reason}"
        key = unknown[0] if unknown else "pool_type"
        raise ModelError(what, key=key, fix="export it for open_clip, which can represent every model")


def _processor(preprocess: Preprocess) -> dict[str, Any]:
    """CLIPImageProcessor's settings; a squash is a resize to a fixed height and width without a crop."""
    height, width = preprocess.size
    squash = preprocess.resize_mode == "squash"
    if preprocess.resize_mode == "longest" or (not squash and height != width):
        mode = f"'{preprocess.resize_mode}' to {height} x {width}"
        what = f"transformers' CLIPImageProcessor has no resize mode {mode}"
        raise ModelError(what, key="resize_mode", fix="export it for open_clip")
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
