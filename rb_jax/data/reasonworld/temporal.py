"""Temporal hypotheses: burning down, growing, night falling, ripening, thawing."""

from rb_jax.data.reasonworld.family import Dice, Family, Outcome, extras
from rb_jax.data.reasonworld.language import article, number, plural
from rb_jax.data.reasonworld.render import INDOORS, OUTDOORS
from rb_jax.data.reasonworld.scene import GROUND, Real, Scene, Thing

# candles: each burns one ring of wax an hour


def _candles(dice: Dice, backdrop: str, hue: str) -> Scene:
    xs = [x + dice.between(-0.02, 0.02) for x in (0.24, 0.5, 0.76)]
    if dice.chance(0.4):
        xs = [xs[0] + 0.07, xs[2] - 0.07]
    heights = [dice.whole(1, 4) for _ in xs]
    if max(heights) == 1:  # every number of hours would look the same
        heights[0] = 3
    candles = [
        Thing("candle", x, GROUND + 0.07, 0.12, color=hue, level=h, role="candle")
        for x, h in zip(xs, heights, strict=True)
    ]
    things = (*extras(dice, backdrop, floor=False), *candles)
    return Scene(backdrop, hue, things, asked=dice.whole(1, 3))


def _burnt(scene: Scene) -> Outcome:
    return _after_hours(scene, scene.asked)


def _after_hours(scene: Scene, hours: int) -> tuple[Real, ...]:
    return tuple(max(0.0, t.level - hours) for t in scene.all("candle"))


def _burn(scene: Scene, outcome: Outcome) -> Scene:
    pairs = zip(scene.all("candle"), outcome, strict=True)
    return scene.swap("candle", *(t.but(level=left) for t, left in pairs))


def _other_hours(scene: Scene) -> list[Outcome]:
    return [_after_hours(scene, n) for n in (1, 2, 3)]


def _candle_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    n, left = len(outcome), sum(h > 0 for h in outcome)
    before = f"{number(n)} burning {scene.hue} candles with different heights"
    if left == 0:
        return before, f"{number(n)} {scene.hue} candles, all burnt out"
    return (
        before,
        f"{scene.hue} candles burnt down by {plural(scene.asked, 'ring')}, {left} of {n} lit",
    )


# plant: the packet says what blooms, the seedling how far along it is


_KINDS = ("sunflower", "tulip", "berry")
_STAGES = ("bare soil", "a sprout", "a plant in bud", "a plant in bloom")


def _plant(dice: Dice, backdrop: str, hue: str) -> Scene:
    x, side = dice.between(0.42, 0.58), dice.pick((-1, 1))
    kind, stage = dice.pick(_KINDS), dice.whole(0, 2)
    top = GROUND - 0.16
    pot = Thing("pot", x, GROUND + 0.06, 0.26, 0.22, hue)
    packet = Thing("packet", x + side * 0.3, GROUND + 0.06, 0.17, 0.3, state=kind, role="packet")
    plant = Thing("seedling", x, top, state=kind, level=stage, role="plant")
    things = (*extras(dice, backdrop, sky=backdrop in OUTDOORS, floor=False), packet, pot, plant)
    weeks = 1 if stage == 2 else dice.whole(1, 2)
    return Scene(backdrop, hue, things, asked=weeks)


def _grown(scene: Scene) -> Outcome:
    return scene.one("packet").state, min(3, int(scene.one("plant").level) + scene.asked)


def _grow(scene: Scene, outcome: Outcome) -> Scene:
    kind, stage = outcome
    return scene.change("plant", state=kind, level=stage)


def _other_plants(scene: Scene) -> list[Outcome]:
    kind, stage = _grown(scene)
    wrong = [(kind, s) for s in (1, 2, 3) if s != scene.one("plant").level]
    return wrong + ([(k, 3) for k in _KINDS] if stage == 3 else [])


def _plant_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    kind, stage = outcome
    where = f"in {article(scene.hue)} pot next to {article(kind)} packet"
    kind = "berry bush" if kind == "berry" else kind
    after = f"a {kind} in bloom" if stage == 3 else _STAGES[stage]
    return f"{_STAGES[int(scene.one('plant').level)]} {where}", f"{after} {where}"


# window: half a day later, day is night and night is day


def _window(dice: Dice, backdrop: str, hue: str) -> Scene:
    across = dice.pick((-1, 1)) * dice.between(0.5, 0.8)
    state = dice.pick(("day", "night"))
    x, w = dice.between(0.44, 0.56), dice.between(0.54, 0.6)
    window = Thing("window", x, 0.62, w, 0.48, hue, state, across, role="window")
    things = [window]
    for spot in dice.shuffled((0.14, 0.5, 0.86))[:2]:
        kind = dice.pick(("mug", "books", "cactus"))
        things.append(
            Thing(kind, spot, GROUND + 0.06, 0.13, 0.12, dice.pick(("blue", "red", "green")))
        )
    return Scene(backdrop, hue, tuple(things))


def _half_day(scene: Scene) -> Outcome:
    window = scene.one("window")
    return "night" if window.state == "day" else "day", "right" if window.level > 0 else "left"


def _turn(scene: Scene, outcome: Outcome) -> Scene:
    state, side = outcome
    across = abs(scene.one("window").level)
    return scene.change("window", state=state, level=across if side == "right" else -across)


