"""HIS2LIP: fine-tune, sweep, benchmark and choose vision-language models for immunohistochemistry (IHC)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from his2lip.models import load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """`from his2lip import load_model`, without importing torch for those who only want the version."""
    if name == "load_model":
        from his2lip.models import load_model

        return load_model
    raise AttributeError(name)
