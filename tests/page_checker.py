"""Whether a page is sound and complete in itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = ("meta", "br", "img", "link")


class Checker(HTMLParser):
    """Whether tags are closed in order; collects words, labels of pictures, and what is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.labels: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.targets += [str(given[name]) for name in ("src", "href", "xlink:href") if name in given]
        self.ids += [str(given["id"])] if "id" in given else []
        self.labels += [given.get("aria-label") or ""] if given.get("role") == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All words, one space between them."""
        return re.sub(r"\s+", " ", " ".join(self.words))


def checked(text: str) -> Checker:
    """A page that needs nothing from elsewhere, runs nothing, and has each of its anchors once."""
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert not checker.tags & {"script", "img", "link", "iframe"}
    assert all(target.startswith("#") for target in checker.targets), "the page needs nothing from elsewhere"
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(set(checker.ids)) == len(checker.ids)
    assert {target[1:] for target in checker.targets} <= set(checker.ids)
    return checker
