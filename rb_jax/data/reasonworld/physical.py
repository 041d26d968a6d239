"""Physical hypotheses: weight, slopes, falling, floating, melting."""

from rb_jax.data.reasonworld.canvas import spin
from rb_jax.data.reasonworld.family import Dice, Family, Outcome, extras
from rb_jax.data.reasonworld.language import article
from rb_jax.data.reasonworld.render import INDOORS, OUTDOORS
from rb_jax.data.reasonworld.scene import GROUND, Real, Scene, Thing

SIDES = ("left", "right")
_TILT = 17.0


# seesaw: the side with more mass goes down


def _seesaw(dice: Dice, backdrop: str, hue: str) -> Scene:
    x, y, arm = dice.between(0.47, 0.53), GROUND - 0.17, 0.31
    while True:
        loads = [(dice.whole(1, 3), dice.pick((0.1, 0.135))) for _ in SIDES]
        masses = [n * w * w for n, w in loads]
        if max(masses) >= 1.45 * min(masses):
            break
    crates = [
        Thing("crate", x + side * arm, y - 0.02 - k * w, w, w, hue, role=name)
        for (n, w), side, name in zip(loads, (-1, 1), SIDES, strict=True)
        for k in range(n)
    ]
    posts = [
        Thing("post", x + side * 0.3, GROUND + 0.01, 0.05, 0.17, role="post") for side in (-1, 1)
    ]
    stand = Thing("fulcrum", x, GROUND + 0.02, 0.18, 0.18)
    plank = Thing("plank", x, y, 0.78, 0.045, role="plank")
    things = (*extras(dice, backdrop, floor=False), *posts, stand, plank, *crates)
    return Scene(backdrop, hue, things)


def _heavier(scene: Scene) -> Outcome:
    pivot = scene.one("plank").x
    torque = sum((t.x - pivot) * t.w**2 for side in SIDES for t in scene.all(side))
    return "right" if torque > 0 else "left"


def _tilt(scene: Scene, outcome: Outcome) -> Scene:
    angle = _TILT if outcome == "right" else -_TILT
    plank = scene.one("plank")
    scene = scene.swap("post").change("plank", level=angle)
    for side in SIDES:
        turned = []
        for crate in scene.all(side):
            (spot,) = spin([(crate.x, crate.y)], (plank.x, plank.y), angle)
            turned.append(crate.but(x=spot[0], y=spot[1], level=angle))
        scene = scene.swap(side, *turned)
    return scene


def _seesaw_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    load = f"{scene.hue} crates on both ends"
    return (
        f"a level plank held up by two posts, with {load}",
        f"a plank tilted down to the {outcome}, with {load}",
    )


# slope: the ball rolls to the lower end


def _slope(dice: Dice, backdrop: str, hue: str) -> Scene:
    x, y = dice.between(0.47, 0.53), GROUND - 0.2
    angle = dice.pick((-1, 1)) * dice.between(13, 18)
    r = dice.between(0.095, 0.115)
    stand = Thing("fulcrum", x, GROUND + 0.02, 0.2, 0.22)
    plank = Thing("plank", x, y, 0.84, 0.05, role="plank", level=angle)
    ends = [_along(plank, side * 0.4, Thing("post", x, y, 0.045, 0.1)) for side in (-1, 1)]
    ball = _along(plank, 0.0, Thing("ball", x, y, 2 * r, 2 * r, hue, "raised", role="ball"))
    side = 1 if angle > 0 else -1
    peg = _along(
        plank, side * (r + 0.01), Thing("crate", x, y, 0.06, 0.09, role="peg", level=angle)
    )
    things = (*extras(dice, backdrop, floor=False), stand, *_upright(ends, angle), plank, ball, peg)
    return Scene(backdrop, hue, things)


def _upright(ends: list[Thing], angle: Real) -> list[Thing]:
    return [Thing("crate", t.x, t.y, t.w, t.h, level=angle) for t in ends]


def _along(plank: Thing, offset: Real, thing: Thing) -> Thing:
    """The thing put on the plank, `offset` right of its middle; balls rest on their underside."""
    lift = plank.h / 2
    if thing.kind != "ball":
        (spot,) = spin([(plank.x + offset, plank.y - lift)], (plank.x, plank.y), plank.level)
        return thing.but(x=spot[0], y=spot[1])
    middle = (plank.x + offset, plank.y - lift - thing.w / 2)
    (spot,) = spin([middle], (plank.x, plank.y), plank.level)
    return thing.but(x=spot[0], y=spot[1] + thing.w / 2)