def _other_skies(scene: Scene) -> list[Outcome]:
    elsewhere = "left" if _half_day(scene)[1] == "right" else "right"
    return [(state, elsewhere) for state in ("day", "night")]


def _window_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    frame = f"{article(scene.hue)} window"
    words = {
        "day": f"a sunny day seen through {frame}",
        "night": f"a night sky seen through {frame}",
    }
    return words[scene.one("window").state], words[outcome[0]]


# fruit: a week takes each one a step from green over yellow and red to brown


_COLOURS = ("green", "yellow", "red", "brown")


def _fruit(dice: Dice, backdrop: str, hue: str) -> Scene:
    x = dice.between(0.47, 0.53)
    tray = Thing("tray", x, GROUND + 0.07, 0.84, 0.16, hue)
    w, foot = dice.between(0.18, 0.21), GROUND - 0.095
    fruits = [
        Thing("fruit", x + dx, foot, w, w, level=dice.whole(0, 2), role="fruit")
        for dx in (-0.26, 0.0, 0.26)
    ]
    return Scene(backdrop, hue, (*extras(dice, backdrop, floor=False), tray, *fruits))


def _ripened(scene: Scene) -> Outcome:
    return tuple(int(t.level) + 1 for t in scene.all("fruit"))


def _ripen(scene: Scene, outcome: Outcome) -> Scene:
    pairs = zip(scene.all("fruit"), outcome, strict=True)
    return scene.swap("fruit", *(t.but(level=stage) for t, stage in pairs))


def _other_fruits(scene: Scene) -> list[Outcome]:
    right = _ripened(scene)
    turned = tuple(1 + stage % 3 for stage in right)
    return [turned, (2, 2, 2), (3, 3, 3)]


def _fruit_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    now = ", ".join(_COLOURS[int(t.level)] for t in scene.all("fruit"))
    then = ", ".join(_COLOURS[stage] for stage in outcome)
    stand = f"on {article(scene.hue)} fruit stand"
    return f"three fruits {stand}: {now}", f"three fruits {stand}: {then}"


# snowman: the weather decides


def _snowman(dice: Dice, backdrop: str, hue: str) -> Scene:
    x, side = dice.between(0.36, 0.64), dice.pick((-1, 1))
    sky = Thing(
        "weather",
        x + side * 0.29,
        dice.between(0.16, 0.22),
        role="weather",
        state=dice.pick(("sun", "snow")),
    )
    man = Thing("snowman", x, GROUND + 0.07, 0.3, 0.68, hue, "whole", role="snowman")
    return Scene(backdrop, hue, (*extras(dice, backdrop, sky=False), sky, man))


def _thaw(scene: Scene) -> Outcome:
    return "melted" if scene.one("weather").state == "sun" else "buried"


def _weathered(scene: Scene, outcome: Outcome) -> Scene:
    return scene.change("snowman", state=outcome)


def _snowman_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    man = f"a snowman with {article(scene.hue)} scarf"
    if outcome == "melted":
        return f"{man} in bright sun", "a puddle with the snowman's hat and carrot"
    return f"{man} under a snow cloud", f"{man} deep in fresh snow"


FAMILIES = (
    Family(
        "candles",
        "temporal",
        INDOORS,
        _candles,
        _burnt,
        _burn,
        _other_hours,
        ("{hue} candles",),
        _candle_captions,
        ("{hours} went by", "the {hue} candles burned for {hours}", "we came back {hours} later"),
        ("the {hue} candles were left alone for {hours}", "{hours} passed"),
    ),
    Family(
        "plant",
        "temporal",
        INDOORS + OUTDOORS,
        _plant,
        _grown,
        _grow,
        _other_plants,
        ("seeds", "{hue} pot", "seed packet"),
        _plant_captions,
        ("{weeks} went by", "the {hue} pot were watered for {weeks}", "we came back {weeks} later"),
        ("the {hue} pot were left here for {weeks}", "{weeks} passed"),
    ),
    Family(
        "window",
        "temporal",
        INDOORS,
        _window,
        _half_day,
        _turn,
        _other_skies,
        ("{hue} window",),
        _window_captions,
        (
            "twelve hours went by",
            "we looked through the {hue} window half a day later",
            "it were twelve hours later",
        ),
        ("half a day passed", "we came back to the {hue} window in twelve hours"),
    ),
    Family(
        "fruit",
        "temporal",
        INDOORS,
        _fruit,
        _ripened,
        _ripen,
        _other_fruits,
        ("fruits", "{hue} stand"),
        _fruit_captions,
        (
            "one week went by",
            "nobody ate the fruits for one week",
            "the fruits stayed on the {hue} stand for one week",
        ),
        ("the fruits were left alone for one week", "one week passed"),
    ),
    Family(
        "snowman",
        "temporal",
        OUTDOORS,
        _snowman,
        _thaw,
        _weathered,
        lambda _: ("melted", "buried"),
        ("snowman", "{hue} scarf"),
        _snowman_captions,
        (
            "this weather lasted for days",
            "two days of this weather went by",
            "the snowman stood in this weather until tomorrow",
        ),
        ("the weather stayed like this for two days", "the snowman were left here until tomorrow"),
    ),
)
