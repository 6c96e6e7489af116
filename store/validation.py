"""The problems that pydantic found, in the one line that errors of these packages have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation, as ``problem_text`` tells it."""
    return problem_text(error.errors()[0])


def problem_text(problem: Mapping[str, Any]) -> str:
    """One problem as ``place: reason``, such as ``grid.0: Input should be a valid integer``.

    A problem of the value as a whole, which has no place, is the reason alone.

    Args:
        problem: one of ``ValidationError.errors()``.
    """
    reason = str(problem["msg"]).removeprefix("Value error, ")
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {reason}" if place else reason
