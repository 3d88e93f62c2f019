"""The models that have a name of their own: what each is, whence its weights come, under which licence."""

from __future__ import annotations

from dataclasses import dataclass

_HUB = "huggingface.co/"
_COPY = "load it once with a connection, or type local-dir:PATH for a copy"
_GATED = "ask for access on that page, type `hf auth login`, then load it once with a connection"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A named model.

    source      how it loads: ARCH:tag or hf-hub:ORG/NAME (open_clip), transformers:ORG/NAME (a CLIPModel),
                package:ORG/NAME (its authors' package, a frozen baseline); None where it needs no weights
    commercial  whether the licence allows commercial use; None where it is not stated
    mend        what to type where the weights are missing
    """

    name: str
    what: str
    source: str | None
    weights: str
    licence: str
    commercial: bool | None = True
    mend: str = _COPY

    @property
    def frozen(self) -> bool:
        """Whether it can only be compared with: it runs in its authors' package, not in open_clip."""
        return (self.source or "").startswith("package:")

    @property
    def repository(self) -> str | None:
        """The hub repository that the weights come from; None where they come from none."""
        return self.weights.removeprefix(_HUB) if self.weights.startswith(_HUB) else None


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="tiny",
            what="small convolutional and causal towers at 64 px, random by seed",
            source=None,
            weights="none: drawn from the seed",
            licence="Apache-2.0 (ours)",
            mend="nothing: it needs no download",
        ),
        Backbone(
            name="clip",
            what="OpenAI CLIP, ViT-B/32",
            source="ViT-B-32-quickgelu:openai",
            weights="huggingface.co/timm/vit_base_patch32_clip_224.openai",
            licence="MIT",
        ),
        Backbone(
            name="plip",
            what="PLIP: CLIP ViT-B/32 tuned on pathology images and posts",
            source="transformers:vinid/plip",
            weights="huggingface.co/vinid/plip",
            licence="not stated by its authors",
            commercial=None,
            mend="load it once with a connection, or type the PATH of a folder with its files",
        ),
        Backbone(
            name="biomedclip",
            what="BiomedCLIP: ViT-B/16 and PubMedBERT, 256 tokens",
            source="hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            weights="huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            licence="MIT",
        ),
        Backbone(
            name="musk",
            what="MUSK: BEiT-3 large at 384 px, in its authors' package; frozen",
            source="package:xiangjx/musk",
            weights="huggingface.co/xiangjx/musk",
            licence="CC BY-NC-ND 4.0, not for commercial use, gated",
            commercial=False,
            mend=_GATED,
        ),
        Backbone(
            name="conch",
            what="CONCH: CoCa ViT-B/16 at 448 px, in its authors' package; frozen",
            source="package:MahmoodLab/conch",
            weights="huggingface.co/MahmoodLab/conch",
            licence="CC BY-NC-ND 4.0, not for commercial use, gated",
            commercial=False,
            mend=f"{_GATED}, or type local-dir:PATH for a copy in open_clip's format",
        ),
    )
}


def list_backbones() -> list[Backbone]:
    """The models known by a name of their own; every open_clip name loads too."""
    return list(BACKBONES.values())