def _lower_end(scene: Scene) -> Outcome:
    return "right" if scene.one("plank").level > 0 else "left"


def _roll(scene: Scene, outcome: Outcome) -> Scene:
    ball, plank = scene.one("ball"), scene.one("plank")
    reach = 0.4 - ball.w / 2 - 0.03
    moved = _along(plank, reach if outcome == "right" else -reach, ball)
    return scene.swap("peg").swap("ball", moved)


def _slope_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    ball = f"{scene.hue} ball"
    return (
        f"{article(ball)} held by a small block in the middle of a sloping plank",
        f"{article(ball)} at rest at the {outcome} end of a sloping plank",
    )


# rope: what the weight falls onto decides


_BELOW = {"cushion": "pressed", "vase": "broken", "tub": "sunk"}


def _rope(dice: Dice, backdrop: str, hue: str) -> Scene:
    x, kind = dice.between(0.36, 0.64), dice.pick(list(_BELOW))
    w, h = {"cushion": (0.36, 0.15), "vase": (0.22, 0.26), "tub": (0.32, 0.26)}[kind]
    size = dice.between(0.17, 0.2)
    below = Thing(kind, x, GROUND + 0.04, w, h, hue, "whole", 0.62, role="below")
    rope = Thing("rope", x, 0.17, role="rope")
    weight = Thing("weight", x, 0.16 + size, size, size, role="weight")
    things = (*extras(dice, backdrop, sky=False), rope, weight, below)
    return Scene(backdrop, hue, things)


def _landing(scene: Scene) -> Outcome:
    return _BELOW[scene.one("below").kind]


def _fall(scene: Scene, outcome: Outcome) -> Scene:
    below, weight = scene.one("below"), scene.one("weight")
    squash = 0.6 if below.kind == "cushion" else 0.92
    y = {"pressed": below.y - below.h * squash, "broken": below.y, "sunk": below.y - 0.035}[outcome]
    state, level = str(outcome), below.level
    if outcome == "sunk":
        state, level = "whole", 0.86
    scene = scene.swap("rope", Thing("rope", weight.x, 0.06, role="rope"))
    scene = scene.swap("weight", weight.but(y=y)).change("below", state=state, level=level)
    if outcome == "broken":  # the weight stands in front of the pieces
        scene = scene.swap("weight").add(weight.but(y=y, role="weight"))
    return scene


def _rope_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    kind = scene.one("below").kind
    noun = f"{scene.hue} " + {"tub": "tub of water"}.get(kind, kind)
    after = {
        "pressed": f"an iron weight lying on {article(noun)}",
        "broken": f"an iron weight among the pieces of {article(noun)}",
        "sunk": f"an iron weight at the bottom of {article(noun)}",
    }
    return f"an iron weight hanging on a rope above {article(noun)}", after[outcome]


# float: the material decides


_FLOATS = {"log": True, "duck": True, "rock": False, "iron": False}


def _float(dice: Dice, backdrop: str, hue: str) -> Scene:
    x, w = dice.between(0.46, 0.54), dice.between(0.19, 0.22)
    tank = Thing("tank", x, GROUND + 0.07, 0.62, 0.46, hue, level=0.76, role="tank")
    spot = x + dice.between(-0.14, 0.14)
    cargo = Thing("cargo", spot, 0.34, w, w, state=dice.pick(list(_FLOATS)), role="cargo")
    tall = {"log": 0.62, "duck": 0.9, "rock": 0.66, "iron": 0.86}[cargo.state] * w
    cargo = cargo.but(y=0.11 + tall, h=tall)
    hook = Thing("hook", spot, 0.08, w * 1.2, role="hook")
    veil = Thing("veil", x, tank.y, tank.w, tank.h, level=tank.level)
    return Scene(backdrop, hue, (*extras(dice, backdrop, sky=False), tank, cargo, veil, hook))


def _buoyancy(scene: Scene) -> Outcome:
    return "float" if _FLOATS[scene.one("cargo").state] else "sink"


