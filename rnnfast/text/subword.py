"""Sub-words: frequent pieces of words, learned from a text, that spell every text there is.

They come from the ``tokenizers`` package, the extra ``subword``.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from .errors import InputError

SUBWORD_MODELS = ("bpe", "unigram")


class SubwordTokenizer:
    """Pieces of words over the 256 bytes of UTF-8: :meth:`detokenize` gives the text back exactly.

    Made by :meth:`train`. A token is a string of letters that stand for bytes (``Ġ`` for the
    blank, ``Ċ`` for the line end), so a token may hold a part of a character; bytes that make no
    character are read back as U+FFFD.

    Args:
        definition: the content of a ``tokenizer.json`` of the ``tokenizers`` package.

    Attributes:
        definition: the same; with it the tokenizer can be made anew.
        tokens: all tokens, each at its id.

    Raises:
        InputError: the definition is not that of a byte-level tokenizer.
        ImportError: the ``tokenizers`` package is not installed.

    Source: R. Sennrich, B. Haddow, A. Birch, "Neural Machine Translation of Rare Words with
    Subword Units", ACL 2016 (BPE); T. Kudo, "Subword Regularization", ACL 2018 (unigram);
    A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (over bytes).

    Examples::

        >>> tokenizer = SubwordTokenizer.train(["the cat sat on the mat\\n"], size=262)
        >>> tokenizer.tokenize("the hat")
        ['the', 'Ġ', 'h', 'at']
    """

    name = "subword"
    level = "subword"
    line_end = "Ċ"

    def __init__(self, definition: dict[str, Any]) -> None:
        library = _library()
        try:
            self._tokenizer = library.Tokenizer.from_str(json.dumps(definition))
        except Exception as error:  # the package raises no narrower type
            raise InputError(f"this defines no sub-word tokenizer: {error}") from None
        # A definition may be that of a model that reads one sentence, of a length of its own.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.definition = definition
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.tokens = tuple(sorted(ids, key=ids.__getitem__))
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        if sorted(ids.values()) != list(range(len(ids))) or not ids.keys() >= set(alphabet):
            raise InputError("a sub-word tokenizer numbers its tokens from 0 and has every byte")
        self._specials = {
            token.content for token in self._tokenizer.get_added_tokens_decoder().values()
        }
        self._decoder = library.decoders.ByteLevel()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        size: int | None = None,
        min_count: int = 2,
        specials: Sequence[str] = (),
        model: str = "bpe",
    ) -> "SubwordTokenizer":
        """Learn sub-words from texts.

        Args:
            texts: what to learn from.
            size: number of tokens, the 256 bytes and the specials included; fewer where the texts
                do not have as many pieces. Default: 8,000.
            min_count: a pair of tokens that occurs less often is not merged (BPE only).
            specials: tokens that are never split, with the first ids in this order. Where a text
                spells one out, it is that token.
            model: ``"bpe"`` (pairs are merged, the most frequent first) or ``"unigram"`` (pieces
                that the likeliest segmentation needs least are dropped; takes longer).

        Raises:
            InputError: a value is out of range.
            ImportError: the ``tokenizers`` package is not installed.
        """
        library = _library()
        if model not in SUBWORD_MODELS:
            raise InputError(
                f"unknown model {model!r}: expected one of {', '.join(SUBWORD_MODELS)}"
            )
        if min_count < 1:
            raise InputError(f"min_count must be at least 1, got {min_count}")
        if size is None:
            size = 8_000
        smallest = 256 + len(specials)
        if size < smallest:
            raise InputError(
                f"size must be at least {smallest}, one token for each byte and special, got {size}"
            )
        if size > _LARGEST_SIZE:
            raise InputError(f"size must be at most {_LARGEST_SIZE}, got {size}")
        options = {
            "vocab_size": size,
            "special_tokens": list(specials),
            "initial_alphabet": library.pre_tokenizers.ByteLevel.alphabet(),
            "show_progress": False,
        }
        if model == "bpe":
            tokenizer = library.Tokenizer(library.models.BPE())
            trainer = library.trainers.BpeTrainer(min_frequency=min(min_count, 2**63), **options)
        else:
            tokenizer = library.Tokenizer(library.models.Unigram())
            trainer = library.trainers.UnigramTrainer(**options)
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        tokenizer.train_from_iterator((p for text in texts for p in _pieces(text)), trainer)
        return cls(json.loads(tokenizer.to_str()))

    def tokenize(self, text: str) -> list[str]:
        """Split ``text`` into tokens.

        Raises:
            InputError: UTF-8 cannot hold the text, or the definition has no token for it.
        """
        tokens: list[str] = []
        try:
            for piece in _pieces(text):
                tokens += self._tokenizer.encode(piece, add_special_tokens=False).tokens
        except Exception as error:  # as above; a TypeError where UTF-8 cannot hold the text
            raise InputError(f"cannot split {text!r:.40} into sub-words: {error}") from None
        return tokens

    def detokenize(self, tokens: Sequence[str]) -> str:
        """Join ``tokens`` into the text they were made from."""
        return "".join(
            "".join(run) if is_special else self._decoder.decode(list(run))
            for is_special, run in groupby(tokens, key=self._specials.__contains__)
        )


# The package takes some 70 bytes for each token before it learns any, and ends the process where
# it gets none.
_LARGEST_SIZE = 2**24

_PIECE = 2**16
_cut = re.compile(r"\S\n(?=\S)")


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces, for the package needs some 200 bytes for each character at a time.

    It is cut where a single line end stands between two other characters, which is a place where
    no token reaches across.
    """
    start = 0
    while cut := _cut.search(text, start + _PIECE):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError("sub-words need tokenizers: pip install rnnfast[subword]") from None
    return tokenizers
