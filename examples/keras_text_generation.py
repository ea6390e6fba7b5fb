"""Text generation with a stateful character model, as in Keras' tutorial.

python examples/keras_text_generation.py FILE

The file is any text of some hundred thousand characters; the tutorial's is Shakespeare.
"""

import sys

from rnnfast import summary
from rnnfast.language_model import LanguageModel, evaluate_text, fit, preset, stream_text

config = preset("keras").replace(path=sys.argv[1])
corpus = config.data.load()
model = LanguageModel(len(corpus.vocabulary), config.model)
print(summary(model))
fit(model, corpus, config.training)
print(f"{evaluate_text(model, corpus.test).bits_per_token:.3f} bits per character")
for temperature in (0.5, 1.0):
    print(f"\ntemperature {temperature}:")
    for piece in stream_text(model, corpus.vocabulary, length=500, temperature=temperature):
        print(piece, end="", flush=True)
