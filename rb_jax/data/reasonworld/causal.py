"""Causal hypotheses: walls break, switches flip, dominoes fall, taps run, stacks drop."""

from rb_jax.data.reasonworld.canvas import HUES
from rb_jax.data.reasonworld.family import Dice, Family, Outcome, extras
from rb_jax.data.reasonworld.language import article, number
from rb_jax.data.reasonworld.render import INDOORS, OUTDOORS
from rb_jax.data.reasonworld.scene import GROUND, Scene, Thing

SIDES = ("left", "right")


# dam: three basins between two walls; the water runs through the wooden one


def _dam(dice: Dice, backdrop: str, hue: str) -> Scene:
    left, right = 0.32 + dice.between(-0.04, 0.04), 0.68 + dice.between(-0.04, 0.04)
    kinds = dice.shuffled(("wood", "stone"))
    base, depth = GROUND + 0.1, dice.between(0.38, 0.46)
    middle = Thing("water", (left + right) / 2, base, right - left, depth, role="middle")
    walls = [
        Thing("barrier", x, base, 0.11, 0.54, state=kind, role="wall")
        for x, kind in zip((left, right), kinds, strict=True)
    ]
    sides = [
        Thing("water", left / 2, base, left, 0.0, role="left"),
        Thing("water", (right + 1) / 2, base, 1 - right, 0.0, role="right"),
    ]
    boat = Thing("boat", (left + right) / 2, base - depth + 0.03, 0.15, color=hue, role="boat")
    houses = [
        Thing("cottage", x, base - 0.03, 0.17, 0.2, dice.pick(("red", "blue", "orange")))
        for x in (left / 2 - 0.02, (right + 1) / 2 + 0.02)
    ]
    things = (*extras(dice, backdrop, floor=False), *houses, *sides, boat, middle, *walls)
    return Scene(backdrop, hue, things)


def _weak_wall(scene: Scene) -> Outcome:
    return tuple(wall.state == "wood" for wall in scene.all("wall"))


def _flood(scene: Scene, outcome: Outcome) -> Scene:
    """The same volume of water, spread over every basin that is now joined."""
    pool = scene.one("middle")
    joined = [pool] + [scene.one(s) for s, open_ in zip(SIDES, outcome, strict=True) if open_]
    depth = pool.w * pool.h / sum(basin.w for basin in joined)
    for basin in joined:
        scene = scene.change(basin.role, h=depth)
    pairs = zip(scene.all("wall"), outcome, strict=True)
    scene = scene.swap("wall", *(t.but(state="gone" if open_ else t.state) for t, open_ in pairs))
    return scene.change("boat", y=pool.y - depth + 0.03)


def _dam_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    side = SIDES[outcome.index(True)]
    boat = f"{article(scene.hue)} boat"
    return (
        f"{boat} on deep water between a wooden wall and a stone wall",
        f"water over the house on the {side} of a broken wooden wall, {boat} floating low",
    )


# lamps: every switch is flipped


def _lamps(dice: Dice, backdrop: str, hue: str) -> Scene:
    xs = [x + dice.between(-0.02, 0.02) for x in (0.2, 0.5, 0.8)]
    lit = dice.whole(1, 6)
    y = dice.between(0.4, 0.46)
    lamps = [
        Thing("lamp", x, y, 0.19, 0.13, hue, "on" if lit >> k & 1 else "off", role="lamp")
        for k, x in enumerate(xs)
    ]
    things = [
        Thing(
            dice.pick(("mug", "books", "cactus")),
            x,
            GROUND + 0.04,
            0.13,
            0.13,
            dice.pick(list(HUES)),
        )
        for x in xs
        if dice.chance(0.7)
    ]
    return Scene(backdrop, hue, (*things, *lamps))


def _flipped(scene: Scene) -> Outcome:
    return tuple(lamp.state == "off" for lamp in scene.all("lamp"))


def _switch(scene: Scene, outcome: Outcome) -> Scene:
    pairs = zip(scene.all("lamp"), outcome, strict=True)
    return scene.swap("lamp", *(t.but(state="on" if lit else "off") for t, lit in pairs))


def _other_lights(scene: Scene) -> list[Outcome]:
    right = _flipped(scene)
    return [(True,) * 3, (False,) * 3, right[1:] + right[:1]]


