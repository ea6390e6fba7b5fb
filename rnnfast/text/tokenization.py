"""From text to tokens and back: characters and words, of raw text and of the Penn Treebank's."""

import re
from collections.abc import Sequence
from typing import Protocol

from .errors import InputError

EOS = "<eos>"
"""The token that stands for the end of a line."""

UNK = "<unk>"
"""The token that stands for every word outside the vocabulary."""

EOD = "<eod>"
"""The token between documents: it stands before each text of a folder of texts."""


class Tokenizer(Protocol):
    """What a tokenizer does; both directions work on plain strings."""

    name: str
    """Under which files know the tokenizer."""

    level: str
    """``"word"``, ``"char"`` or ``"subword"``."""

    line_end: str
    """The token that ends a line."""

    def tokenize(self, text: str) -> list[str]:
        """Split ``text`` into tokens."""
        ...

    def detokenize(self, tokens: Sequence[str]) -> str:
        """Join ``tokens`` into readable text."""
        ...


class CharTokenizer:
    """Each Unicode code point is a token; :meth:`detokenize` gives the text back exactly."""

    name = "char"
    level = "char"
    line_end = "\n"

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def detokenize(self, tokens: Sequence[str]) -> str:
        return "".join(tokens)


class WordTokenizer:
    """Words and punctuation of raw text; each line end is :data:`EOS`.

    A word keeps its inner hyphens, apostrophes and dots (``don't``, ``rnnfast.text``), an
    abbreviation its last dot (``e.g.``), and a call its empty brackets (``len()``). Other marks are
    tokens of their own, operators of two signs such as ``==`` together; so is a word in angle
    brackets, such as ``<unk>``.
    """

    name = "word"
    level = "word"
    line_end = EOS

    _token = re.compile(
        r"""
        \n
        | <\w+>                             # <unk>
        | (?:[^\W\d_]\.){2,}                # e.g.
        | \w+ (?: [-.'’] \w+ )* (?: \(\) )? # don't, rnnfast.text, len()
        | \.{3} | [=!<>]= | -> | \*\* | //
        | [^\w\s]
        """,
        re.VERBOSE,
    )

    def tokenize(self, text: str) -> list[str]:
        return [EOS if token == "\n" else token for token in self._token.findall(text)]

    def detokenize(self, tokens: Sequence[str]) -> str:
        text = ""
        glue = True  # whether the next token follows without a blank
        open_quotes = set()
        for token in tokens:
            if token == EOS:
                text += "\n"
                glue = True
                open_quotes.clear()
                continue
            closes = token in _CLOSING or token in open_quotes
            text += token if glue or closes else " " + token
            glue = token in _OPENING
            if token in _QUOTES:
                glue = token not in open_quotes
                open_quotes ^= {token}
        return text


_CLOSING = frozenset(". , ; : ! ? ) ] } % ’ ” » ...".split())
_OPENING = frozenset("( [ { $ £ € ‘ “ « ¿ ¡".split())
_QUOTES = frozenset("\" '".split())


class PTBTokenizer:
    """Text that was split into words beforehand, one sentence a line, as the Penn Treebank files.

    Words stand between blanks and each line end is :data:`EOS`, as in the reader of TensorFlow's
    PTB tutorial (``f.read().replace("\\n", "<eos>").split()``; there a blank stands before each
    line end, here none is needed).
    """

    name = "ptb"
    level = "word"
    line_end = EOS

    _clitic = re.compile(r" (?=(?:n't|'\w+|')(?!\S))")

    def tokenize(self, text: str) -> list[str]:
        return text.replace("\n", f" {EOS} ").split()

    def detokenize(self, tokens: Sequence[str]) -> str:
        lines = " ".join(tokens).split(EOS)
        return "\n".join(
            self._clitic.sub("", line.strip()).replace("$ ", "$").replace(" %", "%")
            for line in lines
        )


class PTBCharTokenizer:
    """The characters of text such as the Penn Treebank's, as its character files name them.

    A blank is the token ``_`` and a line end is :data:`EOS`; every other character stands for
    itself. So the text ``"a cat\\n"`` is ``a _ c a t <eos>``.
    """

    name = "ptb_char"
    level = "char"
    line_end = EOS

    _token_of = {" ": "_", "\n": EOS}
    _character_of = {token: character for character, token in _token_of.items()}

    def tokenize(self, text: str) -> list[str]:
        return [self._token_of.get(character, character) for character in text]

    def detokenize(self, tokens: Sequence[str]) -> str:
        return "".join(self._character_of.get(token, token) for token in tokens)


TOKENIZERS: dict[str, Tokenizer] = {
    tokenizer.name: tokenizer
    for tokenizer in (CharTokenizer(), WordTokenizer(), PTBTokenizer(), PTBCharTokenizer())
}
"""The tokenizers that need no training, by name."""


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name: ``"char"``, ``"word"``, ``"ptb"`` or ``"ptb_char"``."""
    if name not in TOKENIZERS:
        raise InputError(f"unknown tokenizer {name!r}: expected one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]
