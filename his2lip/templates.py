"""HTML pages from Jinja2 templates: every value that a page shows is escaped, and has no secrets."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from his2lip.errors import redact

_PACKAGE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page of his2lip/ROOM/templates/NAME.html, given as `ROOM/NAME.html`, with `values` in it."""
    return _environment().get_template(template).render(**values)


def trusted(markup: str) -> Markup:
    """HTML that this program or a library has made, which a template must not escape again."""
    return Markup(markup)


def percent(value: float | None) -> str:
    """A fraction as percent with two decimals; an absent one is empty."""
    return "" if value is None else f"{100 * value:.2f}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=_RoomLoader([_PACKAGE]),
        autoescape=True,
        undefined=StrictUndefined,  # a value that is missing is an error, not an empty place
        finalize=_without_secrets,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    return environment


def _without_secrets(value: Any) -> Any:
    return redact(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class _RoomLoader(FileSystemLoader):
    """Finds `ROOM/NAME.html` in the folder `templates` of that room."""

    def get_source(self, environment: Environment, template: str) -> Any:
        room, _, name = template.partition("/")
        return super().get_source(environment, f"{room}/templates/{name}")
