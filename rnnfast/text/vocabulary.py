"""The numbering of tokens: a model knows words or characters by their place in a vocabulary."""

import dataclasses
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cleaning import Cleaning
from .errors import InputError
from .files import read_text, write_atomically
from .subword import SubwordTokenizer
from .tokenization import EOS, UNK, Tokenizer, get_tokenizer


def _order(entry: tuple[str, int]) -> tuple[int, str]:
    """The most frequent first, equally frequent ones as strings."""
    token, count = entry
    return -count, token


class Vocabulary:
    """An ordered list of distinct tokens, the tokenizer that makes them, and the text's cleaning.

    ``<eos>`` and ``<unk>`` are ordinary entries, there only where the text uses them. A token that
    is not in the vocabulary is read as ``<unk>``; without that entry it is an error.

    Args:
        tokens: the tokens; the place in the sequence is the token's id.
        tokenizer: name of the tokenizer, ``"word"``, ``"char"``, ``"ptb"`` or ``"ptb_char"``; or a
            :class:`SubwordTokenizer`, whose tokens are then those of the vocabulary.
        cleaning: what is done to a text before it is split into tokens. None: nothing.

    Raises:
        InputError: no tokens, an empty one, a repeated one, one that UTF-8 cannot hold, an
            unknown tokenizer, or tokens other than those of the sub-word tokenizer.

    Examples::

        >>> vocabulary = Vocabulary.from_counts({"the": 2, "<eos>": 2, "cat": 1, "<unk>": 1})
        >>> vocabulary.tokens
        ('<eos>', 'the', '<unk>', 'cat')
        >>> vocabulary.encode_text("the dog\\n")
        tensor([1, 2, 0])
    """

    def __init__(
        self,
        tokens: Sequence[str],
        tokenizer: str | SubwordTokenizer = "word",
        *,
        cleaning: Cleaning | None = None,
    ) -> None:
        self.tokens = tuple(tokens)
        self.tokenizer: Tokenizer = (
            get_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        )
        self.cleaning = cleaning
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        if not self.tokens:
            raise InputError("a vocabulary needs at least one token, got none")
        if len(self._ids) != len(self.tokens):
            repeated = next(t for i, t in enumerate(self.tokens) if self._ids[t] != i)
            raise InputError(f"a vocabulary holds each token once, got {repeated!r} twice")
        for token in self.tokens:
            if not token or any("\ud800" <= character <= "\udfff" for character in token):
                raise InputError(f"a token is a non-empty Unicode string, got {token!r}")
        if isinstance(self.tokenizer, SubwordTokenizer) and self.tokens != self.tokenizer.tokens:
            raise InputError("the tokens of a sub-word vocabulary are those of its tokenizer")

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        *,
        tokenizer: str = "word",
        min_count: int = 1,
        max_size: int | None = None,
        specials: Sequence[str] = (),
        cleaning: Cleaning | None = None,
    ) -> "Vocabulary":
        """Build a vocabulary from how often each token occurs, the most frequent first.

        Tokens of equal count are sorted as strings, so the order is that of TensorFlow's PTB
        tutorial, by (-count, token).

        Args:
            counts: occurrences of each token.
            tokenizer: name of the tokenizer that made the tokens.
            min_count: a token with fewer occurrences is left out and counted as ``<unk>``;
                ``<unk>`` and ``<eos>`` themselves always stay.
            max_size: the largest number of entries, ``<unk>`` and the specials included; the
                least frequent tokens beyond it are left out and counted as ``<unk>``. None: no
                limit.
            specials: tokens that stand first, in this order, whatever their count.
            cleaning: what was done to the text, see :class:`Vocabulary`.

        Raises:
            InputError: a value is out of range.
        """
        if min_count < 1:
            raise InputError(f"min_count must be at least 1, got {min_count}")
        if isinstance(specials, str):
            raise InputError(f"specials must be a sequence of tokens, got the string {specials!r}")
        always = {t: n for t, n in counts.items() if t in (UNK, EOS) or t in specials}
        always |= {token: counts.get(token, 0) for token in specials}
        others = {t: n for t, n in counts.items() if n >= min_count and t not in always}
        total = sum(counts.values())
        limit = math.inf if max_size is None else max_size
        covered = sum(always.values()) + sum(others.values())
        if covered < total or len(always) + len(others) > limit:
            always.setdefault(UNK, 0)
        if len(always) + len(others) > limit:
            if limit < len(always):
                raise InputError(
                    f"max_size must be at least {len(always)}, room for {', '.join(always)}, "
                    f"got {max_size}"
                )
            others = dict(sorted(others.items(), key=_order)[: limit - len(always)])
        kept = always | others
        if UNK in kept:
            kept[UNK] += total - sum(kept.values())
        ordered = [token for token, _ in sorted(kept.items(), key=_order) if token not in specials]
        return cls([*specials, *ordered], tokenizer, cleaning=cleaning)

    @classmethod
    def from_text(
        cls,
        text: str,
        tokenizer: str = "word",
        *,
        min_count: int = 1,
        max_size: int | None = None,
        specials: Sequence[str] = (),
        cleaning: Cleaning | None = None,
    ) -> "Vocabulary":
        """Build the vocabulary of a text.

        Args:
            text: the raw text.
            tokenizer: name of a tokenizer, see :class:`Vocabulary`; or ``"subword"``, which learns
                sub-words from the text (see :meth:`SubwordTokenizer.train`).
            min_count, max_size, specials, cleaning: see :meth:`from_counts`. For sub-words
                ``max_size`` is the number of tokens, 8,000 unless given.

        Raises:
            InputError: the text is empty, or a value is out of range.
            ImportError: sub-words need the ``tokenizers`` package, the extra ``subword``.

        Examples::

            >>> Vocabulary.from_text("Ajá, aj!", "char", cleaning=Cleaning(lower=True)).tokens
            ('a', 'j', ' ', '!', ',', 'á')
        """
        if cleaning is not None:
            text = cleaning(text)
        if tokenizer == "subword":
            subword = SubwordTokenizer.train(
                [text], size=max_size, min_count=min_count, specials=specials
            )
            return cls(subword.tokens, subword, cleaning=cleaning)
        return cls.from_counts(
            Counter(get_tokenizer(tokenizer).tokenize(text)),
            tokenizer=tokenizer,
            min_count=min_count,
            max_size=max_size,
            specials=specials,
            cleaning=cleaning,
        )

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer."""
        return self.tokenizer.name

    @property
    def level(self) -> str:
        """``"word"``, ``"char"`` or ``"subword"``."""
        return self.tokenizer.level

    @property
    def line_end(self) -> int | None:
        """The id of the token that ends a line, or None where there is none."""
        return self._ids.get(self.tokenizer.line_end)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return (self.tokens, self._settings) == (other.tokens, other._settings)

    def __hash__(self) -> int:
        return hash((self.tokens, self.tokenizer.name, self.cleaning))

    def __repr__(self) -> str:
        cleaning = "" if self.cleaning is None else f", cleaning={self.cleaning}"
        return f"Vocabulary({len(self)} tokens, tokenizer={self.tokenizer.name!r}{cleaning})"

    @property
    def _settings(self) -> dict[str, Any]:
        """What :meth:`to_json` writes beside the tokens."""
        settings: dict[str, Any] = {"tokenizer": self.tokenizer.name}
        if isinstance(self.tokenizer, SubwordTokenizer):
            settings["subword"] = self.tokenizer.definition
        if self.cleaning is not None:
            settings["cleaning"] = dataclasses.asdict(self.cleaning)
        return settings

    def id_of(self, token: str) -> int | None:
        """The id of a token, or None where the vocabulary does not hold it."""
        return self._ids.get(token)

    def encode(self, tokens: Iterable[str]) -> Tensor:
        """Turn tokens into ids.

        Shape:
            Output: ``(number of tokens)``, int64.

        Raises:
            InputError: a token is not in the vocabulary, and neither is ``<unk>``.
        """
        unknown = self._ids.get(UNK)
        find = self._ids.__getitem__ if unknown is None else lambda t: self._ids.get(t, unknown)
        try:
            return torch.from_numpy(np.fromiter(map(find, tokens), np.int64))
        except KeyError as error:
            raise InputError(
                f"{error.args[0]!r} is not in the vocabulary of {len(self)} tokens, "
                f"which has no {UNK} to stand for it"
            ) from None

    def decode(self, ids: Iterable[int] | Tensor) -> list[str]:
        """Turn ids, ``(number of tokens)``, into tokens.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        for index in ids:
            if not 0 <= index < len(self):
                raise InputError(f"id {index} is outside the vocabulary of {len(self)} tokens")
        return [self.tokens[index] for index in ids]

    def encode_text(self, text: str) -> Tensor:
        """Clean text, split it with the tokenizer and turn it into ids (see :meth:`encode`)."""
        if self.cleaning is not None:
            text = self.cleaning(text)
        return self.encode(self.tokenizer.tokenize(text))

    def decode_text(self, ids: Iterable[int] | Tensor) -> str:
        """Turn ids into readable text (see :meth:`decode`)."""
        return self.tokenizer.detokenize(self.decode(ids))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens, tokenizer and cleaning: equal for equal vocabularies only."""
        settings = self._settings
        content = [settings.pop("tokenizer"), self.tokens]
        if settings:
            content.append(settings)
        digest = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(digest.encode()).hexdigest()

    def to_json(self) -> str:
        """The vocabulary as a JSON object.

        Its keys are ``tokenizer`` (the name) and ``tokens``; for sub-words also ``subword`` (the
        definition of a :class:`SubwordTokenizer`), with a cleaning also ``cleaning`` (the values of
        a :class:`Cleaning`).
        """
        content = self._settings | {"tokens": self.tokens}
        return json.dumps(content, ensure_ascii=False, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: the text is no such object.
            ImportError: sub-words need the ``tokenizers`` package, the extra ``subword``.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"a vocabulary is a JSON object: {error}") from None
        if (
            not isinstance(content, dict)
            or not isinstance(content.get("tokenizer"), str)
            or not isinstance(content.get("tokens"), list)
            or not all(isinstance(token, str) for token in content["tokens"])
        ):
            raise InputError(
                "a vocabulary is a JSON object with a string 'tokenizer' and strings 'tokens'"
            )
        tokenizer: str | SubwordTokenizer = content["tokenizer"]
        if tokenizer == SubwordTokenizer.name:
            tokenizer = SubwordTokenizer(content.get("subword"))
        cleaning = content.get("cleaning")
        if cleaning is not None:
            names = [field.name for field in dataclasses.fields(Cleaning)]
            if not isinstance(cleaning, dict) or cleaning.keys() != set(names):
                raise InputError(f"the cleaning of a vocabulary has the keys {', '.join(names)}")
            cleaning = Cleaning(**cleaning)
        return cls(content["tokens"], tokenizer, cleaning=cleaning)

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary to a JSON file."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Read a file that :meth:`save` wrote.

        Raises:
            InputError: the file cannot be read or does not hold a vocabulary.
        """
        text = read_text(path)
        try:
            return cls.from_json(text)
        except InputError as error:
            raise InputError(f"{Path(path)}: {error}") from None
