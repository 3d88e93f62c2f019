"""A model for other tools: open_clip's hub layout, or a transformers CLIPModel, for B/32-type models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_clip import CLIP
from open_clip.transformer import VisionTransformer

from his2lip.errors import ModelError
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.hf_clip import from_open_clip, transformers_config
from his2lip.models.preprocess import Preprocess

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
    network.load_state_dict(from_open_clip(model.clip.state_dict(), model.config))
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
        raise ModelError(what, mend="export it for open_clip, which holds every model of ours")


def _processor(preprocess: Preprocess) -> dict[str, Any]:
    """CLIPImageProcessor's settings; a squash is a resize to a fixed height and width without a crop."""
    height, width = preprocess.size
    squash = preprocess.resize_mode == "squash"
    if preprocess.resize_mode == "longest" or (not squash and height != width):
        mode = f"'{preprocess.resize_mode}' to {height} x {width}"
        what = f"transformers' CLIPImageProcessor has no resize mode {mode}"
        raise ModelError(what, mend="export it for open_clip")
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