def _lamp_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    def say(states: tuple[bool, ...]) -> str:
        words = ", ".join("on" if lit else "off" for lit in states)
        return f"three {scene.hue} lamps from left to right: {words}"

    return say(tuple(not lit for lit in outcome)), say(outcome)


# dominoes: the ball pushes the row over, up to the first gap


_SLOTS, _STEP = 9, 0.08


def _dominoes(dice: Dice, backdrop: str, hue: str) -> Scene:
    first = 0.5 - _STEP * (_SLOTS - 1) / 2 + dice.between(-0.015, 0.015)
    gap = dice.whole(2, 5) if dice.chance(0.75) else _SLOTS  # two tiles wide
    side = dice.pick((-1, 1))
    y, h = GROUND + 0.04, dice.between(0.165, 0.185)
    tiles = [
        Thing("domino", first + k * _STEP, y, 0.05, h, hue, role="tile")
        for k in range(_SLOTS)
        if k not in (gap, gap + 1)
    ]
    x = first - 0.1 if side < 0 else first + (_SLOTS - 1) * _STEP + 0.1
    color = dice.pick([name for name in HUES if name != hue])
    ball = Thing("ball", x, y, 0.13, 0.13, color, role="ball")
    return Scene(backdrop, hue, (*extras(dice, backdrop, floor=False), *tiles, ball))


def _chain(scene: Scene) -> Outcome:
    """(direction, how many fall): a tile knocks the next one if it is tall enough to reach it."""
    tiles = scene.all("tile")
    rightward = scene.one("ball").x < tiles[0].x
    row = tiles if rightward else tiles[::-1]
    fallen = 1
    while fallen < len(row):
        near, far = row[fallen - 1], row[fallen]
        if abs(far.x - near.x) - near.w > near.h:
            break
        fallen += 1
    return "right" if rightward else "left", fallen


def _topple(scene: Scene, outcome: Outcome) -> Scene:
    direction, fallen = outcome
    sign = 1 if direction == "right" else -1
    tiles = list(scene.all("tile")[::sign])
    for k in range(fallen):
        last = k == fallen - 1
        tiles[k] = tiles[k].but(level=sign * (86.0 if last else 58.0))
    # each fallen tile lies on the next one, so the last is drawn first
    ordered = tiles[:fallen][::-1] + tiles[fallen:]
    return scene.swap("tile", *ordered)


def _other_chains(scene: Scene) -> list[Outcome]:
    direction, fallen = _chain(scene)
    opposite = "left" if direction == "right" else "right"
    total = len(scene.all("tile"))
    wrong = [(direction, total), (opposite, total if fallen == total else total - fallen)]
    return wrong + [(direction, 2 if fallen != 2 else 3)]


def _domino_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    total, direction, fallen = len(scene.all("tile")), *outcome
    after = f"{number(fallen)} of {number(total)} {scene.hue} dominoes fallen to the {direction}"
    return f"a ball next to a row of {number(total)} standing {scene.hue} dominoes", after


# tap: the glass beneath it fills


def _tap(dice: Dice, backdrop: str, hue: str) -> Scene:
    xs = [x + dice.between(-0.02, 0.02) for x in (0.2, 0.5, 0.8)]
    h, over = dice.between(0.26, 0.31), dice.whole(0, 2)
    glasses = [
        Thing("glass", x, GROUND + 0.06, 0.21, h, level=dice.pick((0.0, 0.3)), role="glass")
        for x in xs
    ]
    tap = Thing("tap", xs[over], 0.42, 0.1, 0.18, hue, "shut", role="tap")
    rail = Thing("rail", 0.5, tap.y - tap.h)
    return Scene(
        backdrop, hue, (*extras(dice, backdrop, sky=False, floor=False), rail, tap, *glasses)
    )


def _beneath(scene: Scene) -> Outcome:
    tap = scene.one("tap")
    return tuple(abs(t.x - tap.x) < t.w / 2 for t in scene.all("glass"))


def _fill(scene: Scene, outcome: Outcome) -> Scene:
    pairs = zip(scene.all("glass"), outcome, strict=True)
    return scene.swap("glass", *(t.but(level=0.95 if full else t.level) for t, full in pairs))


