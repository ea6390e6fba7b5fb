"""Don Quijote letter by letter, as when networks are written from scratch: RNN, LSTM and GRU.

python examples/don_quijote.py FILE

The file is any text of which at least 30,752 letters and blanks are left when those of Spanish are
kept. A chart that compares the three is written to don_quijote.png.
"""

import sys

from rnnfast.language_model import LanguageModel, fit, plot_history, preset, sample

history = {}
for cell in ("rnn", "lstm", "gru"):
    config = preset(f"quijote-{cell}").replace(path=sys.argv[1])
    corpus = config.data.load()
    model = LanguageModel(len(corpus.vocabulary), config.model)
    result = fit(model, corpus, config.training)
    history[cell] = result.epochs
    trained = result.epochs[-1].train_perplexity
    print(f"{cell}: perplexity {trained:.2f} in training, {result.test_perplexity:.2f} held out")
    print(sample(model, corpus.vocabulary, length=100, prompt="en un "))
plot_history(history, "don_quijote.png")
