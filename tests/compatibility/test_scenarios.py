"""What works with torch.nn works with rnnfast, and what fails there fails here."""

import re
from pathlib import Path

import composite
import pytest
import scenarios  # noqa: F401  (registers them)
import torch
from suite import DEEP, MODULES, SCENARIOS, Scenario, example, map_floats, states, trained
from torch import Tensor, nn
from verdicts import assert_same, build, rnnfast_verdict

TABLE = Path(__file__).parents[2] / "docs" / "compatibility.md"

CASES = [
    (case, kind, backend)
    for case in SCENARIOS
    for kind in case.modules
    for backend in case.backends
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("case", "kind", "backend"), CASES, ids=[f"{c.name}-{k}-{b}" for c, k, b in CASES]
)
def test_scenario(case: Scenario, kind: str, backend: str):
    rnnfast_verdict(case, kind, backend)


def test_names_are_unique():
    names = [case.name for case in SCENARIOS]
    assert len(set(names)) == len(names)


def test_the_table_lists_every_scenario():
    _, tables = TABLE.read_text().split("\n## ", maxsplit=1)
    listed = re.findall(r"^\| (?!Scenario )(.+?) \|", tables, re.MULTILINE)
    assert set(listed) == {case.name for case in SCENARIOS}


@pytest.mark.parametrize("kind", MODULES)
def test_composite(kind: str):
    """The reference is torch.nn in float64."""
    results = []
    for package in (nn, composite):
        torch.manual_seed(0)
        options = {} if kind.endswith("Cell") else DEEP
        net = build(package, kind, 3, 4, **options, dtype=torch.float64)
        x = example(net).double()
        hx = map_floats(Tensor.double, states(net, x))
        results.append((trained(net, x), trained(net, x, hx)))
    assert_same(*results)
