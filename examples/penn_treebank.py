"""The Penn Treebank word by word, as in TensorFlow's tutorial: the small model, step by step.

python examples/penn_treebank.py FOLDER

The folder holds ptb.train.txt, ptb.valid.txt and ptb.test.txt, which "rnnfast download ptb FOLDER"
gets, or any other text in files of these names.
"""

import sys

from rnnfast import summary
from rnnfast.language_model import LanguageModel, evaluate, fit, preset, sample
from rnnfast.text import ContinuousBatches, load_ptb

corpus = load_ptb(sys.argv[1])
config = preset("small")
model = LanguageModel(len(corpus.vocabulary), config.model)
print(summary(model))
result = fit(model, corpus, config.training)
print(f"perplexity: valid {result.best.valid_perplexity:.2f}, test {result.test_perplexity:.2f}")
batches = ContinuousBatches(corpus.test, batch_size=20, num_steps=35, keep_remainder=True)
print(f"accuracy: {evaluate(model, batches, accuracy=True).accuracy:.1%}")
print(sample(model, corpus.vocabulary, length=50))
