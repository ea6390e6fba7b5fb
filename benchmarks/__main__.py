"""Every benchmark, one after the other, each into its CSV in results/; at last the report."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import report

FOLDER = Path(__file__).resolve().parent

# Compiling takes minutes where there are many time steps.
COMPILED = "layers --peers torch.compile --shapes odd seed001 --cells LSTM GRU --threads 2".split()
KEPT = "layers --keep-freed-memory --modes training --peers torch".split()
# Of each CSV, the script that writes it and its arguments.
RUNS = {
    "layers": ["layers"],
    "layers_compiled": COMPILED,
    "floor": ["floor"],
    "freed_memory_kept/layers": KEPT,
    "prepacked": ["prepacked"],
    "packed": ["packed"],
    "variants": ["variants"],
    "quantized": ["quantized"],
    "latency": ["latency"],
    "language_model_step": ["language_model_step"],
    "freed_memory_kept/language_model_step": ["language_model_step", "--keep-freed-memory"],
    "sampling": ["sampling"],
    "text": ["text"],
    "scaling": ["scaling"],
    # These two print a line where there is no GPU.
    "gpu": ["gpu"],
    "gpu_language_model_step": ["gpu_language_model_step"],
    "tutorials": ["tutorials"],
}
# Hours or, on the Penn Treebank, days: not without being asked for.
LONG = {"tutorials"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs those asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument(
        "--smoke", action="store_true", help="each on little, briefly; writes nothing"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - RUNS.keys())
    if unknown:
        parser.error(f"expected names of {', '.join(RUNS)}; got {', '.join(unknown)}")
    start = time.monotonic()
    for name in options.names or [name for name in RUNS if options.smoke or name not in LONG]:
        script, *extra = RUNS[name]
        if options.smoke and extra:
            continue  # the same script again
        print(f"== {name}, at {time.monotonic() - start:.0f} s", flush=True)
        output = ["--smoke"] if options.smoke else ["--output", str(report.RESULTS / f"{name}.csv")]
        # In a process of its own: what one leaves of the heap changes what memory costs the next.
        command = [sys.executable, str(FOLDER / f"{script}.py"), *extra, *output]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"{name} failed")
    if not options.smoke:
        report.main([])


if __name__ == "__main__":
    main()
