"""Story hypotheses: a dragon, a spell, a winter, a giant, a king."""

from rb_jax.data.reasonworld.canvas import HUES
from rb_jax.data.reasonworld.family import Dice, Family, Outcome, extras
from rb_jax.data.reasonworld.language import article, number
from rb_jax.data.reasonworld.render import OUTDOORS
from rb_jax.data.reasonworld.scene import GROUND, Real, Scene, Thing

FOOT = GROUND + 0.07


def _row(dice: Dice, count: int = 3) -> list[Real]:
    """The x of things in a row across the picture."""
    xs = {2: (0.28, 0.72), 3: (0.2, 0.5, 0.8)}[count]
    return [x + dice.between(-0.025, 0.025) for x in xs]


def _list(words: list[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1]


# dragon: wood burns, stone stays


def _dragon(dice: Dice, backdrop: str, hue: str) -> Scene:
    kinds = dice.shuffled(("wood", "stone", dice.pick(("wood", "stone"))))
    huts = [
        Thing("hut", x, FOOT, 0.23, dice.between(0.27, 0.31), state=kind, role="hut")
        for x, kind in zip(_row(dice), kinds, strict=True)
    ]
    face = dice.pick((-1, 1))
    dragon = Thing("dragon", 0.5 + dice.between(-0.14, 0.14), 0.24, 0.3, color=hue, level=face)
    return Scene(backdrop, hue, (*extras(dice, backdrop, sky=False, floor=False), *huts, dragon))


def _flammable(scene: Scene) -> Outcome:
    return tuple(hut.state == "wood" for hut in scene.all("hut"))


def _blaze(scene: Scene, outcome: Outcome) -> Scene:
    pairs = zip(scene.all("hut"), outcome, strict=True)
    return scene.swap("hut", *(t.but(state="burnt" if fire else t.state) for t, fire in pairs))


def _other_fires(scene: Scene) -> list[Outcome]:
    return [tuple(not fire for fire in _flammable(scene)), (True, True, True)]


def _dragon_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    dragon = f"{article(scene.hue)} dragon"
    before = _list([f"a {t.state} house" for t in scene.all("hut")])
    after = _list(["a burning ruin" if fire else "a stone house" for fire in outcome])
    return f"{dragon} above {before}", f"{dragon} above {after}"


# spell: the wand changes the thing under it


_BECOMES = {"pumpkin": "golden coach", "mushroom": "mushroom house", "rock": "castle"}


def _spell(dice: Dice, backdrop: str, hue: str) -> Scene:
    xs, kinds, chosen = _row(dice), dice.shuffled(list(_BECOMES)), dice.whole(0, 2)
    w = dice.between(0.2, 0.23)
    things = [
        Thing("enchanted", x, FOOT, w, w, state=kind, role="thing")
        for x, kind in zip(xs, kinds, strict=True)
    ]
    lean = dice.pick((-1, 1)) if chosen == 1 else (1 if chosen == 0 else -1)
    wand = Thing("wand", xs[chosen], 0.44, color=hue, level=lean, role="wand")
    return Scene(backdrop, hue, (*extras(dice, backdrop, floor=False), *things, wand))


def _nearest(scene: Scene) -> Outcome:
    distances = [abs(t.x - scene.one("wand").x) for t in scene.all("thing")]
    return distances.index(min(distances))


def _transform(scene: Scene, outcome: Outcome) -> Scene:
    things = list(scene.all("thing"))
    things[outcome] = things[outcome].but(state="magic-" + things[outcome].state)
    return scene.swap("thing", *things)


def _spell_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    before = [t.state for t in scene.all("thing")]
    after = [_BECOMES[s] if k == outcome else s for k, s in enumerate(before)]
    return (
        f"{article(scene.hue)} wand over a {before[outcome]}, in a row of {_list(before)}",
        f"{article(scene.hue)} wand over a {after[outcome]}, in a row of {_list(after)}",
    )


# winter: leafy trees go bare, pines only whiten


_WINTER = {"leafy": "bare", "pine": "snowy"}


def _winter(dice: Dice, backdrop: str, hue: str) -> Scene:
    field = Thing("snowfield", 0.5, 1.0, state="green", role="field")
    count = 3 if dice.chance(0.6) else 2
    kinds = dice.shuffled(("leafy", "pine", dice.pick(list(_WINTER))))
    trees = [
        Thing("tree", x, FOOT - 0.01, 0.22, dice.between(0.34, 0.4), state=kind, role="tree")
        for x, kind in zip(_row(dice, count), kinds, strict=False)
    ]
    spot = 0.5 if count == 2 else dice.pick((0.35, 0.65))
    sign = Thing("sign", spot, FOOT + 0.05, 0.17, 0.16, hue)
    return Scene(backdrop, hue, (*extras(dice, backdrop, floor=False), field, *trees, sign))


def _wintered(scene: Scene) -> Outcome:
    return tuple(_WINTER[tree.state] for tree in scene.all("tree"))


def _freeze(scene: Scene, outcome: Outcome) -> Scene:
    pairs = zip(scene.all("tree"), outcome, strict=True)
    return scene.swap("tree", *(t.but(state=s) for t, s in pairs)).change("field", state="white")


def _other_winters(scene: Scene) -> list[Outcome]:
    right = _wintered(scene)
    swapped = tuple("bare" if state == "snowy" else "snowy" for state in right)
    return [swapped, ("bare",) * len(right), ("snowy",) * len(right)]


def _winter_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    names = {
        "leafy": "a leafy tree",
        "pine": "a pine",
        "bare": "a bare tree",
        "snowy": "a snowy pine",
    }
    sign = f"{article(scene.hue)} sign"
    before = _list([names[t.state] for t in scene.all("tree")])
    return (
        f"{before} with {sign} in summer",
        f"{_list([names[s] for s in outcome])} with {sign} in snow",
    )


# giant: the house under the raised boot is flattened


def _giant(dice: Dice, backdrop: str, hue: str) -> Scene:
    xs, under = _row(dice), dice.whole(0, 2)
    names = dice.shuffled([name for name in HUES if name != hue])
    houses = [
        Thing("cottage", x, FOOT, 0.23, 0.26, name, role="house")
        for x, name in zip(xs, names, strict=False)
    ]
    boot = Thing("boot", xs[under], dice.between(0.36, 0.42), 0.26, color=hue, role="boot")
    return Scene(backdrop, hue, (*extras(dice, backdrop, sky=False, floor=False), *houses, boot))


def _under_boot(scene: Scene) -> Outcome:
    distances = [abs(t.x - scene.one("boot").x) for t in scene.all("house")]
    return distances.index(min(distances))


def _stamp(scene: Scene, outcome: Outcome) -> Scene:
    houses = list(scene.all("house"))
    flat = houses[outcome] = houses[outcome].but(state="flat")
    return scene.swap("house", *houses).change("boot", x=flat.x, y=flat.y - 0.08)


def _giant_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    roofs = [f"{t.color} roof" for t in scene.all("house")]
    boot, house = f"a giant's {scene.hue} boot", f"house with {article(roofs[outcome])}"
    return (
        f"{boot} in the air above the {house}",
        f"{boot} on the flattened {house}",
    )


# king: every roof takes the flag's colour


def _king(dice: Dice, backdrop: str, hue: str) -> Scene:
    side = dice.pick((-1, 1))
    xs = [0.5 - side * dx + dice.between(-0.02, 0.02) for dx in (-0.06, 0.29)]
    names = [name for name in HUES if name != hue]
    houses = [Thing("cottage", x, FOOT, 0.3, 0.36, dice.pick(names), role="house") for x in xs]
    tower = Thing("king", 0.5 + side * 0.36, FOOT, 0.18, 0.66, hue, level=-side, role="king")
    return Scene(backdrop, hue, (*extras(dice, backdrop, floor=False), tower, *houses))


def _flag(scene: Scene) -> Outcome:
    return scene.one("king").color


def _repaint(scene: Scene, outcome: Outcome) -> Scene:
    return scene.change("house", color=outcome)


def _other_flags(scene: Scene) -> list[Outcome]:
    names = list(HUES)
    k = names.index(scene.hue)
    return [*(t.color for t in scene.all("house")), names[(k + 1) % 6], names[(k + 3) % 6]]


def _king_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    tower = f"the king's tower with {article(scene.hue)} flag"
    roofs = [f"{article(t.color)} roof" for t in scene.all("house")]
    return (
        f"{tower} next to houses with {_list(roofs)}",
        f"{tower} next to {number(len(roofs))} houses with {outcome} roofs",
    )


FAMILIES = (
    Family(
        "dragon",
        "story",
        OUTDOORS,
        _dragon,
        _flammable,
        _blaze,
        _other_fires,
        ("{hue} dragon", "houses"),
        _dragon_captions,
        (
            "the {hue} dragon breathed fire on the village",
            "the {hue} dragon got very angry",
            "the dragon set fire to whatever can burn",
        ),
        (
            "the {hue} dragon breathed fire on the houses",
            "the dragon were very angry at the village",
        ),
    ),
    Family(
        "spell",
        "story",
        OUTDOORS,
        _spell,
        _nearest,
        _transform,
        lambda _: (0, 1, 2),
        ("{hue} wand", "spell"),
        _spell_captions,
        (
            "the {hue} wand cast its spell",
            "the spell of the {hue} wand struck what is below",
            "the clock struck midnight and the wand did its magic",
        ),
        ("the {hue} wand did its magic", "the spell of the wand were cast at midnight"),
    ),
    Family(
        "winter",
        "story",
        OUTDOORS,
        _winter,
        _wintered,
        _freeze,
        _other_winters,
        ("snow queen", "trees", "{hue} sign"),
        _winter_captions,
        (
            "the snow queen came to this land",
            "the snow queen brought winter overnight",
            "winter came to the trees",
        ),
        ("the snow queen brought winter to the trees", "winter came to this land"),
    ),
    Family(
        "giant",
        "story",
        OUTDOORS,
        _giant,
        _under_boot,
        _stamp,
        lambda _: (0, 1, 2),
        ("giant", "{hue} boot", "houses"),
        _giant_captions,
        (
            "the giant put his {hue} boot down",
            "the giant took one step",
            "the {hue} boot came down on the village",
        ),
        ("the {hue} boot of the giant came down", "the giant put his foot down"),
    ),
    Family(
        "king",
        "story",
        OUTDOORS,
        _king,
        _flag,
        _repaint,
        _other_flags,
        ("king", "flag", "roofs"),
        _king_captions,
        (
            "the king made every roof match his flag",
            "all roofs had to wear the colour of the king",
            "the village painted its roofs in honour of the king",
        ),
        ("the king wanted the roofs to match his flag", "every roof had to honour the king"),
    ),
)
