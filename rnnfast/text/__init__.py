"""Text for language models: tokens, vocabularies, corpora and batches.

>>> from rnnfast.text import ContinuousBatches, load_pydoc
>>> corpus = load_pydoc()
>>> batches = ContinuousBatches(corpus.train, batch_size=20, num_steps=20)
>>> input, target = next(iter(batches))
>>> input.shape, target.shape
(torch.Size([20, 20]), torch.Size([20, 20]))
"""

from .batching import ContinuousBatches
from .corpora import SPLITS, Corpus, load_ptb, load_pydoc, load_text
from .errors import InputError
from .files import read_text, write_atomically
from .tokenization import EOS, TOKENIZERS, UNK, get_tokenizer
from .vocabulary import Vocabulary

__all__ = [
    "EOS",
    "SPLITS",
    "TOKENIZERS",
    "UNK",
    "ContinuousBatches",
    "Corpus",
    "InputError",
    "Vocabulary",
    "get_tokenizer",
    "load_ptb",
    "load_pydoc",
    "load_text",
    "read_text",
    "write_atomically",
]
