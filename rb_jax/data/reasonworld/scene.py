"""Scenes: typed things with attributes, ordered from back to front.

All coordinates are fractions of the picture's side; y points down. A thing's anchor (x, y) is the
middle of its foot, so putting something on the ground means giving it the ground's y.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

Real = float | int

GROUND = 0.80  # y on which things stand (the horizon or table edge lies a little above)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object. `kind` picks its drawing; `state` and `level` are what hypotheses change."""

    kind: str
    x: Real
    y: Real
    w: Real = 0.1
    h: Real = 0.1
    color: str = ""
    state: str = ""
    level: Real = 0.0
    role: str = ""  # what a hypothesis looks it up by; distractors have none

    def but(self, **changes: Any) -> "Thing":
        """The same thing with some attributes changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture before it is drawn, and what the sentence about it names.

    `hue` is the colour of the scene's main object. `asked` and `named` are the quantity (hours,
    weeks) and the thing that the sentence itself fixes.
    """

    backdrop: str
    hue: str
    things: tuple[Thing, ...]
    asked: int = 0
    named: str = ""

    def all(self, role: str) -> tuple[Thing, ...]:
        """The things with this role, in scene order."""
        return tuple(thing for thing in self.things if thing.role == role)

    def one(self, role: str) -> Thing:
        """The only thing with this role; ValueError unless there is exactly one."""
        (thing,) = self.all(role)
        return thing

    def swap(self, role: str, *new: Thing) -> "Scene":
        """Replaces, in order, the things of a role. Missing ones are removed, extra ones added."""
        fresh = iter(new)
        kept = list(_replaced(self.things, role, fresh))
        return dataclasses.replace(self, things=(*kept, *fresh))

    def change(self, role: str, **changes: Any) -> "Scene":
        """Changes attributes of every thing with this role."""
        return self.swap(role, *(thing.but(**changes) for thing in self.all(role)))

    def add(self, *things: Thing) -> "Scene":
        """The scene with more things in front."""
        return dataclasses.replace(self, things=(*self.things, *things))


def _replaced(things: tuple[Thing, ...], role: str, fresh: Iterator[Thing]) -> Iterator[Thing]:
    for thing in things:
        new = next(fresh, None) if thing.role == role else thing
        if new is not None:
            yield new
