"""What every group of the configuration does when it is made: it checks its own values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import chain
from typing import ClassVar

from rb_jax.errors import InputError

MAX_INTEGER = 2**31 - 1  # what a 32-bit counter on a device holds


class ConfigError(InputError):
    """A value of the configuration is unknown, missing, mistyped or inconsistent."""


class Group:
    """Base of the frozen dataclasses; ``place`` is the group's dotted key.

    ``problems`` says what is wrong with the values, each with its key below ``place``; the first
    one is raised as ConfigError. What two groups must agree on is checked where both are known.
    """

    place: ClassVar[str] = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from ()

    def numbers(self) -> Iterator[tuple[str, str]]:
        """Those that no computation could use."""
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    yield field.name, f"must be a finite number, got {number}"
                if isinstance(number, int) and abs(number) > MAX_INTEGER:
                    yield field.name, f"must be at most {MAX_INTEGER}, got {number}"

    def __post_init__(self):
        for key, why in chain(self.numbers(), self.problems()):
            place = f"{self.place}.{key}" if self.place else key
            raise ConfigError(f"config.{place}: {why}")


class Sizes(Group):
    """A group of the model: every number counts or measures something, and is positive.

    ``may_be_zero`` and ``any_sign`` name those that are not.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("layers",)
    any_sign: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> Iterator[tuple[str, str]]:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, bool | str) or field.name in self.any_sign:
                    continue
                if not (number > 0 or (number == 0 and field.name in self.may_be_zero)):
                    yield field.name, f"must be positive, got {number}"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What is wrong with values that are each possible.

        Asked when a whole Config is made: of a part of a model not every value is known.
        """
        yield from ()


def undivided(heads: int, width: int) -> Iterator[tuple[str, str]]:
    """The problem of attention heads that do not share a width evenly, if there is one."""
    if width % heads:
        yield "heads", f"{heads} does not divide width={width}"
