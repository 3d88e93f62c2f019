"""What a page would fetch: by a parser, because plotly's own script has tags and addresses in its strings."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote


class _Tags(HTMLParser):
    """Every tag of a page with its attributes; the content of scripts is text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def tags(page: str) -> list[tuple[str, dict[str, str]]]:
    """(name, attributes) of every tag of a page, in order."""
    parser = _Tags()
    parser.feed(page)
    assert parser.found
    return parser.found


def dead_links(path: Path) -> list[str]:
    """The links of a page that lead neither to a place on it nor to a file."""
    found = tags(path.read_text(encoding="utf-8"))
    places = {f"#{attributes['id']}" for _, attributes in found if "id" in attributes}
    links = {attributes.get("href", "") for name, attributes in found if name == "a"}
    return [x for x in sorted(links) if x not in places and not (path.parent / unquote(x)).is_file()]


def fetched(page: str) -> list[str]:
    """Tags and addresses by which a browser would fetch something beside the page."""
    links = [f"<{name}>" for name, _ in tags(page) if name in ("link", "iframe", "object", "embed")]
    sources = [attributes.get("src", "") for _, attributes in tags(page)]
    return links + [source for source in sources if source and not source.startswith("data:")]
