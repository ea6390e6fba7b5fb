"""Text for language models: tokens, vocabularies, corpora and batches.

>>> from rnnfast.text import ContinuousBatches, load_pydoc
>>> corpus = load_pydoc()
>>> batches = ContinuousBatches(corpus.train, batch_size=20, num_steps=20)
>>> input, target = next(iter(batches))
>>> input.shape, target.shape
(torch.Size([20, 20]), torch.Size([20, 20]))
"""

from .batching import Batches, ContinuousBatches, OverlappingWindows, RandomWindows
from .cleaning import ENGLISH, SPANISH, Cleaning
from .corpora import SPLITS, Corpus, Splits, load_ptb, load_pydoc, load_text
from .download import PTB_SHA256, PTB_URL, DownloadError, download_file, download_ptb
from .encoded import encode_corpus, load_encoded
from .errors import InputError
from .files import read_text, text_files, write_atomically
from .gutenberg import strip_gutenberg
from .scanning import count_tokens
from .subword import SubwordTokenizer
from .token_file import TokenFile, encode_file
from .tokenization import EOD, EOS, TOKENIZERS, UNK, get_tokenizer
from .vocabulary import Vocabulary

__all__ = [
    "ENGLISH",
    "EOD",
    "EOS",
    "PTB_SHA256",
    "PTB_URL",
    "SPANISH",
    "SPLITS",
    "TOKENIZERS",
    "UNK",
    "Batches",
    "Cleaning",
    "ContinuousBatches",
    "Corpus",
    "DownloadError",
    "InputError",
    "OverlappingWindows",
    "RandomWindows",
    "Splits",
    "SubwordTokenizer",
    "TokenFile",
    "Vocabulary",
    "download_file",
    "download_ptb",
    "count_tokens",
    "encode_corpus",
    "encode_file",
    "get_tokenizer",
    "load_encoded",
    "load_ptb",
    "load_pydoc",
    "load_text",
    "read_text",
    "strip_gutenberg",
    "text_files",
    "write_atomically",
]
