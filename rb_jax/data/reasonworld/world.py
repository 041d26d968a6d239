"""The endless, deterministic stream of examples."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter

from rb_jax.config.sizes import CATEGORIES
from rb_jax.data.reasonworld import causal, physical, story, temporal
from rb_jax.data.reasonworld.canvas import HUES
from rb_jax.data.reasonworld.family import Dice, Family, Outcome
from rb_jax.data.reasonworld.language import plural
from rb_jax.data.reasonworld.render import render
from rb_jax.data.reasonworld.scene import Scene

SPLITS = ("train", "val", "test", "test_unseen")
_TABLE: dict[str, Family] = {
    family.name: family
    for module in (physical, temporal, causal, story)
    for family in module.FAMILIES
}
FAMILIES = tuple(_TABLE)
_CHANGED = 12  # of 255: a smaller difference in every channel does not count as edited


@dataclasses.dataclass(frozen=True)
class Example:
    """One hypothetical edit. Pictures are painted on first access, then kept."""

    id: str
    category: str
    family: str
    instruction: str
    objects: tuple[str, ...]
    source_caption: str
    target_caption: str
    outcome: Outcome
    scene: Scene
    size: int

    @functools.cached_property
    def source(self) -> UInt8[np.ndarray, "S S 3"]:
        """The picture before."""
        return render(self.scene, self.size)

    @functools.cached_property
    def target(self) -> UInt8[np.ndarray, "S S 3"]:
        """The picture after what the instruction supposes."""
        return render(_TABLE[self.family].effect(self.scene, self.outcome), self.size)

    @functools.cached_property
    def alternatives(self) -> tuple[UInt8[np.ndarray, "S S 3"], ...]:
        """The wrong outcomes: what would have happened had the picture been otherwise."""
        family = _TABLE[self.family]
        seen = {self.source.tobytes(), self.target.tobytes()}
        wrong = []
        for outcome in family.others(self.scene):
            picture = render(family.effect(self.scene, outcome), self.size)
            if picture.tobytes() not in seen:
                seen.add(picture.tobytes())
                wrong.append(picture)
        return tuple(wrong)

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "S S"]:
        """The edited region: where target and source differ, grown by about 1/64 of the side."""
        difference = np.abs(self.target.astype(np.int16) - self.source).max(axis=-1)
        edited = Image.fromarray((difference > _CHANGED).astype(np.uint8))
        grown = edited.filter(ImageFilter.MaxFilter(2 * max(1, round(self.size / 64)) + 1))
        return np.asarray(grown).astype(bool)


class ReasonWorld:
    """A map-style, endless dataset of hypothetical edits.

    The same (split, seed, index, size) gives the same bytes in every process, given one version of
    Pillow, and the scene does not depend on the size. Any 4k consecutive examples hold k of each
    category (if all are on).

    Args:
        split: one of SPLITS. `test_unseen` has the colour-and-backdrop pairs and the wordings that
            the other three never show.
        seed: any integer.
        size: the pictures' side in pixels, 32..512.
        families: names from FAMILIES; all of them by default.

    Raises:
        ValueError: for an unknown split or family, no family, or a size out of range.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 64,
        families: Sequence[str] | None = None,
    ) -> None:
        names = FAMILIES if families is None else tuple(families)
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if not 32 <= size <= 512:
            raise ValueError(f"size must be from 32 to 512 pixels, not {size}")
        if unknown := [name for name in names if name not in _TABLE]:
            raise ValueError(f"no family called {unknown[0]!r}; there are {', '.join(FAMILIES)}")
        if not names:
            raise ValueError("families is empty: name at least one, or leave it out for all")
        self.split, self.seed, self.size = split, seed, size
        members = {c: [n for n in names if _TABLE[n].category == c] for c in CATEGORIES}
        order = Dice(_seed("order", split, seed)).shuffled([c for c in CATEGORIES if members[c]])
        self._members = [members[category] for category in order]

    def __getitem__(self, index: int) -> Example:
        """Example number `index`; IndexError below zero, never above."""
        if index < 0:
            raise IndexError(f"examples are numbered from 0, not {index}")
        index = int(index)
        family = self._family(index)
        dice = Dice(_seed("example", self.split, self.seed, index))
        held = self.split == "test_unseen"
        backdrop, hue = dice.pick(compositions(family.name, held))
        scene = family.sample(dice, backdrop, hue)
        slots = {"hue": hue, "named": scene.named}
        slots |= {f"{unit}s": plural(scene.asked, unit) for unit in ("hour", "week")}
        outcome = family.decide(scene)
        before, after = family.captions(scene, outcome)
        return Example(
            id=f"{self.split}-{self.seed}-{index:06d}",
            category=family.category,
            family=family.name,
            instruction=dice.pick(family.phrases(held)).format(**slots),
            objects=tuple(name.format(**slots) for name in family.objects),
            source_caption=before,
            target_caption=after,
            outcome=outcome,
            scene=scene,
            size=self.size,
        )

    def _family(self, index: int) -> Family:
        turn, place = divmod(index, len(self._members))
        members = self._members[place]
        lap, step = divmod(turn, len(members))
        order = Dice(_seed("lap", self.split, self.seed, place, lap)).shuffled(members)
        return _TABLE[order[step]]


@functools.cache
def compositions(family: str, held: bool) -> tuple[tuple[str, str], ...]:
    """The (backdrop, hue) pairs a family may show: one hue in six is held out per backdrop."""
    shift = FAMILIES.index(family)
    return tuple(
        (backdrop, hue)
        for b, backdrop in enumerate(_TABLE[family].backdrops)
        for h, hue in enumerate(HUES)
        if ((b + h + shift) % len(HUES) == 0) == held
    )


def _seed(*parts: object) -> int:
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
