"""MUSK and CONCH as DualEncoders: frozen baselines that run in the packages of their authors."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from his2lip.errors import ModelError
from his2lip.models.encoder import DualEncoder, Precision
from his2lip.models.preprocess import Preprocess
from his2lip.models.tokenizer import CaptionTokenizer
from his2lip.models.weights import check_kinds, check_tensors, read_tensors, weights_of

# MUSK's README and demo: 384 px, timm's Inception constants, 100 tokens of its own sentencepiece model.
_MUSK = "musk_large_patch16_384"
_MUSK_TOKENS = 100
_MUSK_PREPROCESS = Preprocess(size=(384, 384), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# XLM-R's ids (transformers' XLMRobertaTokenizer): four special ids, then sentencepiece's ids plus one.
_BOS, _PAD, _EOS, _UNKNOWN, _SHIFT = 0, 1, 2, 3, 1

# mahmoodlab/CONCH's conch_ViT-B-16: 448 px, OpenAI's constants; 127 tokens and a place for a class token.
_CONCH = "conch_ViT-B-16"
_CONCH_TOKENS = 128
_CONCH_PREPROCESS = Preprocess.from_open_clip({"size": 448})

WEIGHT_FILES = {"musk": "model.safetensors", "conch": "pytorch_model.bin"}  # in their hub repositories


def from_package(name: str, *, weights: str | Path, precision: Precision = "fp32") -> DualEncoder:
    """The model `name` ("musk" or "conch") with the weight file that its authors publish.

    Raises ModelError where their package is not installed, CheckpointError for weights that do not fit.
    """
    return _musk(Path(weights), precision) if name == "musk" else _conch(Path(weights), precision)


def require_package(name: str) -> None:
    """Raises ModelError, with the command to install it, where the authors' package of `name` is absent."""
    _module({"musk": "musk.modeling", "conch": "conch.open_clip_custom"}[name])


def _musk(weights: Path, precision: Precision) -> DualEncoder:
    package = _module("musk.modeling")  # registers the architecture with timm
    from timm.models import create_model

    model = create_model(_MUSK)
    found = _tensors_of(model, weights)
    check_tensors(found, {n: tuple(t.shape) for n, t in model.state_dict().items()}, where=weights)
    model.load_state_dict(found)
    tokenizer = _MuskTokenizer(Path(str(package.__file__)).parent / "models" / "tokenizer.spm")
    towers = _Towers(model, _MuskCalls(), context_length=_MUSK_TOKENS)
    return _encoder("musk", towers, _MUSK_PREPROCESS, tokenizer, pad=_PAD, precision=precision)


def _conch(weights: Path, precision: Precision) -> DualEncoder:
    package = _module("conch.open_clip_custom")
    read_tensors(weights)  # refuses a file with more than tensors before their loader opens it
    model = package.create_model_from_pretrained(_CONCH, str(weights), return_transform=False)
    model.text_decoder = None  # for captioning; its weights are not published, so they are random
    found = _tensors_of(
        model, weights
    )  # their loader resizes position embeddings, and ignores missing tensors
    check_tensors(found, dict.fromkeys(model.state_dict()), where=weights)
    tokenizer = _ConchTokenizer(package.get_tokenizer())
    towers = _Towers(model, _ConchCalls(), context_length=_CONCH_TOKENS)
    return _encoder("conch", towers, _CONCH_PREPROCESS, tokenizer, pad=tokenizer.pad, precision=precision)


