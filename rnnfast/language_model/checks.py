"""Checks of arguments, with errors that name them."""

from ..text import InputError


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raises InputError, which names the argument, unless the condition holds."""
    if not condition:
        raise InputError(f"{name} must be {expected}, got {value!r}")


def is_integer(value: object) -> bool:
    """Whether it is one, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is an integer or a float, and not a bool."""
    return is_integer(value) or isinstance(value, float)


def require_at_least_one(name: str, value: object) -> None:
    """Raises InputError unless the argument is an integer of at least 1."""
    require(is_integer(value) and value >= 1, name, value, "an integer of at least 1")
