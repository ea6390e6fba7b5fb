"""The language model's commands: ``rnnfast train``, ``evaluate``, ``sample`` and those around."""

import argparse
import textwrap
from pathlib import Path

import torch
from torch import Tensor

from ..freed_memory import keep_freed_memory
from ..summary import summary
from ..text import (
    SPLITS,
    Corpus,
    InputError,
    download_ptb,
    encode_corpus,
    load_encoded,
    read_text,
)
from .chart import plot_history
from .checkpoint import WEIGHTS, CheckpointError, Run, refuse_existing
from .comparison import compare_backends
from .config import BACKENDS, Config, DataConfig, parse_toml
from .distributed import Processes
from .evaluation import Evaluation, evaluate, evaluate_text
from .flags import add_settings, given_settings
from .logs import CsvLog, Log, TensorBoardLog
from .model import LanguageModel
from .presets import PRESETS, preset
from .results import Checkpoint, TrainingResult
from .sampling import sample, stream_text
from .training import TrainingError, boundary_id, fit, validation_batches


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
    text.add_argument("--text", metavar="PATH", help="any UTF-8 text, or a folder of *.txt")
    text.add_argument("--encoded", metavar="DIR", help="what rnnfast encode made")
    train.add_argument("--preset", choices=list(PRESETS), help="settings to start from (small)")
    train.add_argument("--config", metavar="TOML", help="settings in place of the preset's")
    train.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/NAME)")
    train.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    train.add_argument(
        "--resume", metavar="RUN", help="go on with a run that was interrupted, bit for bit"
    )
    _add_device(train)
    train.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
    add_settings(train)

    evaluation = commands.add_parser("evaluate", help="perplexity of a trained model on a text")
    evaluation.set_defaults(command=_evaluate)
    evaluation.add_argument("run", metavar="RUN", help="folder of the run")
    text = evaluation.add_mutually_exclusive_group()
    text.add_argument("--data-path", metavar="DIR", help="folder in place of the run's own text")
    text.add_argument("--text", metavar="FILE", help="text file, read as a whole")
    evaluation.add_argument(
        "--split", choices=SPLITS, help="part of the run's text or folder (default: test)"
    )
    evaluation.add_argument(
        "--accuracy", action="store_true", help="also how often the likeliest token is right"
    )
    _add_weights_and_backend(evaluation)

    sampling = commands.add_parser("sample", help="text drawn from a trained model")
    sampling.set_defaults(command=_sample)
    sampling.add_argument("run", metavar="RUN", help="folder of the run")
    sampling.add_argument("--length", type=int, default=100, help="tokens to draw (default: 100)")
    sampling.add_argument(
        "--temperature", type=float, default=1.0, help="0: always the likeliest token (default: 1)"
    )
    sampling.add_argument("--top-k", type=int, metavar="K", help="of the K likeliest tokens only")
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="of the likeliest that together have P (nucleus)"
    )
    sampling.add_argument("--beam", type=int, metavar="N", help="the best of N, by beam search")
    sampling.add_argument("--stop", metavar="TOKEN", help="end at this token, such as <eos>")
    sampling.add_argument("--prompt", default="", help="text to start from")
    sampling.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="texts, drawn in one batch"
    )
    sampling.add_argument("--seed", type=int, default=0, help="default: 0")
    _add_weights_and_backend(sampling)

    table = commands.add_parser("summary", help="a model's layers, shapes and parameter counts")
    table.set_defaults(command=_summary)
    model = table.add_mutually_exclusive_group(required=True)
    model.add_argument("run", nargs="?", metavar="RUN", help="folder of a run")
    model.add_argument("--preset", choices=list(PRESETS), help="or a preset")
    table.add_argument(
        "--vocab-size", type=int, default=10_000, metavar="N", help="with --preset (10000)"
    )

    plot = commands.add_parser("plot", help="a chart of perplexity by epoch")
    plot.set_defaults(command=_plot)
    plot.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, in one chart")
    plot.add_argument("--output", metavar="PNG", help="default: history.png in the first RUN")

    download = commands.add_parser("download", help="the Penn Treebank, from its usual place")
    download.set_defaults(command=_download)
    download.add_argument("corpus", choices=["ptb"])
    download.add_argument("folder", metavar="DIR", help="where its three files go")
    download.add_argument(
        "--level", choices=["word", "char"], default="word", help="of its files (default: word)"
    )

    encode = commands.add_parser(
        "encode", help="makes a text that may be larger than memory ready for train --encoded"
    )
    encode.set_defaults(command=_encode)
    encode.add_argument("text", metavar="FILE", help="UTF-8 text")
    encode.add_argument("folder", metavar="DIR", help="where vocabulary and ids go")
    encode.add_argument(
        "--tokenizer",
        choices=["ptb", "char", "word"],
        default="ptb",
        help="ptb: words between blanks (default); word: words and marks of raw text, slower",
    )
    encode.add_argument("--min-count", type=int, default=1, metavar="N", help="else <unk>")
    encode.add_argument("--max-size", type=int, metavar="N", help="of the vocabulary")

    demo = commands.add_parser(
        "demo", help="train a small model on pydoc, sample from it, compare with torch"
    )
    demo.set_defaults(command=_demo)
    demo.add_argument(
        "--output", metavar="DIR", help="folder of the run (default: runs/demo, replaced each time)"
    )
    demo.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    demo.add_argument("--epochs", type=int, default=8, help="default: 8")
    for command in (train, evaluation, sampling, table, plot, download, encode, demo):
        command.set_defaults(failures=(TrainingError, OSError, ImportError))


