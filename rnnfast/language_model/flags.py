"""Every setting as a flag of the command line, explained as in its class's docstring."""

import argparse
import dataclasses
import inspect
import re
import types
import typing
from typing import Any

from .config import SECTIONS

# How the text is chosen has flags of its own.
_LEFT_OUT = {"corpus", "path"}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting, in a group for each section of the settings.

    A flag that is not given leaves no trace in the parsed options.
    """
    for section_name, section in SECTIONS.items():
        group = parser.add_argument_group(f"settings: {section_name}")
        kinds = typing.get_type_hints(section)
        meanings = _meanings(section)
        for field in dataclasses.fields(section):
            if field.name not in _LEFT_OUT:
                group.add_argument(
                    f"--{field.name.replace('_', '-')}",
                    default=argparse.SUPPRESS,
                    help=meanings[field.name],
                    **_kind(field.name, kinds[field.name]),
                )


def given_settings(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings that were given as flags, by section, as ``Config.updated`` takes them."""
    given = {}
    for section_name, section in SECTIONS.items():
        names = {field.name for field in dataclasses.fields(section)} - _LEFT_OUT
        given[section_name] = {name: getattr(options, name) for name in names if name in options}
    return given


def _meanings(section: type) -> dict[str, str]:
    """What the docstring's ``Args`` say of each setting, without markup."""
    text = inspect.getdoc(section).split("Args:\n", 1)[1].split("\n\n", 1)[0]
    meanings = {}
    for item in re.split(r"\n(?=    \w)", "\n" + text)[1:]:
        name, meaning = " ".join(item.split()).split(": ", 1)
        meanings[name] = meaning.replace("``", "").replace("%", "%%")
    return meanings


def _kind(name: str, annotation: Any) -> dict[str, Any]:
    """How argparse reads values of a setting."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction}
    if name == "splits":
        return {"type": _splits, "metavar": "A:B,A:B,A:B"}
    if tuple[int, ...] in kinds:
        return {"type": _sizes if int in kinds else _integers, "metavar": "N[,N...]"}
    for kind, metavar in ((int, "N"), (float, "X"), (str, "WORD")):
        if kind in kinds:
            return {"type": kind, "metavar": metavar}
    raise TypeError(f"no flag for {name} of type {annotation}")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _integers(text: str) -> tuple[int, ...]:
    """``"256,128"``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers with commas between, got {text!r}"
        ) from None


def _sizes(text: str) -> int | tuple[int, ...]:
    """``"200"``, for each layer, or ``"256,128"``."""
    numbers = _integers(text)
    return numbers if len(numbers) > 1 else numbers[0]


def _splits(text: str) -> tuple[tuple[float, float], ...]:
    """``"0:0.8,0.8:0.9,0.9:1.0"``."""
    try:
        return tuple(tuple(_number(end) for end in part.split(":", 1)) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected three ranges as 0:0.8,0.8:0.9,0.9:1.0, got {text!r}"
        ) from None
