"""Models from and for other tools: converted from published files, and exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch

from his2lip.data.cards import load_card, terms_of_card
from his2lip.errors import CheckpointError, ConfigError, ModelError, did_you_mean
from his2lip.files import file_digest, writing
from his2lip.models.architecture import build_clip
from his2lip.models.checkpoint import OPEN_CLIP, replacing, save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.hf_clip import INDEX_BUFFERS, to_open_clip
from his2lip.models.load import config_of_tag, load_model
from his2lip.models.naming import LOCAL
from his2lip.models.preprocess import RELEASED_PREPROCESS, Preprocess
from his2lip.models.provenance import EXPORTED, Meta, exported_meta, is_checkpoint, terms_of_use
from his2lip.models.registered import meta_of
from his2lip.models.tokenizer import build_tokenizer
from his2lip.models.trained_on import RECORD, TrainingRecord
from his2lip.models.transformers_folder import (
    from_transformers,
    to_transformers_folder,
    transformers_features,
    transformers_tensors,
)
from his2lip.models.weights import (
    Tensors,
    check_kinds,
    check_tensors,
    check_values,
    load_weights,
    read_tensors,
)

Source = Literal["released", "plip", "transformers", "open_clip"]
Tokenizer = Literal["clip", "bert"]

BERT = "bert-base-uncased"

_CHECK_SENTENCES = ["brown nuclear staining of Ki67 in tumour cells", "stroma without staining"]
_CHECK_TOLERANCE = 1e-4  # relative to the largest feature: rounding of float32 in another order

# OpenAI's ViT-B/32, from which both the CLIP and the PLIP variant of the released code start.
CLIP_B32: dict[str, Any] = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def convert(
    path: Path, *, source: Source, backbone: str | None = None, tokenizer: Tokenizer = "clip"
) -> tuple[DualEncoder, dict[str, Any]]:
    """The model in a published file or folder, and what is known of it for its checkpoint's provenance.

    source      released: the HIS2LIP authors' state dict; plip, transformers: a CLIPModel's folder;
                open_clip: its hub layout (a folder) or a state dict of its training
    backbone    what a file does not record: the start of a released model, the architecture of a state dict
    tokenizer   of a released model, see `from_released`

    Raises ConfigError for options that do not go with the source, ModelError or CheckpointError for contents
    that cannot be converted.
    """
    if tokenizer == "bert" and source != "released":
        what = "--tokenizer is only for released files; the others bring their own"
        raise ConfigError(what, key="--tokenizer", fix="leave it out")
    if source == "released":
        model, meta = _convert_released(path, backbone, tokenizer)
    elif source == "open_clip" and not path.is_dir():
        if backbone is None:
            what = "a state dict does not record its architecture"
            raise ConfigError(
                what, key="--backbone", fix="add --backbone, such as --backbone ViT-B-32:openai"
            )
        model, meta = from_open_clip(path, architecture=backbone), {}
    else:
        if backbone is not None:
            what = "a folder records its own architecture"
            raise ConfigError(what, key="--backbone", fix="leave --backbone out")
        model, meta = _convert_folder(path, source)
    check_features(model, path)
    file = {"sha256": file_digest(path)} if path.is_file() else {}
    return model, meta | {"converted": {"from": source, "file": path.name} | file}


def check_features(model: DualEncoder, source: Path) -> None:
    """Compares features of a fixed image and sentence with those that the source's own library computes.

    A transformers CLIPModel is loaded by transformers; any other model is checked for finite features. Raises
    CheckpointError, whose key is the tower, where the conversion is wrong.
    """
    images = torch.rand(2, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = model.tokenizer.tokenizer(_CHECK_SENTENCES, context_length=model.tokenizer.context_length)
    with torch.no_grad():
        image, text = model(images, tokens)
        features = {"image": image, "text": text}
        expected = transformers_features(source, images, tokens) if _is_clip_model(source) else {}
    for tower, found in features.items():
        wrong = not bool(torch.isfinite(found).all())
        if tower in expected:
            tolerance = _CHECK_TOLERANCE * float(expected[tower].abs().max())
            wrong = wrong or not torch.allclose(found, expected[tower], rtol=0, atol=tolerance)
        if wrong:
            what = f"the converted model's {tower} features are not those of the original"
            fix = "use the model through the library that saved it, and report this with its config.json"
            raise CheckpointError(what, where=source, key=tower, fix=fix)


def _is_clip_model(source: Path) -> bool:
    return source.is_dir() and not (source / OPEN_CLIP).is_file()


def export(
    model: DualEncoder,
    folder: str | Path,
    *,
    format: Literal["open_clip", "transformers"],
    meta: Meta,
    trained_on: TrainingRecord | None = None,
) -> Path:
    """Writes `model` into `folder` for another tool, with its terms of use beside it.

    open_clip      a checkpoint, which open_clip loads as `local-dir:` (towers of open_clip and timm)
    transformers   `CLIPModel.from_pretrained(folder)`; see `to_transformers_folder` for what it refuses
    meta           the model's provenance: stored with a checkpoint, and the source of the terms
    trained_on     stored in both formats, as the terms are; `models convert` reads both back
    """
    if format == "open_clip":
        return save_checkpoint(
            folder, model, meta=dict(meta) | {"exported": "open_clip"}, trained_on=trained_on
        )
    known = exported_meta(model.name, meta, similarity=model.similarity)
    with writing("a CLIPModel", folder), replacing(Path(folder)) as new:
        to_transformers_folder(model, new, terms=terms_of_use(model.name, meta))
        (new / EXPORTED).write_text(json.dumps(known, indent=1, ensure_ascii=False), encoding="utf-8")
        if trained_on is not None:
            (new / RECORD).write_bytes(trained_on.data)
    return Path(folder)


def from_released(
    file: str | Path,
    *,
    backbone: Literal["clip", "plip"],
    tokenizer: Tokenizer = "clip",
    tokenizer_source: str | Path = BERT,
    config: Mapping[str, Any] = CLIP_B32,
) -> DualEncoder:
    """A fine-tuned model as the HIS2LIP authors release it: one state dict.

    It contains a whole CLIPModel for each side (`text_encoder.model.*`, `vision_encoder.model.*`), after each
    a `projection_head.weight` without bias, and `logit_scale`. One tower of each CLIPModel is used, and the
    heads are folded into the towers' own projections. The released code does not normalise features, so this
    model compares by `dot`.

    tokenizer   whose ids the text tower was trained on: CLIP's, or bert-base-uncased (the released default),
                which is read from `tokenizer_source` (a folder or hub name)
    """
    found = {k: v for k, v in read_tensors(file).items() if not k.endswith(INDEX_BUFFERS)}
    config = _with_tokenizer(config, tokenizer)
    clip = build_clip(config)
    expected = transformers_tensors(clip, config)
    check_tensors(found, _released_tensors(expected, int(config["embed_dim"])), where=file)
    check_kinds(found, found, where=file)
    check_values(found, where=file)
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

    architecture   open_clip's name, such as ViT-B-32-quickgelu, or ARCH:TAG with the pretrained tag that
                   training started from, whose activation is used

    Preprocessing is open_clip's default at the architecture's image size, as open_clip does for a bare file.
    Raises ModelError for an unknown architecture, and where ARCH without a tag exists in both forms: the two
    have the same tensors, so that the file does not tell them apart.
    """
    architecture, _, tag = architecture.partition(":")
    if architecture not in open_clip.list_models():
        fix = did_you_mean(architecture, open_clip.list_models())
        raise ModelError(f"open_clip has no architecture '{architecture}'", key="--backbone", fix=fix)
    if not tag and f"{architecture}-quickgelu" in open_clip.list_models():
        what = f"a state dict of '{architecture}' does not record whether its activation is GELU or QuickGELU"
        fix = (
            f"name the pretrained tag from which training started (--backbone {architecture}:openai), or "
            f"--backbone {architecture}-quickgelu; for GELU name any tag that was trained with it"
        )
        raise ModelError(what, where=file, key="quick_gelu", fix=fix)
    config = config_of_tag(architecture, tag) if tag else open_clip.get_model_config(architecture)
    clip = build_clip(config)
    load_weights(clip, read_tensors(file), where=file)
    return DualEncoder(
        clip,
        name=architecture,
        config=config,
        preprocess=Preprocess.from_open_clip({"size": config["vision_cfg"].get("image_size", 224)}),
        tokenizer=build_tokenizer(config),
    ).eval()


