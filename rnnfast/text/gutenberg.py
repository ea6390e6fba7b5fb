"""Project Gutenberg's header and licence, which surround the text of its books."""

import re

_marker = r"^\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK"
_start = _marker.format("START") + r"(?:.*\n){0,3}?.*?\*\*\*"  # a long title takes several lines
_book = re.compile(rf"{_start}((?s:.*?))(?:{_marker.format('END')}|\Z)", re.MULTILINE)


def strip_gutenberg(text: str) -> str:
    """A Project Gutenberg book without header and licence; any other text as it is.

    The book stands between the lines ``*** START OF THE PROJECT GUTENBERG EBOOK ...`` and
    ``*** END OF THE PROJECT GUTENBERG EBOOK ...``; empty lines at its start and end go too. Where
    a text holds several books they follow each other, an empty line between them.
    """
    books = _book.findall(text)
    if not books:
        return text
    return "\n\n".join(book.strip("\n") for book in books) + "\n"