def _add_weights_and_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=WEIGHTS, default="best", help="default: best")
    parser.add_argument("--backend", choices=BACKENDS, help="default: that of the training")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=_device, default="cpu", help="such as cpu, cuda or cuda:1 (default: cpu)"
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # what has no numbers, as meta, is none
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"no device {name!r} here: {reason}") from None
    return device


def _train(options: argparse.Namespace) -> None:
    if options.resume is not None:
        run, corpus, start = _interrupted_run(options)
    else:
        config = _settings(options)
        name = options.preset or "small"
        output = options.output or f"runs/{config.data.name}-{name}"
        run, corpus = _new_run(config, output, overwrite=options.overwrite)
        start = None
    result = _fit(run, corpus, start, options.device, tensorboard=options.tensorboard)
    if Processes.launched().is_main:
        print(_table(result))
        print(f"checkpoint: {run.path}")


def _settings(options: argparse.Namespace) -> Config:
    """The preset's, but for what the TOML file has in its place, but for what flags have."""
    name, tables = options.preset, {}
    if options.config is not None:
        tables = parse_toml(read_text(options.config))
        name = tables.pop("preset", "small") if name is None else name
    given = given_settings(options)
    if options.data_path is not None:
        given["data"] |= {"corpus": "ptb", "path": str(Path(options.data_path).resolve())}
    elif options.text is not None:
        given["data"] |= {"corpus": "text", "path": str(Path(options.text).resolve())}
    elif options.encoded is not None:
        given["data"] |= {"corpus": "encoded", "path": str(Path(options.encoded).resolve())}
    elif options.corpus is not None:
        given["data"] |= {"corpus": options.corpus}
    return preset(name or "small").updated(tables).updated(given)


def _new_run(config: Config, output: str, *, overwrite: bool) -> tuple[Run, Corpus]:
    """A run, of which nothing is on the disk yet, and its text."""
    if not Processes.launched().is_main:
        # The main process, which alone writes, may have made the folder by now.
        overwrite = True
    refuse_existing(output, overwrite=overwrite)
    corpus = config.data.load()
    return Run.create(output, config, corpus.vocabulary, overwrite=overwrite), corpus


def _interrupted_run(options: argparse.Namespace) -> tuple[Run, Corpus, Checkpoint | None]:
    """A run that was begun, its text, and where to go on."""
    given = given_settings(options)
    epochs = given["training"].pop("epochs", None)
    others = ("corpus", "data_path", "text", "encoded", "preset", "config", "output")
    refused = [name for name in others if getattr(options, name) is not None]
    refused += ["overwrite"] if options.overwrite else []
    refused += [name for section in given.values() for name in section]
    if refused:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in refused)
        raise InputError(
            f"--resume goes on with the run's own settings, but for --epochs: not with {flags}"
        )
    run = Run.open(options.resume, epochs=epochs)
    corpus = _same_corpus(run, run.config.data)
    return run, corpus, run.checkpoint()


def _fit(
    run: Run,
    corpus: Corpus,
    start: Checkpoint | None,
    device: torch.device,
    *,
    tensorboard: bool,
) -> TrainingResult:
    """Trains a run's model, with its log beside its weights."""
    keep_freed_memory()
    config = run.config
    model = LanguageModel(len(corpus.vocabulary), config.model, seed=config.training.seed)
    processes = Processes.launched()
    model.to(processes.own_device(device))
    if not processes.is_main:
        return fit(model, corpus, config.training, start=start)
    tokens = " / ".join(f"{len(corpus.split(split)):,}" for split in SPLITS)
    print(
        f"{corpus.name}: {tokens} tokens to train / validate / test, "
        f"{len(corpus.vocabulary):,} types",
        flush=True,
    )
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {weights:,} weights, backend {config.model.backend}", flush=True)
    logs: list[Log] = [CsvLog(run.path / "log.csv")]
    if tensorboard:
        logs.append(TensorBoardLog(run.path / "tensorboard"))
    return fit(model, corpus, config.training, start=start, recorder=run, logs=logs)


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
    training = run.config.training
    if options.text is None:
        name = options.split or "test"
        data = run.config.data
        if options.data_path is not None:
            path = str(Path(options.data_path).resolve())
            data = DataConfig("ptb", path, data.level if data.corpus == "ptb" else "word")
        tokens = _same_corpus(run, data).split(name)
    elif options.split is None:
        name = options.text
        tokens = _encode_file(run, options.text)
    else:
        raise InputError("--split is for a text of three parts: not with --text")
    model = run.load_model(options.weights, backend=options.backend).to(options.device)
    if options.text is None and name != "test":
        # As in training, so that the number is that of the training's log.
        batches = validation_batches(tokens, training, run.vocabulary, name)
        found = evaluate(model, batches, accuracy=options.accuracy)
    else:
        boundary = boundary_id(training, run.vocabulary)
        found = evaluate_text(model, tokens, name, boundary=boundary, accuracy=options.accuracy)
    print(f"{name}: {_described(found, run)} over {found.num_tokens:,} tokens")


