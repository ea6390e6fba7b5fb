"""The language model's commands: ``rnnfast train | evaluate | sample | demo``."""

import argparse
import textwrap
from pathlib import Path

from torch import Tensor

from ..text import SPLITS, ContinuousBatches, Corpus, InputError, read_text
from .checkpoint import WEIGHTS, CheckpointError, Run, refuse_existing
from .comparison import compare_backends
from .config import BACKENDS, PRESETS, Config, DataConfig
from .evaluation import evaluate, evaluate_text
from .model import LanguageModel
from .sampling import sample
from .training import TrainingError, TrainingResult, fit


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds them to the parser of ``rnnfast``."""
    train = commands.add_parser("train", help="train a model on a text")
    train.set_defaults(command=_train)
    text = train.add_mutually_exclusive_group()
    text.add_argument(
        "--corpus",
        choices=["pydoc"],
        help="pydoc: the language reference inside this Python (default)",
    )
    text.add_argument(
        "--data-path", metavar="DIR", help="folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt"
    )
    text.add_argument("--text", metavar="FILE", help="any UTF-8 text, split 80 : 10 : 10")
    train.add_argument("--level", choices=["word", "char"], help="with --text (default: word)")
    train.add_argument(
        "--min-count",
        type=int,
        metavar="N",
        help="rarer words are read as <unk> (pydoc and --text; default: 2)",
    )
    train.add_argument(
        "--model", choices=list(PRESETS), default="small", help="preset (default: small)"
    )
    train.add_argument("--backend", choices=BACKENDS, default="rnnfast", help="whose LSTM")
    train.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/NAME)")
    train.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    preset = train.add_argument_group("in place of the preset's value")
    for name, (kind, meaning) in _OVERRIDES.items():
        metavar = "N" if kind is int else "X"
        preset.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=meaning)

    evaluation = commands.add_parser("evaluate", help="perplexity of a trained model on a text")
    evaluation.set_defaults(command=_evaluate)
    evaluation.add_argument("run", metavar="RUN", help="folder of the run")
    text = evaluation.add_mutually_exclusive_group()
    text.add_argument("--data-path", metavar="DIR", help="folder in place of the run's own text")
    text.add_argument("--text", metavar="FILE", help="text file, read as a whole")
    evaluation.add_argument(
        "--split", choices=SPLITS, help="part of the run's text or folder (default: test)"
    )
    _add_weights_and_backend(evaluation)

    sampling = commands.add_parser("sample", help="text drawn from a trained model")
    sampling.set_defaults(command=_sample)
    sampling.add_argument("run", metavar="RUN", help="folder of the run")
    sampling.add_argument("--length", type=int, default=100, help="tokens to draw (default: 100)")
    sampling.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    sampling.add_argument("--prompt", default="", help="text to start from")
    sampling.add_argument("--seed", type=int, default=0, help="default: 0")
    _add_weights_and_backend(sampling)

    demo = commands.add_parser(
        "demo", help="train a small model on pydoc, sample from it, compare with torch"
    )
    demo.set_defaults(command=_demo)
    demo.add_argument(
        "--output", metavar="DIR", help="folder of the run (default: runs/demo, replaced each time)"
    )
    demo.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    demo.add_argument("--epochs", type=int, default=8, help="default: 8")
    for command in (train, evaluation, sampling, demo):
        command.set_defaults(failures=(TrainingError, OSError))


_OVERRIDES = {
    "epochs": (int, "passes over the training text"),
    "batch_size": (int, "columns of text read in parallel"),
    "num_steps": (int, "time steps of a window"),
    "hidden_size": (int, "units of the embedding and of each layer"),
    "num_layers": (int, "LSTM layers"),
    "dropout": (float, "probability that a unit is dropped"),
    "init_scale": (float, "initial weights are uniform between plus and minus this"),
    "learning_rate": (float, "learning rate of the first epochs"),
    "decay_after": (int, "epochs at the full learning rate"),
    "lr_decay": (float, "factor on the learning rate for each epoch after those"),
    "max_grad_norm": (float, "the gradient is scaled down to this norm"),
    "seed": (int, "seeds the initial weights and the dropout"),
}


def _add_weights_and_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=WEIGHTS, default="best", help="default: best")
    parser.add_argument("--backend", choices=BACKENDS, help="default: that of the training")


def _train(options: argparse.Namespace) -> None:
    if options.data_path is not None:
        source = {"corpus": "ptb", "path": str(Path(options.data_path).resolve())}
    elif options.text is not None:
        source = {"corpus": "text", "path": str(Path(options.text).resolve())}
    else:
        source = {"corpus": "pydoc"}
    data = DataConfig(**source, level=options.level or "word", min_count=options.min_count)
    changes = {name: getattr(options, name) for name in _OVERRIDES}
    changes = {name: value for name, value in changes.items() if value is not None}
    config = Config.preset(options.model, data, backend=options.backend, **changes)
    output = options.output or f"runs/{data.name}-{options.model}"
    run, _, result = _train_run(config, output, overwrite=options.overwrite)
    print(_table(result))
    print(f"checkpoint: {run.path}")


def _train_run(
    config: Config, output: str, *, overwrite: bool
) -> tuple[Run, Corpus, TrainingResult]:
    refuse_existing(output, overwrite=overwrite)
    corpus = config.data.load()
    run = Run.create(output, config, corpus.vocabulary, overwrite=overwrite)
    tokens = " / ".join(f"{len(corpus.split(split)):,}" for split in SPLITS)
    print(
        f"{corpus.name}: {tokens} tokens to train / validate / test, "
        f"{len(corpus.vocabulary):,} types",
        flush=True,
    )
    model = LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {weights:,} weights, backend {config.model.backend}", flush=True)
    return run, corpus, fit(model, corpus, config.training, recorder=run)


def _table(result: TrainingResult) -> str:
    rows = ["epoch  learning rate  train perplexity  valid perplexity  words/s"]
    rows += [
        f"{epoch.epoch:5}  {epoch.learning_rate:13.5g}  {epoch.train_perplexity:16.2f}"
        f"  {epoch.valid_perplexity:16.2f}  {epoch.words_per_second:7,.0f}"
        for epoch in result.epochs
    ]
    rows.append(
        f"test perplexity {result.test_perplexity:.2f}, "
        f"with the weights of epoch {result.best.epoch}, the best on validation"
    )
    return "\n".join(rows)


def _evaluate(options: argparse.Namespace) -> None:
    run = Run.open(options.run)
    if options.text is None:
        name = options.split or "test"
        tokens = _own_split(run, options.data_path, name)
    elif options.split is None:
        name = options.text
        tokens = _encode_file(run, options.text)
    else:
        raise InputError("--split is for a text of three parts: not with --text")
    model = run.load_model(options.weights, backend=options.backend)
    if options.text is None and name != "test":
        # As in training, so that the number is that of the training's log.
        training = run.config.training
        batches = ContinuousBatches(tokens, training.batch_size, training.num_steps, name=name)
        perplexity, num_targets = evaluate(model, batches), batches.num_tokens
    else:
        perplexity, num_targets = evaluate_text(model, tokens, name), len(tokens) - 1
    print(f"{name}: perplexity {perplexity:.2f} over {num_targets:,} tokens")


def _own_split(run: Run, data_path: str | None, split: str) -> Tensor:
    """A part of the text that the run was trained on, or of that folder, as ids."""
    data = run.config.data
    if data_path is not None:
        data = DataConfig("ptb", str(Path(data_path).resolve()))
    corpus = data.load()
    if corpus.vocabulary != run.vocabulary:
        raise CheckpointError(
            f"the vocabulary of {corpus.name} ({len(corpus.vocabulary):,} types) is not the one "
            f"that {run.path} was trained with ({len(run.vocabulary):,} types)"
        )
    return corpus.split(split)


def _encode_file(run: Run, path: str) -> Tensor:
    """A whole text file as ids of the run's vocabulary."""
    text = read_text(path)
    try:
        return run.vocabulary.encode_text(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _sample(options: argparse.Namespace) -> None:
    run = Run.open(options.run)
    model = run.load_model(options.weights, backend=options.backend)
    print(
        sample(
            model,
            run.vocabulary,
            length=options.length,
            temperature=options.temperature,
            prompt=options.prompt,
            seed=options.seed,
        )
    )


def _demo(options: argparse.Namespace) -> None:
    # The text is a twentieth of the Penn Treebank: one more epoch at the full learning rate.
    config = Config.preset("small", epochs=options.epochs, decay_after=5)
    output = options.output or "runs/demo"
    overwrite = options.overwrite or options.output is None
    run, corpus, result = _train_run(config, output, overwrite=overwrite)
    print(f"\n{_table(result)}")
    model = Run.open(run.path).load_model()
    paragraph = sample(model, corpus.vocabulary, length=120, temperature=0.7, prompt="The class")
    print("\nA paragraph that the model makes up:\n")
    print(textwrap.fill(paragraph, 80, initial_indent="  ", subsequent_indent="  "))
    print(f"\ncheckpoint: {run.path} (more text: rnnfast sample {run.path} --prompt 'A function')")
    print("\nTraining both backends in turn on the same windows ...", flush=True)
    print(f"speed of training, {compare_backends(corpus, config)}")
