"""open_clip networks from their configurations, and the configuration of the `tiny` backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from torch import nn
from torch.overrides import TorchFunctionMode

from his2lip.errors import ModelError
from his2lip.models.preprocess import Preprocess
from his2lip.models.remote_code import refuse_program

HF_TEXT_FOLDER = "hf_text"  # a checkpoint's copy of the Hugging Face configuration of its text tower

# Configurations that this package contains, so that BiomedCLIP loads offline; and the former name of one.
_PACKAGED_HF_TEXT = Path(__file__).parent / "hf_text"
_RENAMED = {"BiomedNLP-PubMedBERT-base-uncased-abstract": "BiomedNLP-BiomedBERT-base-uncased-abstract"}

# Sizes far above those of any published model. Larger ones are damage, and would exhaust time or memory.
_LARGEST = {
    "embed_dim": 20_000,
    "width": 20_000,
    "hidden_size": 20_000,
    "intermediate_size": 100_000,
    "layers": 500,
    "num_hidden_layers": 500,
    "heads": 1_000,
    "num_attention_heads": 1_000,
    "image_size": 4_096,
    "patch_size": 4_096,
    "mlp_ratio": 100,
    "context_length": 10_000,
    "max_position_embeddings": 100_000,
    "vocab_size": 2_000_000,
}

_HARMLESS = 500_000_000  # parameters; smaller networks are built, and errors of their files are precise

# Names of the functions that draw weights: those of tensors, and those of torch.nn.init, which transformers
# replaces by its own while it builds a model.
_DRAWS = frozenset(
    f"{name}_"
    for name in (
        *("uniform", "normal", "trunc_normal", "erfinv"),
        *("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"),
    )
)

# The tiny backbone. Convolutions learn texture from a few thousand patches; a small ViT does not. Group norm
# keeps the features of a patch independent of the rest of its batch, so that one worker and two agree. The
# image network is timm's (an EfficientNet of 0.1 M parameters), so that open_clip can build it without this
# package. The vocabulary is CLIP's, which is part of open_clip. Mean and standard deviation are those of
# generated patches.
TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "timm_model_name": "test_efficientnet_gn",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}

TINY_PREPROCESS = Preprocess(size=(64, 64), mean=(0.72, 0.68, 0.77), std=(0.20, 0.21, 0.17))


def build_clip(
    model_cfg: Mapping[str, Any],
    *,
    folder: Path | None = None,
    seed: int | None = None,
    weights: Path | None = None,
) -> nn.Module:
    """The open_clip model of `model_cfg`, with random weights by a seed or ready for those of a file.

    folder   a checkpoint's directory: a Hugging Face text tower's configuration is read from its `hf_text`
    seed     seed of the weights; None: they are not drawn, and hold any values until the caller loads them
             all. Drawing them would be half of the time of loading
    weights  the file that `load_weights` will read: an architecture that cannot fit into it is refused

    Raises ModelError where open_clip cannot build this configuration, a part of it is not on this machine, or
    the text tower is a program of its authors.
    """
    config = copy.deepcopy(dict(model_cfg))
    _check_sizes(config, where=folder)
    text, vision = _towers(config, folder)
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = hf_text_source(text["hf_model_name"], folder)
    kind = CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        if "hf_model_name" in text:
            _check_text_config(text["hf_model_name"])
        with torch.random.fork_rng(devices=[]), _NoDraws() if seed is None else nullcontext():
            if seed is not None:
                torch.manual_seed(seed)
            if weights is not None and weights.is_file():
                _check_fits(lambda: kind(**copy.deepcopy(config)), weights)
            return kind(**config)
    except OSError as error:
        name = text.get("hf_model_name")
        raise ModelError(
            f"the configuration of the text tower '{name}' is not on this machine",
            key=name,
            fix="load the model once with a connection, so that it enters the Hugging Face cache",
        ) from error
    except (TypeError, KeyError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        what = f"open_clip cannot build this configuration: {error}"
        raise ModelError(what, where=folder, key="model_cfg") from error


class _NoDraws(TorchFunctionMode):
    """Leaves weights as they were allocated, in place of drawing them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _towers(config: Mapping[str, Any], folder: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """`text_cfg` and `vision_cfg`."""
    text, vision = config.get("text_cfg"), config.get("vision_cfg")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        what = "this configuration does not describe two towers (text_cfg, vision_cfg)"
        raise ModelError(what, where=folder, key="vision_cfg" if isinstance(text, dict) else "text_cfg")
    return text, vision


def hf_text_source(name: str, folder: Path | None) -> str:
    """The source of a Hugging Face text tower's configuration: the checkpoint, this package, or the hub."""
    short = name.rpartition("/")[2]
    packaged = _PACKAGED_HF_TEXT / _RENAMED.get(short, short)
    if folder is not None and (folder / HF_TEXT_FOLDER).is_dir():
        return str(folder / HF_TEXT_FOLDER)
    return str(packaged) if packaged.is_dir() and not Path(name).is_dir() else name


def _check_text_config(name: str) -> None:
    """Raises ModelError for a Hugging Face text configuration with a program or an impossible size."""
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(name)
    refuse_program(config, where=name)
    _check_sizes(config, where=name)


def _check_sizes(config: Mapping[str, Any], *, where: str | Path | None) -> None:
    """Raises ModelError, whose key is the setting, for a size that no model has."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_sizes(value, where=where)
        elif key in _LARGEST:
            sizes = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(size, int | float) and size > _LARGEST[key] for size in sizes):
                what = f"{key} is {value}, above the limit of {_LARGEST[key]:,}"
                raise ModelError(what, where=where, key=key, fix="copy the configuration again")


def _check_fits(build: Callable[[], nn.Module], weights: Path) -> None:
    """Raises ModelError where a large network has more parameters than its weight file has bytes."""
    try:
        with torch.device("meta"):  # without memory for the parameters
            count = sum(p.numel() for p in build().parameters())
    except NotImplementedError:  # an initialisation that needs values
        return
    size = weights.stat().st_size
    if count > max(size, _HARMLESS):
        what = f"the architecture has {count:,} parameters, and its weight file {size:,} bytes"
        fix = "copy the configuration and the weights again"
        raise ModelError(what, where=weights, key="model_cfg", fix=fix)