def _described(found: Evaluation, run: Run) -> str:
    parts = [f"perplexity {found.perplexity:.2f}"]
    if run.vocabulary.level == "char":
        parts.append(f"{found.bits_per_token:.4f} bits per character")
    if found.accuracy is not None:
        parts.append(f"accuracy {found.accuracy:.2%}")
    return ", ".join(parts)


def _same_corpus(run: Run, data: DataConfig) -> Corpus:
    """A text of three parts with the vocabulary that the run was trained with."""
    corpus = data.load()
    if corpus.vocabulary != run.vocabulary:
        raise CheckpointError(
            f"the vocabulary of {corpus.name} ({len(corpus.vocabulary):,} types) is not the one "
            f"that {run.path} was trained with ({len(run.vocabulary):,} types)"
        )
    return corpus


def _encode_file(run: Run, path: str) -> Tensor:
    """A whole text file as ids of the run's vocabulary."""
    text = read_text(path)
    try:
        return run.vocabulary.encode_text(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _sample(options: argparse.Namespace) -> None:
    run = Run.open(options.run)
    model = run.load_model(options.weights, backend=options.backend).to(options.device)
    names = ("length", "prompt", "temperature", "top_k", "top_p", "stop", "seed")
    chosen = {name: getattr(options, name) for name in names}
    if options.beam is None and options.num_samples == 1:
        for piece in stream_text(model, run.vocabulary, **chosen):
            print(piece, end="", flush=True)
        print()
        return
    texts = sample(
        model, run.vocabulary, **chosen, beam=options.beam, num_samples=options.num_samples
    )
    print("\n\n".join(texts))


def _summary(options: argparse.Namespace) -> None:
    if options.run is not None:
        run = Run.open(options.run)
        model = LanguageModel(len(run.vocabulary), run.config.model)
    else:
        if options.vocab_size < 1:
            raise InputError(f"--vocab-size must be at least 1, got {options.vocab_size}")
        model = LanguageModel(options.vocab_size, preset(options.preset).model)
    print(summary(model))


def _plot(options: argparse.Namespace) -> None:
    runs = [Run.open(run).path for run in options.runs]
    output = options.output or runs[0] / "history.png"
    plot_history([run / "log.csv" for run in runs], output)
    print(output)


def _download(options: argparse.Namespace) -> None:
    print(download_ptb(options.folder, options.level))


def _encode(options: argparse.Namespace) -> None:
    folder = encode_corpus(
        options.text,
        options.folder,
        options.tokenizer,
        min_count=options.min_count,
        max_size=options.max_size,
    )
    corpus = load_encoded(folder)
    num_tokens = sum(len(corpus.split(split)) for split in SPLITS)
    print(f"{folder}: {num_tokens:,} tokens, {len(corpus.vocabulary):,} types")


def _demo(options: argparse.Namespace) -> None:
    # The text is a twentieth of the Penn Treebank: one more epoch at the full learning rate.
    config = preset("small").replace(epochs=options.epochs, decay_after=5)
    output = options.output or "runs/demo"
    overwrite = options.overwrite or options.output is None
    run, corpus = _new_run(config, output, overwrite=overwrite)
    result = _fit(run, corpus, None, torch.device("cpu"), tensorboard=False)
    print(f"\n{_table(result)}")
    model = Run.open(run.path).load_model()
    paragraph = sample(model, corpus.vocabulary, length=120, temperature=0.7, prompt="The class")
    print("\nA paragraph that the model makes up:\n")
    print(textwrap.fill(paragraph, 80, initial_indent="  ", subsequent_indent="  "))
    print(f"\ncheckpoint: {run.path} (more text: rnnfast sample {run.path} --prompt 'A function')")
    print("\nTraining both backends in turn on the same windows ...", flush=True)
    print(f"speed of training, {compare_backends(corpus, config)}")
