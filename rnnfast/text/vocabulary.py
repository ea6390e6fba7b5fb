"""The numbering of tokens: a model knows words or characters by their place in a vocabulary."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError
from .files import read_text, write_atomically
from .tokenization import EOS, UNK, Tokenizer, get_tokenizer


class Vocabulary:
    """An ordered list of distinct tokens and the tokenizer that makes them.

    ``<eos>`` and ``<unk>`` are ordinary entries, there only where the text uses them. A token that
    is not in the vocabulary is read as ``<unk>``; without that entry it is an error.

    Args:
        tokens: the tokens; the place in the sequence is the token's id.
        tokenizer: name of the tokenizer: ``"word"``, ``"char"`` or ``"ptb"``.

    Raises:
        InputError: no tokens, an empty one, a repeated one, one that UTF-8 cannot hold, or an
            unknown tokenizer.

    Examples::

        >>> vocabulary = Vocabulary.from_counts({"the": 2, "<eos>": 2, "cat": 1, "<unk>": 1})
        >>> vocabulary.tokens
        ('<eos>', 'the', '<unk>', 'cat')
        >>> vocabulary.encode_text("the dog\\n")
        tensor([1, 2, 0])
    """

    def __init__(self, tokens: Sequence[str], tokenizer: str = "word") -> None:
        self.tokens = tuple(tokens)
        self.tokenizer_name = tokenizer
        self.tokenizer: Tokenizer = get_tokenizer(tokenizer)
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        if not self.tokens:
            raise InputError("a vocabulary needs at least one token, got none")
        if len(self._ids) != len(self.tokens):
            repeated = next(t for i, t in enumerate(self.tokens) if self._ids[t] != i)
            raise InputError(f"a vocabulary holds each token once, got {repeated!r} twice")
        for token in self.tokens:
            if not token or any("\ud800" <= character <= "\udfff" for character in token):
                raise InputError(f"a token is a non-empty Unicode string, got {token!r}")

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], *, tokenizer: str = "word", min_count: int = 1
    ) -> "Vocabulary":
        """Build a vocabulary from how often each token occurs, the most frequent first.

        Tokens of equal count are sorted as strings, so the order is that of TensorFlow's PTB
        tutorial, by (-count, token).

        Args:
            counts: occurrences of each token.
            tokenizer: name of the tokenizer that made the tokens.
            min_count: a token with fewer occurrences is left out and counted as ``<unk>``;
                ``<unk>`` and ``<eos>`` themselves always stay.
        """
        if min_count < 1:
            raise InputError(f"min_count must be at least 1, got {min_count}")
        kept = {t: n for t, n in counts.items() if n >= min_count or t in (UNK, EOS)}
        left_out = sum(counts.values()) - sum(kept.values())
        if left_out:
            kept[UNK] = kept.get(UNK, 0) + left_out
        return cls(sorted(kept, key=lambda token: (-kept[token], token)), tokenizer)

    @property
    def level(self) -> str:
        """``"word"`` or ``"char"``."""
        return self.tokenizer.level

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._ids

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return (self.tokens, self.tokenizer_name) == (other.tokens, other.tokenizer_name)

    def __hash__(self) -> int:
        return hash((self.tokens, self.tokenizer_name))

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens, tokenizer={self.tokenizer_name!r})"

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
        if unknown is None:
            try:
                return torch.tensor([self._ids[token] for token in tokens], dtype=torch.int64)
            except KeyError as error:
                raise InputError(
                    f"{error.args[0]!r} is not in the vocabulary of {len(self)} tokens, "
                    f"which has no {UNK} to stand for it"
                ) from None
        find = self._ids.get
        return torch.tensor([find(token, unknown) for token in tokens], dtype=torch.int64)

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
        """Split text with the vocabulary's tokenizer and turn it into ids (see :meth:`encode`)."""
        return self.encode(self.tokenizer.tokenize(text))

    def decode_text(self, ids: Iterable[int] | Tensor) -> str:
        """Turn ids into readable text (see :meth:`decode`)."""
        return self.tokenizer.detokenize(self.decode(ids))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens and tokenizer: equal for equal vocabularies, and only for those."""
        content = json.dumps([self.tokenizer_name, self.tokens], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> str:
        """The vocabulary as a JSON object with the keys ``tokenizer`` and ``tokens``."""
        content = {"tokenizer": self.tokenizer_name, "tokens": self.tokens}
        return json.dumps(content, ensure_ascii=False, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: the text is no such object.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
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
        return cls(content["tokens"], content["tokenizer"])

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
