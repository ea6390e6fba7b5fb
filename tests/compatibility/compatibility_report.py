"""Writes docs/compatibility.md from what the suite does now.

    python tests/compatibility/compatibility_report.py [--check]

--check writes nothing and exits with 1 where the file is not what would be written.
"""

import argparse
import sys
import warnings
from pathlib import Path

import scenarios  # noqa: F401  (registers them)
import torch
from module_samples import DTYPES, check_error_case, check_sample, error_cases, samples
from suite import CELLS, LAYERS, MODULES, SCENARIOS, Scenario
from verdicts import first_line, rnnfast_verdict, torch_verdict

import rnnfast

TABLE = Path(__file__).parents[2] / "docs" / "compatibility.md"
NAMES = {MODULES: "all", LAYERS: "layers", CELLS: "cells"}
TORCH = torch.__version__.split("+")[0]

# In the order of the page.
GROUPS = {
    "Arguments": "What the constructors take, and the forms of input.",
    "Module": "Methods and attributes, and what programs do to modules.",
    "dtypes": "Results and gradients are of torch.nn's dtypes; in half types and under autocast "
    "neither are further from float64's than torch.nn's.",
    "Derivatives": "Of every kind, and torch.compile. Where torch.nn refuses, rnnfast is compared "
    "with a float64 loop over single differentiable operations.",
    "Errors": "The same misuse raises the same type of exception.",
}

PAGE = """\
# Compatibility with torch.nn

Written by `tests/compatibility/compatibility_report.py` from what it measures, here with torch
{torch}. Every scenario is one function in `tests/compatibility/scenarios`, run with the modules of
torch.nn and with those of rnnfast on the same weights, and compared: values and gradients within
the tolerance of `torch.testing.assert_close` for their dtype (float64 where nothing else is said),
everything else to equality. rnnfast runs with the backend `"auto"` and again with `"rnnfast"`, its
kernels alone; misuse and other devices with `"auto"` only, as `"rnnfast"` answers them with an
error of its own.

| | |
|---|---|
| cases, each a scenario with one module | {total} |
| the same | {same} |
| works where torch.nn refuses | {beyond} |
| differs | {differing} |
| torch's own module samples: outputs, states and gradients agree | {samples} |
| torch's own error cases: type and message agree, float32 and float64 | {errors} |

torch's own samples are those of `torch.testing._internal.common_modules.module_db`, in float32 and
float64, in training and evaluation mode, all on the kernels. *Layers* are LSTM, GRU and RNN,
*cells* LSTMCell, GRUCell and RNNCell.

Not promised, and not in the tables: `torch.jit`, `torch.fx.symbolic_trace` and dynamic
quantization, which know torch.nn's own modules only: `rnnfast.restore(model)` first.

`isinstance(module, torch.nn.LSTM)` and the like are false of rnnfast's modules, for `torch.compile`
refuses every module of which they are true. What tells modules apart that way, such as a function
that initialises weights, passes over them: let it look for `torch.nn.RNNBase` and `RNNCellBase`,
which are their bases too, or run it before `rnnfast.accelerate(model)`.
"""


def row_of(case: Scenario, kind: str) -> tuple[str, str]:
    """What torch.nn and rnnfast do: the latter under all of the scenario's backends, in the words
    of the last."""
    try:
        ours = [rnnfast_verdict(case, kind, backend) for backend in case.backends][-1]
    except Exception as error:
        ours = f"**differs**: {first_line(error)}"
    return torch_verdict(case, kind), ours if len(ours) < 150 else f"{ours[:150]}..."


def table(cases: list[Scenario], rows: dict[tuple[str, str], tuple[str, str]]) -> str:
    """A line for each scenario and way in which it ends, in the words of the first module."""
    lines = [f"| Scenario | Modules | torch.nn {TORCH} | rnnfast |", "|---|---|---|---|"]
    for case in cases:
        ways = {}
        for kind in case.modules:
            theirs, ours = rows[case.name, kind]
            # "refuses: RuntimeError: what the message says of this module"
            way = theirs.split(": ")[:2], ours.split(": ")[:2]
            ways.setdefault(str(way), (theirs, ours, []))[2].append(kind)
        for theirs, ours, kinds in ways.values():
            modules = NAMES.get(tuple(kinds), ", ".join(kinds))
            lines.append(f"| {case.name} | {modules} | {theirs} | {ours} |")
    return "\n".join(lines)


def passed(check, arguments: list[tuple]) -> int:
    """How many of these a check does not object to."""
    count = 0
    for given in arguments:
        try:
            check(*given)
            count += 1
        except Exception as error:
            print(f"{check.__name__}: {first_line(error)}", file=sys.stderr)
    return count


def page() -> str:
    rows = {(case.name, kind): row_of(case, kind) for case in SCENARIOS for kind in case.modules}
    differing = sum("differs" in ours for _, ours in rows.values())
    beyond = sum(ours == "works" for _, ours in rows.values())
    before = rnnfast.get_backend()
    rnnfast.set_backend("rnnfast")
    found = [
        (kind, sample, dtype, training)
        for kind in MODULES
        for dtype in DTYPES
        for training in (True, False)
        for sample in samples(kind, dtype, training)
    ]
    errors = [
        (kind, case) for dtype in DTYPES for kind in MODULES for case in error_cases(kind, dtype)
    ]
    sample_count, error_count = passed(check_sample, found), passed(check_error_case, errors)
    rnnfast.set_backend(before)
    text = PAGE.format(
        torch=TORCH,
        total=len(rows),
        same=len(rows) - beyond - differing,
        beyond=beyond,
        differing=differing,
        samples=f"{sample_count} of {len(found)}",
        errors=f"{error_count} of {len(errors)}",
    )
    for group, meaning in GROUPS.items():
        cases = [case for case in SCENARIOS if case.group == group]
        text += f"\n## {group}\n\n{meaning}\n\n{table(cases, rows)}\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    check = parser.parse_args().check
    warnings.simplefilter("ignore")
    text = page()
    if check:
        same = TABLE.exists() and TABLE.read_text() == text
        print(f"{TABLE.name} is {'up to date' if same else 'out of date'}")
        return 0 if same else 1
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(text)
    print(f"wrote {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
