"""The command line: ``rnnfast bench``, and the language model's commands if its extra is there."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from .text import InputError

try:
    from .language_model.commands import add_commands
except ImportError as error:
    _missing_extra = str(error)
else:
    _missing_extra = None

_LANGUAGE_MODEL = (
    *("train", "evaluate", "sample", "summary", "plot"),
    *("download", "encode", "demo"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: what follows the program's name. Default: ``sys.argv[1:]``.

    Returns:
        Exit code: 0; 1 if the work failed on the way; 2 if what was given cannot be used, with one
        line on stderr and nothing written; 130 if interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if _missing_extra and arguments and arguments[0] in _LANGUAGE_MODEL:
        return _fail(_missing_extra, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does: what its encoding lacks, such as a file's odd name, is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output, such as head, has enough; what is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        return _fail(error, 2)
    except options.failures as error:
        return _fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory_error(error):
            raise
        return _fail(f"not enough memory: {str(error).splitlines()[0]}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


def _is_memory_error(error: Exception) -> bool:
    """Whether memory is short; on the CPU torch has no type of its own for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        text in str(error) for text in ("can't allocate memory", "size calculation overflowed")
    )


def _fail(message: object, code: int) -> int:
    print(f"rnnfast: error: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; the usage stands under ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rnnfast",
        description="Recurrent networks at hardware speed: benchmark, and word and character "
        "language models.",
    )
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)
    bench = commands.add_parser(
        "bench", help="speed on this machine against torch.nn, in about a minute"
    )
    bench.set_defaults(command=_bench, failures=(AssertionError, OSError))
    bench.add_argument(
        "--seconds", type=float, default=60.0, metavar="X", help="budget of it all (default: 60)"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="of each call (default: torch's)")
    bench.add_argument("--output", metavar="CSV", help="also write the results to this file")
    if _missing_extra:
        parser.epilog = f"{', '.join(_LANGUAGE_MODEL)}: {_missing_extra}"
    else:
        add_commands(commands)
    return parser


def _bench(options: argparse.Namespace) -> None:
    # Late: it is for this command only.
    from .benchmark import measure, quick

    cpus = measure.available_cpus()
    threads = options.threads
    if threads is None:
        threads = min(torch.get_num_threads(), cpus)
    if not 1 <= threads <= cpus:
        raise InputError(f"--threads must be from 1 to {cpus}, the CPUs here, got {threads}")
    if not options.seconds > 0:
        raise InputError(f"--seconds must be positive, got {options.seconds:g}")
    print(quick.heading(threads), flush=True)
    results = []
    for result in quick.run(options.seconds, threads):
        results.append(result)
        print(quick.line(result), flush=True)
    print(f"\n{quick.verdict(results)}")
    if options.output is not None:
        measure.write_csv(Path(options.output), results)