class _Towers(nn.Module):
    """The authors' model with the methods of open_clip's models."""

    def __init__(self, model: nn.Module, calls: Any, *, context_length: int) -> None:
        super().__init__()
        self.model = model
        self.text = SimpleNamespace(context_length=context_length)  # captions run at full length
        self._calls = calls

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale  # type: ignore[return-value]

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """float (B, 3, H, W) -> raw features (B, D)."""
        return self._calls.image(self.model, images)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (B, L) at full length -> raw features (B, D)."""
        return self._calls.text(self.model, tokens)


class _MuskCalls:
    """As MUSK's demo scores zero-shot: with the retrieval heads, at one scale; DualEncoder normalises."""

    def image(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return model(image=images, with_head=True, out_norm=False, ms_aug=False)[0]

    def text(self, model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        padding = (tokens == _PAD).long()
        return model(text_description=tokens, padding_mask=padding, with_head=True, out_norm=False)[1]


class _ConchCalls:
    """The contrastive projections of CONCH, not normalised."""

    def image(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return model.encode_image(images, normalize=False, proj_contrast=True)  # type: ignore[operator]

    def text(self, model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return model.encode_text(tokens, normalize=False)  # type: ignore[operator]


class _MuskTokenizer:
    """`musk.utils.xlm_tokenizer` with XLM-R's ids, from the sentencepiece file inside the package."""

    def __init__(self, file: Path) -> None:
        sentencepiece = _module("sentencepiece")
        if not file.is_file():
            what = "the installed package has no tokenizer.spm"
            raise ModelError(
                what, where=file, key="musk", fix="install it from its clone: pip install -e MUSK"
            )
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))

    def __call__(self, captions: Sequence[str], *, context_length: int) -> torch.Tensor:
        rows = torch.full((len(captions), context_length), _PAD)
        for row, ids in zip(rows, self._pieces.encode(list(captions)), strict=True):
            shifted = [i + _SHIFT if i else _UNKNOWN for i in ids[: context_length - 2]]
            row[: len(shifted) + 2] = torch.tensor([_BOS, *shifted, _EOS])
        return rows


class _ConchTokenizer:
    """`conch.open_clip_custom.tokenize`, with methods that present transformers still has."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.pad = int(tokenizer.pad_token_id)

    def __call__(self, captions: Sequence[str], *, context_length: int) -> torch.Tensor:
        tokens = self._tokenizer(
            list(captions), max_length=context_length - 1, padding="max_length", truncation=True,
            add_special_tokens=True, return_token_type_ids=False, return_tensors="pt",
        )["input_ids"]  # fmt: skip
        return nn.functional.pad(tokens, (0, 1), value=self.pad)  # the tower's place for its class token


def _encoder(
    name: str, towers: _Towers, preprocess: Preprocess, tokenizer: Any, *, pad: int, precision: Precision
) -> DualEncoder:
    length = towers.text.context_length
    with torch.no_grad():
        dim = towers.encode_text(tokenizer([""], context_length=length)).shape[1]
    config = {
        "package": name,
        "version": _version(name),
        "embed_dim": dim,
        "vision_cfg": {"image_size": preprocess.size[0]},
        "text_cfg": {"context_length": length},
    }
    return DualEncoder(
        towers,
        name=name,
        config=config,
        preprocess=preprocess,
        tokenizer=CaptionTokenizer(tokenizer, context_length=length, pad_id=pad, cut=False),
        precision=precision,
    ).eval()


def _tensors_of(model: nn.Module, weights: Path) -> dict[str, torch.Tensor]:
    """The file's tensors that the model has; published files have more, such as heads of pre-training."""
    names = set(model.state_dict())
    found = {name: tensor for name, tensor in read_tensors(weights).items() if name in names}
    check_kinds(found, weights_of(model), where=weights)
    return found


_INSTALL = {
    "musk": "git clone https://github.com/lilab-stanford/MUSK && pip install -e ./MUSK 'his2lip[musk]' "
    "(PyPI's `musk` is another program)",
    "conch": "pip install git+https://github.com/mahmoodlab/CONCH",
    "sentencepiece": "pip install 'his2lip[musk]'",
}


def _module(name: str) -> Any:
    """A module of an authors' package. Raises ModelError, with the command to install it, if absent."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = f" (no module '{error.name}')" if error.name else ""
        what = f"the package '{package}' that its authors publish is not installed{missing}"
        raise ModelError(what, key=package, fix=_INSTALL[package]) from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
