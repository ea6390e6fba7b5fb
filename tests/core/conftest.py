"""Collects the error ratios that the parity tests measure and prints the worst at the end."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import rnnfast


@dataclass
class ParityTable:
    """The largest ratio of our error to torch's by cell and ISA, and where it was met."""

    worst: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    cases: dict[tuple[str, str], int] = field(default_factory=dict)

    def record(self, cell: str, isa: str, ratios: dict[str, float], shape: str) -> None:
        key = (cell, isa)
        name, ratio = max(ratios.items(), key=lambda item: item[1])
        self.cases[key] = self.cases.get(key, 0) + 1
        if key not in self.worst or ratio > self.worst[key][0]:
            self.worst[key] = (ratio, f"{name} at {shape}")


_TABLE = pytest.StashKey[ParityTable]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = ParityTable()


@pytest.fixture
def parity_table(request: pytest.FixtureRequest) -> ParityTable:
    return request.config.stash[_TABLE]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    table = config.stash[_TABLE]
    if not table.worst:
        return
    terminalreporter.section("parity: error with float64 as truth, ours / torch.nn's in float32")
    terminalreporter.line(f"{'cell':<18}{'ISA':<10}{'cases':>6}{'worst':>8}  where")
    for (cell, isa), (ratio, where) in table.worst.items():
        cases = table.cases[cell, isa]
        terminalreporter.line(f"{cell:<18}{isa:<10}{cases:>6}{ratio:>8.2f}  {where}")


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a program that must end by itself, in a process of its own; gives what it prints."""

    def run(code: str, *arguments: str, skip_if: str = "", **environment: str) -> str:
        root = str(Path(rnnfast.__file__).parent.parent)
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | environment | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=120,
        )
        if skip_if and skip_if in result.stderr:
            pytest.skip(f"the program ended with: {skip_if}")
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
