"""transformers' CLIPModel as open_clip's CLIP and back: names and shapes of tensors, and configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from his2lip.errors import ModelError

# transformers before 4.31 saved these two; they contain 0, 1, 2, … and are not weights.
INDEX_BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")

# Configs from before transformers' pull request 24773 have this wrong id; they mean: pool at the highest id.
_LEGACY_EOS = 2

CLIP_VOCABULARY = 49408  # ids of CLIP's tokenizer; the last one ends a text
_EPSILON = 1e-5  # of layer normalisation in open_clip


@dataclass(frozen=True)
class Rule:
    """One tensor of open_clip's, and the one of transformers' (or three, stacked by rows) that it equals."""

    open_clip: str
    transformers: tuple[str, ...]
    how: Literal["same", "transposed", "stacked"] = "same"

    def shape(self, open_clip: torch.Size) -> tuple[int, ...]:
        """The shape of each of `transformers`, from the shape of open_clip's tensor."""
        if self.how == "transposed":
            return tuple(reversed(open_clip))
        return (open_clip[0] // 3, *open_clip[1:]) if self.how == "stacked" else tuple(open_clip)


def rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    """Every tensor of a CLIP with ViT and causal text tower, for open_clip's `model_cfg`."""
    yield Rule("logit_scale", ("logit_scale",))
    yield Rule("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",))
    yield Rule("positional_embedding", ("text_model.embeddings.position_embedding.weight",))
    yield from _blocks("transformer", "text_model", config["text_cfg"]["layers"])
    yield from _pair("ln_final", "text_model.final_layer_norm")
    yield Rule("text_projection", ("text_projection.weight",), "transposed")
    yield Rule("visual.class_embedding", ("vision_model.embeddings.class_embedding",))
    yield Rule("visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",))
    yield Rule("visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",))
    yield from _pair("visual.ln_pre", "vision_model.pre_layrnorm")  # transformers' own spelling
    yield from _blocks("visual.transformer", "vision_model", config["vision_cfg"]["layers"])
    yield from _pair("visual.ln_post", "vision_model.post_layernorm")
    yield Rule("visual.proj", ("visual_projection.weight",), "transposed")


def to_open_clip(found: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """open_clip's state dict from transformers'; the caller checks names and shapes."""
    state = {}
    for rule in rules(config):
        tensors = [found[name] for name in rule.transformers]
        tensor = (
            tensors[0].t() if rule.how == "transposed" else torch.cat(tensors) if tensors[1:] else tensors[0]
        )
        state[rule.open_clip] = tensor.reshape(()) if rule.open_clip == "logit_scale" else tensor.contiguous()
    return state


def to_transformers(found: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """transformers' state dict from open_clip's: the inverse of `to_open_clip`."""
    state: dict[str, torch.Tensor] = {}
    for rule in rules(config):
        tensor = found[rule.open_clip]
        parts = (
            tensor.chunk(3)
            if rule.how == "stacked"
            else (tensor.t(),)
            if rule.how == "transposed"
            else (tensor,)
        )
        state.update(zip(rule.transformers, (p.contiguous().clone() for p in parts), strict=True))
    return state


def open_clip_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's `model_cfg` from a transformers CLIPConfig as a dictionary (its `to_dict`)."""
    text, vision = config["text_config"], config["vision_config"]
    eos = text["eos_token_id"]
    pool = {} if eos == _LEGACY_EOS else {"pool_type": "eos", "eos_id": eos}
    return {
        "embed_dim": config["projection_dim"],
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "layers": text["num_hidden_layers"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            **pool,
        },
    }


def require_representable(config: Mapping[str, Any], *, where: str | Path) -> None:
    """Raises ModelError, whose key is the setting, for a CLIPConfig that open_clip cannot represent."""
    text, vision = config["text_config"], config["vision_config"]
    activation = text["hidden_act"]
    for tower, settings in (("text_config", text), ("vision_config", vision)):
        width, heads, inner = (
            settings[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")
        )
        for key in ("hidden_size", "num_attention_heads", "intermediate_size"):
            if settings[key] <= 0:
                raise _not_representable(f"{tower}.{key}", settings[key], where)
        valid = {
            "hidden_act": settings["hidden_act"] in ("gelu", "quick_gelu"),
            "layer_norm_eps": settings["layer_norm_eps"] == _EPSILON,
            "attention_dropout": settings["attention_dropout"] == 0,
            "num_attention_heads": width % heads == 0,
            "intermediate_size": int(width * (inner / width)) == inner,
        }
        for key, fits in valid.items():
            if not fits:
                raise _not_representable(f"{tower}.{key}", settings[key], where)
    if vision["hidden_act"] != activation:
        raise _not_representable(
            "vision_config.hidden_act", f"{vision['hidden_act']}, not {activation}", where
        )
    if vision["num_channels"] != 3:
        raise _not_representable("vision_config.num_channels", vision["num_channels"], where)
    for key in ("image_size", "patch_size"):
        if not isinstance(vision[key], int) or vision[key] <= 0:
            raise _not_representable(f"vision_config.{key}", vision[key], where)
    if text["vocab_size"] < CLIP_VOCABULARY:
        raise _not_representable("text_config.vocab_size", text["vocab_size"], where)
    if text["eos_token_id"] not in (_LEGACY_EOS, CLIP_VOCABULARY - 1):
        raise _not_representable("text_config.eos_token_id", text["eos_token_id"], where)


def _not_representable(key: str, value: object, where: str | Path) -> ModelError:
    what = f"open_clip's CLIP cannot represent this CLIPModel: {key} is {value}"
    return ModelError(what, where=where, key=key, fix="choose a model that was trained with CLIP's settings")


def transformers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of transformers' CLIPConfig from open_clip's `model_cfg`."""
    text, vision = config["text_cfg"], config["vision_cfg"]
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    eos = text["eos_id"] if text.get("pool_type") == "eos" else _LEGACY_EOS
    return {
        "projection_dim": config["embed_dim"],
        "text_config": {
            "hidden_act": act,
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "num_attention_heads": text["heads"],
            "num_hidden_layers": text["layers"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "eos_token_id": eos,
        },
        "vision_config": {
            "hidden_act": act,
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "num_hidden_layers": vision["layers"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
    }


def _blocks(open_clip: str, transformers: str, layers: int) -> Iterator[Rule]:
    for i in range(layers):
        block, layer = f"{open_clip}.resblocks.{i}", f"{transformers}.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            heads = tuple(f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
            yield Rule(f"{block}.attn.in_proj_{kind}", heads, "stacked")
        yield from _pair(f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj")
        yield from _pair(f"{block}.ln_1", f"{layer}.layer_norm1")
        yield from _pair(f"{block}.mlp.c_fc", f"{layer}.mlp.fc1")
        yield from _pair(f"{block}.mlp.c_proj", f"{layer}.mlp.fc2")
        yield from _pair(f"{block}.ln_2", f"{layer}.layer_norm2")


def _pair(open_clip: str, transformers: str) -> Iterator[Rule]:
    """The weight and the bias of one layer."""
    for kind in ("weight", "bias"):
        yield Rule(f"{open_clip}.{kind}", (f"{transformers}.{kind}",))
