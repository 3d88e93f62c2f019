"""Small random models of the real architectures, and the files that their authors publish beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from his2lip.models.architecture import build_clip
from his2lip.models.encoder import DualEncoder
from his2lip.models.preprocess import Preprocess
from his2lip.models.tokenizer import build_tokenizer

PREPROCESS = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}

# transformers' CLIPConfig of a small model.
SMALL_CLIP: dict[str, Any] = {
    "projection_dim": 32,
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": 64,
        "patch_size": 32,
    },
}

CAPTIONS = [
    "Brown nuclear staining of Ki67 in tumor cells.",
    "stroma, no staining",
    "Immune cells with strong membranous CD3 staining beside a pale vessel",
]

_WORDS = (
    "brown nuclear staining of ki67 in tumor cells stroma no immune with strong membranous cd3 "
    "beside a pale vessel"
)


def native_config(*, custom_text: bool = False, **text: Any) -> dict[str, Any]:
    """CLIP's architecture, small: ViT of 32 px, causal text of 24 tokens."""
    return {
        "embed_dim": 32,
        "quick_gelu": True,
        "custom_text": custom_text,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2} | text,
    }


def hf_config(folder: Path, *, pooler: str = "cls_last_hidden_state_pooler") -> dict[str, Any]:
    """BiomedCLIP's architecture, small: a timm ViT, and a BERT whose config and tokenizer are in `folder`."""
    return {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 160,
        },
        "text_cfg": {
            "hf_model_name": str(folder),
            "hf_tokenizer_name": str(folder),
            "hf_proj_type": "mlp",
            "hf_pooler_type": pooler,
            "context_length": 40,
        },
    }


def wordpiece_folder(folder: Path) -> Path:
    """`folder` with a small BERT's config.json and WordPiece tokenizer, as a hub repository holds them."""
    from transformers import BertConfig, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *_WORDS.split()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
    )
    config.save_pretrained(folder)
    ids = {word: i for i, word in enumerate(vocabulary)}
    BertTokenizerFast(vocab=ids).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    return folder


def hf_cache(
    root: Path, repository: str, files: Path, monkeypatch: pytest.MonkeyPatch, *, commit: str = "0" * 40
) -> None:
    """`files` as the Hugging Face cache at `root` holds a repository whose newest download is `commit`."""
    import huggingface_hub.constants

    repo = root / ("models--" + repository.replace("/", "--"))
    shutil.copytree(files, repo / "snapshots" / commit, dirs_exist_ok=True)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))


def dual(config: dict[str, Any] | None = None) -> DualEncoder:
    """A small random model of `config`; CLIP's architecture by default. Always the same weights."""
    config = config or native_config()
    size = config["vision_cfg"].get("image_size", 224)
    return DualEncoder(
        build_clip(config, seed=1),
        name="small",
        config=config,
        preprocess=Preprocess(size=(size, size), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        tokenizer=build_tokenizer(config),
    )


def hf_dual(folder: Path) -> DualEncoder:
    """A small random model of BiomedCLIP's architecture, whose text side is written to `folder`."""
    return dual(hf_config(wordpiece_folder(folder / "bert")))


def hf_model(seed: int = 0, **config: object) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(**config)).eval()


def published_plip(folder: Path, model: nn.Module) -> Path:
    """`model` as PLIP is published: transformers' own files, with its image processor's settings."""
    from transformers import CLIPImageProcessor

    model.save_pretrained(folder)
    size = model.config.vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size).save_pretrained(folder)
    return folder


def published_open_clip(folder: Path, config: dict, *, seed: int = 0) -> Path:
    """As its authors put it on the hub: open_clip_config.json, a pickle of tensors, tokenizer files."""
    folder.mkdir(exist_ok=True)
    tree = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    torch.save(build_clip(config, seed=seed).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder
