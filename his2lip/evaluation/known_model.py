"""A model whose features are cached: what names them is known without loading it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from his2lip.config import digest, sealed, unsealed
from his2lip.errors import ModelError
from his2lip.evaluation.once import Once
from his2lip.files import filesystem, read_file, write_file
from his2lip.resources import code_version

if TYPE_CHECKING:
    from his2lip.models import DualEncoder, Preprocess

# A sentence that is different tokens for different tokenizers.
TOKENIZED = "Ki67-positive tumour nuclei, 3,3'-diaminobenzidine (DAB), x40: unbelievably dense!"
_LIBRARIES = ("torch", "open_clip_torch", "timm", "transformers", "safetensors")
_FOLDER = "models"  # of a cache


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the keys of a model's features are made of.

    tensors, config  its tensor digest, and the digest of its architecture
    dim              D, the width of its features
    tokens           the token ids of `TOKENIZED`
    """

    tensors: str
    config: str
    dim: int
    precision: str
    preprocess: Preprocess
    tokens: list[list[int]]

    @classmethod
    def of(cls, model: DualEncoder, *, tensors: str | None = None) -> ModelFacts:
        """`tensors`: the tensor digest where the caller has computed it."""
        return cls(
            tensors=tensors or model.tensor_digest(),
            config=model.config_digest(),
            dim=model.dim,
            precision=model.arithmetic,
            preprocess=model.preprocess,
            tokens=model.tokenize([TOKENIZED]).tolist(),
        )


class KnownModel:
    """A model that is loaded when it has to encode, and not before; `load` loads it, at most once."""

    def __init__(self, facts: ModelFacts, device: str, load: Callable[[], DualEncoder]) -> None:
        self.facts, self.device, self._load = facts, device, load
        self._once = Once(self._checked)

    @property
    def loaded(self) -> DualEncoder:
        """The model. Raises ModelError where it is another one than the facts are of."""
        return self._once()

    def _checked(self) -> DualEncoder:
        model = self._load()
        if (model.read_digest or model.tensor_digest()) != self.facts.tensors:
            what = "the cache of embeddings knows other weights under the name of this model"
            raise ModelError(what, where=model.name, key=_FOLDER, fix=f"remove {_FOLDER} in the cache")
        return model


def whole(model: DualEncoder | KnownModel) -> DualEncoder:
    """The model itself, loaded now where it was not."""
    return model.loaded if isinstance(model, KnownModel) else model


def facts_key(identity: object) -> str:
    """The name under which the facts of a model are kept.

    identity  what decides its weights: their contents, a seed, the precision, how two are blended
    Other code or libraries may load the same files as another model, so their versions count too.
    """
    return digest({"of": identity, "code": code_version(), "libraries": dict(map(_installed, _LIBRARIES))})


def read_facts(cache: str, key: str) -> ModelFacts | None:
    """The facts of a model in a cache; None where there are none, or damaged ones.

    Raises StorageError, as `answers`.
    """
    from his2lip.models import Preprocess

    system, base = filesystem(cache)
    try:
        tree = unsealed(json.loads(read_file(system, f"{base}/{_FOLDER}/{key}.json")))
        preprocess: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in tree.pop("preprocess").items()
        }
        return ModelFacts(**tree, preprocess=Preprocess(**preprocess))
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_facts(cache: str, key: str, facts: ModelFacts) -> None:
    """Keeps the facts of a model in a cache."""
    system, base = filesystem(cache)
    tree: dict[str, Any] = asdict(facts)
    write_file(system, f"{base}/{_FOLDER}/{key}.json", json.dumps(sealed(tree)).encode())


def _installed(package: str) -> tuple[str, str | None]:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return package, None