def _drop(scene: Scene, outcome: Outcome) -> Scene:
    tank = scene.one("tank")
    surface = tank.y - tank.h * tank.level
    y = surface + 0.07 if outcome == "float" else tank.y - 0.035
    return scene.change("cargo", y=y).change("hook", state="open")


_CARGO = {"log": "wooden log", "duck": "rubber duck", "rock": "grey rock", "iron": "iron weight"}


def _float_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    noun, tank = article(_CARGO[scene.one("cargo").state]), f"{scene.hue} water tank"
    where = "floating in" if outcome == "float" else "at the bottom of"
    return f"{noun} held above {article(tank)}", f"{noun} {where} {article(tank)}"


# ice: the cube that is not in the shade melts


def _ice(dice: Dice, backdrop: str, hue: str) -> Scene:
    w, y = dice.between(0.18, 0.21), GROUND + 0.05
    shaded = dice.pick((0, 1))
    xs = [0.26 + dice.between(-0.03, 0.03), 0.74 + dice.between(-0.03, 0.03)]
    parasol = Thing("parasol", xs[shaded], y - 0.02, 0.44, 0.52, hue, role="parasol")
    sun = Thing("sun", xs[1 - shaded], dice.between(0.16, 0.22), 0.18)
    cubes = [Thing("ice", x, y, w, w, state="whole", role="ice") for x in xs]
    return Scene(backdrop, hue, (sun, *extras(dice, backdrop, sky=False), parasol, *cubes))


def _in_sun(scene: Scene) -> Outcome:
    shade = scene.one("parasol")
    return tuple(abs(t.x - shade.x) > shade.w / 2 for t in scene.all("ice"))


def _melt(scene: Scene, outcome: Outcome) -> Scene:
    pairs = zip(scene.all("ice"), outcome, strict=True)
    return scene.swap("ice", *(t.but(state="melted" if sunny else "whole") for t, sunny in pairs))


def _ice_captions(scene: Scene, outcome: Outcome) -> tuple[str, str]:
    shade = f"{scene.hue} parasol"
    return (
        f"two ice cubes, one in the sun and one under {article(shade)}",
        f"an ice cube under {article(shade)} and a puddle in the sun",
    )


FAMILIES = (
    Family(
        "seesaw",
        "physical",
        INDOORS + OUTDOORS,
        _seesaw,
        _heavier,
        _tilt,
        lambda _: SIDES,
        ("plank", "{hue} crates", "posts"),
        _seesaw_captions,
        (
            "the posts under the plank were taken away",
            "nothing but the middle held the plank",
            "the two posts were gone",
        ),
        ("someone removed both posts", "the plank were free to tilt"),
    ),
    Family(
        "slope",
        "physical",
        INDOORS + OUTDOORS,
        _slope,
        _lower_end,
        _roll,
        lambda _: SIDES,
        ("{hue} ball", "small block", "plank"),
        _slope_captions,
        (
            "the small block were taken away",
            "nothing held the {hue} ball back",
            "the {hue} ball were free to roll",
        ),
        ("someone removed the small block", "the {hue} ball were let go"),
    ),
    Family(
        "rope",
        "physical",
        INDOORS + OUTDOORS,
        _rope,
        _landing,
        _fall,
        lambda _: tuple(_BELOW.values()),
        ("rope", "iron weight"),
        _rope_captions,
        ("the rope were cut", "the rope snapped", "the iron weight were no longer held"),
        ("the iron weight were let go", "the rope gave way"),
    ),
    Family(
        "float",
        "physical",
        INDOORS + OUTDOORS,
        _float,
        _buoyancy,
        _drop,
        lambda _: ("float", "sink"),
        ("claw", "{hue} water tank"),
        _float_captions,
        ("the claw opened", "the claw dropped what it holds", "the claw let go over the water"),
        ("the claw gave way", "what the claw holds fell into the water"),
    ),
    Family(
        "ice",
        "physical",
        OUTDOORS,
        _ice,
        _in_sun,
        _melt,
        lambda _: ((True, False), (False, True), (True, True)),
        ("ice cubes", "{hue} parasol", "sun"),
        _ice_captions,
        (
            "an hour of hot sun went by",
            "the sun kept shining on the ice cubes",
            "the ice cubes were left here all noon",
        ),
        ("the ice cubes stayed here in the heat", "the hot sun did its work"),
    ),
)
