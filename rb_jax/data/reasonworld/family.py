"""What a family of scenarios is: how to sample a scene, and what a hypothesis does to it."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rb_jax.data.reasonworld.canvas import HUES
from rb_jax.data.reasonworld.language import (
    HELD_OPENERS,
    OPENERS,
    sentences,
)
from rb_jax.data.reasonworld.render import OUTDOORS
from rb_jax.data.reasonworld.scene import Real, Scene, Thing

Item = TypeVar("Item")
Outcome = Any  # hashable; each family knows what its own outcomes are


class Dice:
    """Draws that depend on nothing but the seed (only `random()`, whose stream is guaranteed)."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, uniformly."""
        return items[int(self._random() * len(items))]

    def between(self, low: Real, high: Real) -> Real:
        """A number in [low, high)."""
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, p: Real) -> bool:
        """True with probability p."""
        return self._random() < p

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in random order."""
        left = list(items)
        return [left.pop(int(self._random() * len(left))) for _ in items]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of scenario.

    The outcome is a label that `decide` reads off the scene (the simulation); `effect` turns the
    scene into what that outcome looks like. Wrong outcomes are `effect` under the labels of
    `others`: what would have happened had the picture been otherwise.
    """

    name: str
    category: str
    backdrops: tuple[str, ...]
    sample: Callable[[Dice, str, str], Scene]  # (dice, backdrop, hue)
    decide: Callable[[Scene], Outcome]
    effect: Callable[[Scene, Outcome], Scene]
    others: Callable[[Scene], Sequence[Outcome]]
    objects: tuple[str, ...]  # may use the slots {hue} and {named}
    captions: Callable[[Scene, Outcome], tuple[str, str]]
    clauses: tuple[str, ...]  # may use the slots {hue}, {named}, {hours}, {weeks}
    held_clauses: tuple[str, ...]

    def phrases(self, held: bool) -> tuple[str, ...]:
        """The sentences of one side of the language split, slots still open."""
        clauses = self.held_clauses if held else self.clauses
        return sentences(HELD_OPENERS if held else OPENERS, clauses)


def extras(dice: Dice, backdrop: str, sky: bool = True, floor: bool = True) -> tuple[Thing, ...]:
    """Distractors behind the action: clouds and a bush outdoors, a picture and a mug indoors."""
    things: list[Thing] = []
    if backdrop in OUTDOORS:
        if sky:
            xs = dice.shuffled((0.16, 0.5, 0.84))[: dice.whole(1, 2)]
            things += [
                Thing("cloud", x + dice.between(-0.06, 0.06), dice.between(0.12, 0.24), 0.22, 0.09)
                for x in xs
            ]
        if floor and dice.chance(0.7):
            kind = dice.pick(("bush", "fence", "flowers"))
            things.append(
                Thing(kind, dice.pick((0.1, 0.9)), 0.74, 0.18, 0.1, dice.pick(list(HUES)))
            )
    else:
        if sky:
            x = dice.pick((0.18, 0.5, 0.82)) + dice.between(-0.04, 0.04)
            kind = dice.pick(("picture", "clock", "bunting"))
            things.append(
                Thing(kind, x, dice.between(0.24, 0.3), 0.18, 0.16, dice.pick(list(HUES)))
            )
        if floor and dice.chance(0.7):
            kind = dice.pick(("mug", "books", "cactus"))
            things.append(
                Thing(kind, dice.pick((0.08, 0.92)), 0.76, 0.11, 0.1, dice.pick(list(HUES)))
            )
    return tuple(things)
