"""The basis of an answer: what it rests on, as the same fields in every output."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from his2lip.models import DualEncoder

RESEARCH_USE = "research use only, not for diagnosis"


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What an answer rests on, one sentence without a full stop per field.

    The terminal, CSV files, pages, maps, GeoJSON and the served JSON derive their fields from this class.

    trained_on     the datasets, whether they were generated, and what the weights began as
    calibrated_on  dataset, split and size of the calibration
    use            what the answer may be used for
    biomarker      whether the biomarker that was asked for was seen in training
    organ          whether the organ was seen in training
    scale          microns per pixel and their source, and how far the image was shrunk
    familiarity    distance from the training patches, and the limit
    coverage       share of the tissue that was seen
    precision      of the features, and how others differ from fp32
    """

    trained_on: str
    calibrated_on: str
    use: str = RESEARCH_USE
    biomarker: str
    organ: str
    scale: str
    familiarity: str
    coverage: str
    precision: str = "fp32"

    def by_title(self) -> dict[str, str]:
        """The fields for people: title -> sentence."""
        return {name.replace("_", " "): text for name, text in asdict(self).items()}


BASIS_FIELDS = tuple(field.name for field in fields(Basis))


def stated_precision(model: DualEncoder) -> str:
    """The value of `Basis.precision`."""
    if model.precision == "fp32":
        return "fp32"
    return f"{model.arithmetic}: features differ by about 1 % of their length from fp32, which limits are for"


@dataclass(frozen=True)
class Scale:
    """Microns per pixel of an image, and where they are from."""

    mpp: float | None = None
    source: Literal["file", "option", "unknown"] = "unknown"

    @classmethod
    def of(cls, *, file: float | None, option: float | None) -> Scale:
        """The user's value where there is one, else the file's."""
        if option is not None:
            return cls(option, "option")
        return cls() if file is None else cls(file, "file")

    def __str__(self) -> str:
        return "unknown" if self.mpp is None else f"{self.mpp:.4g} µm per pixel ({self.source})"