def _tap_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    place = ("left", "middle", "right")[outcome.index(True)]
    tap = f"{article(scene.hue)} tap"
    return f"{tap} above the {place} one of three glasses", f"the {place} glass under {tap} is full"


# stack: a block is pulled out and what stands on it comes down


def _stack(dice: Dice, backdrop: str, hue: str) -> Scene:
    x, y = dice.between(0.34, 0.66), GROUND + 0.06
    others = dice.shuffled([name for name in HUES if name != hue])
    place, count = dice.whole(0, 2), 3
    names = [*others[:place], hue, *others[place : count - 1]]
    blocks = []
    for name in names:
        h = 0.155
        blocks.append(Thing("block", x, y, dice.between(0.25, 0.3), h, name, role="block"))
        y -= h
    bear = Thing("teddy", x, y + 0.004, 0.17, role="bear")
    return Scene(backdrop, hue, (*extras(dice, backdrop, floor=False), *blocks, bear), named=hue)


def _pulled(scene: Scene) -> Outcome:
    return [t.color for t in scene.all("block")].index(scene.named)


def _collapse(scene: Scene, outcome: Outcome) -> Scene:
    blocks = list(scene.all("block"))
    gone = blocks.pop(outcome)
    blocks = [t.but(y=t.y + gone.h) if k >= outcome else t for k, t in enumerate(blocks)]
    bear = scene.one("bear")
    return scene.swap("block", *blocks).change("bear", y=bear.y + gone.h)


def _stack_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    names = [t.color for t in scene.all("block")]
    left = [name for k, name in enumerate(names) if k != outcome]
    return (
        f"a teddy bear on a stack of blocks, from the bottom: {', '.join(names)}",
        f"a teddy bear on a stack of blocks, from the bottom: {', '.join(left)}",
    )


def _single(n: int) -> tuple[Outcome, ...]:
    return tuple(tuple(k == j for j in range(n)) for k in range(n))


FAMILIES = (
    Family(
        "dam",
        "causal",
        OUTDOORS,
        _dam,
        _weak_wall,
        _flood,
        lambda _: (*_single(2), (True, True)),
        ("wooden wall", "{hue} boat", "water"),
        _dam_captions,
        (
            "the wooden wall broke",
            "the wooden wall rotted away",
            "the wooden wall no longer held the water back",
        ),
        ("the wooden wall gave way", "the wooden wall were gone"),
    ),
    Family(
        "lamps",
        "causal",
        INDOORS,
        _lamps,
        _flipped,
        _switch,
        _other_lights,
        ("{hue} lamps", "switches"),
        _lamp_captions,
        (
            "someone flipped every light switch",
            "the switches of all {hue} lamps were flipped",
            "the {hue} lamps were all switched over",
        ),
        ("all light switches were flipped", "someone switched over all the {hue} lamps"),
    ),
    Family(
        "dominoes",
        "causal",
        INDOORS + OUTDOORS,
        _dominoes,
        _chain,
        _topple,
        _other_chains,
        ("ball", "{hue} dominoes"),
        _domino_captions,
        (
            "the ball rolled into the {hue} dominoes",
            "the ball knocked over the nearest domino",
            "someone pushed the ball at the dominoes",
        ),
        ("the ball hit the nearest domino", "the ball were pushed into the row"),
    ),
    Family(
        "tap",
        "causal",
        INDOORS,
        _tap,
        _beneath,
        _fill,
        lambda _: _single(3),
        ("{hue} tap", "glasses"),
        _tap_captions,
        (
            "the {hue} tap were opened for a while",
            "someone turned on the {hue} tap, then shut it",
            "the {hue} tap ran for one minute",
        ),
        ("someone opened the {hue} tap for one minute", "water ran from the {hue} tap for a while"),
    ),
    Family(
        "stack",
        "causal",
        INDOORS,
        _stack,
        _pulled,
        _collapse,
        lambda _: (0, 1, 2),
        ("{hue} block", "teddy bear"),
        _stack_captions,
        (
            "the {hue} block were pulled out",
            "the {hue} block vanished",
            "someone took the {hue} block away",
        ),
        ("the {hue} block were gone", "someone pulled the {hue} block out"),
    ),
)
