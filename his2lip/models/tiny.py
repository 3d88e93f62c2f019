"""The `tiny` backbone: what the demo and the tests train, in seconds, without a download."""

from __future__ import annotations

from typing import Any

from his2lip.models.preprocess import Preprocess

# No batch normalisation: it would make a patch's features depend on the batch's other patches, and one worker
# differ from two. The vocabulary is CLIP's own, whose file open_clip carries.
TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "timm_model_name": "test_convnext2",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}

TINY_PREPROCESS = Preprocess(
    size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear"
)
