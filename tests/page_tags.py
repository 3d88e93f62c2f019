"""What a page would fetch: by a parser, because plotly's own script has tags and addresses in its strings."""

from __future__ import annotations

from html.parser import HTMLParser


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


def fetched(page: str) -> list[str]:
    """Tags and addresses by which a browser would fetch something beside the page."""
    links = [f"<{name}>" for name, _ in tags(page) if name in ("link", "iframe", "object", "embed")]
    sources = [attributes.get("src", "") for _, attributes in tags(page)]
    return links + [source for source in sources if source and not source.startswith("data:")]