def _convert_released(
    file: Path, backbone: str | None, tokenizer: Tokenizer
) -> tuple[DualEncoder, dict[str, Any]]:
    """The authors' fine-tuned model: trained on MIHIC, from CLIP or PLIP."""
    if backbone not in ("clip", "plip"):
        what = "a released file does not record the model that it was tuned from"
        raise ConfigError(what, key="--backbone", fix="add --backbone clip or plip")
    model = from_released(file, backbone=backbone, tokenizer=tokenizer)  # type: ignore[arg-type]
    terms = terms_of_card("mihic", load_card("mihic").model_dump(mode="json"))
    return model, {"began_as": backbone, "terms": terms.to_json()}


def _convert_folder(folder: Path, source: Source) -> tuple[DualEncoder, dict[str, Any]]:
    """A transformers CLIPModel, or open_clip's hub layout."""
    if not folder.is_dir():
        fix = "give the folder that contains the weights"
        raise CheckpointError("there is no such folder", where=folder, key="FILE", fix=fix)
    if source != "open_clip":
        name = "plip" if source == "plip" else folder.name
        return from_transformers(folder, name=name), meta_of(str(folder)) or {"began_as": name}
    if not (folder / OPEN_CLIP).is_file():
        what = f"this folder has no {OPEN_CLIP}"
        fix = "--from transformers reads a CLIPModel's folder"
        raise CheckpointError(what, where=folder, key=OPEN_CLIP, fix=fix)
    model = load_model(f"{LOCAL}{folder}")
    if not is_checkpoint(folder):
        model.name = folder.name
    return model, meta_of(str(folder))


def _released_tensors(clip_model: Mapping[str, tuple[int, ...]], dim: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a released file, from those of one transformers CLIPModel."""
    names: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    for side in ("text_encoder", "vision_encoder"):
        names |= {f"{side}.model.{name}": shape for name, shape in clip_model.items()}
        names[f"{side}.projection_head.weight"] = (dim, dim)
    return names


def _side(found: Tensors, side: str, config: Mapping[str, Any]) -> Tensors:
    """The CLIPModel of one side, as open_clip's state dict."""
    prefix = f"{side}.model."
    tensors = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    return to_open_clip(tensors, config)


def _fold(projection: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """open_clip's projection (width, D) and the linear head (D, D) after it as one; computed in float64."""
    return (projection.double() @ head.double().t()).to(projection.dtype)


def _with_tokenizer(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """A CLIP tower accepts BERT's ids without an error: whose ids it was trained on is part of the model."""
    if tokenizer == "clip":
        return dict(config)
    return dict(config) | {"text_cfg": dict(config["text_cfg"]) | {"hf_tokenizer_name": BERT}}
