"""The `tiny` backbone: what the demo and the tests train, in seconds, without a download."""

from __future__ import annotations

from typing import Any

from his2lip.models.preprocess import Preprocess

# Convolutions learn texture from a few thousand patches, where a small ViT does not. Group norm keeps
# a patch's features apart from the rest of its batch, so that one worker and two agree. The network is one of
# timm's (an EfficientNet of 0.1 M parameters), so that open_clip alone builds it; the vocabulary is CLIP's,
# whose file open_clip carries. Mean and standard deviation are those of generated patches.
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
