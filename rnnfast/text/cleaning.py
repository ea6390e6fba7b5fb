"""What is taken out of a raw text before it is split into tokens, as the tutorials do."""

import re
import unicodedata
from dataclasses import dataclass

from .errors import InputError

ENGLISH = "abcdefghijklmnopqrstuvwxyz"
"""The lower-case letters of English."""

SPANISH = "abcdefghijklmnñopqrstuvwxyzáéíóúü"
"""The lower-case letters of Spanish, with those that carry an accent or a diaeresis."""


@dataclass(frozen=True)
class Cleaning:
    """Lower case, and a set of characters to which a text is reduced.

    A model knows only texts that were cleaned as its training text was, so a
    :class:`~rnnfast.text.Vocabulary` keeps its cleaning and applies it to every text it encodes.

    Args:
        lower: turn the text into lower case.
        keep: the characters that stay, as one string; each run of any others becomes one
            ``replacement``. The text is composed first (Unicode normal form C), so that an ``n``
            with a combining tilde is kept as ``ñ``. Line ends go too, and with them ``<eos>``,
            unless ``"\\n"`` is among the characters. None: all stay.
        replacement: what stands for the characters that do not stay; may be empty.

    Raises:
        InputError: a value is of another type, ``keep`` is empty, or UTF-8 cannot hold it.

    Examples::

        >>> Cleaning(lower=True, keep=SPANISH)("Capítulo 2.º -- QUE TRATA")
        'capítulo que trata'
    """

    lower: bool = False
    keep: str | None = None
    replacement: str = " "

    def __post_init__(self) -> None:
        if not isinstance(self.lower, bool):
            raise InputError(f"lower must be True or False, got {self.lower!r}")
        if self.keep is not None and not (_is_text(self.keep) and self.keep):
            raise InputError(
                f"keep must be a string of the characters that stay, got {self.keep!r}"
            )
        if not _is_text(self.replacement):
            raise InputError(f"replacement must be a string, got {self.replacement!r}")

    def __call__(self, text: str) -> str:
        """The cleaned text."""
        if self.lower:
            text = text.lower()
        if self.keep is None:
            return text
        kept = re.escape(unicodedata.normalize("NFC", self.keep))
        composed = unicodedata.normalize("NFC", text)
        return re.sub(f"[^{kept}]+", lambda _: self.replacement, composed)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)
