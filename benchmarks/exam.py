"""What a picture of the world shows, in words and as classes, and pictures of which it is known."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import cos, pi, sin

from PIL import Image, ImageChops, ImageDraw

from train_scripts.shapes.characters import random_robot
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.world import (
    COLOURS,
    RGB,
    SHAPES,
    SUPERSAMPLING,
    TINT,
    Odds,
    Scene,
    Thing,
    random_scene,
)

EDGE = 128
PLAIN, ROBOT, OTHER = "plain", "robot", "other"  # OTHER is no shape of the world, or several colours
LOOKS = (PLAIN, *STYLES)
LAYOUTS = ("one", "row", "column")
HEADS: Mapping[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    "layout": LAYOUTS,
    "first shape": (*SHAPES, OTHER),
    "first colour": (*COLOURS, OTHER),
    "second shape": (*SHAPES, OTHER),
    "second colour": (*COLOURS, OTHER),
    "look": LOOKS,
    "subject": ("none", ROBOT),
}
SHAPE_HEADS = ("layout", "first shape", "second shape")
COLOUR_HEADS = ("first colour", "second colour")
AGAIN = 1000  # captions drawn once more before a new round: most of the 180 of one object are found by then
UNKNOWN = -100  # the class that torch's cross-entropy passes over

# What of a scene cannot be read from a picture of a look, however well it is drawn.
HIDES_BACKGROUND = ("neon", "sketch")
HIDES_COLOURS: Mapping[str, tuple[str, ...]] = {"neon": ("black", "white")}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a picture shows. Of two objects the left or upper one comes first; a robot has no shapes."""

    background: str
    layout: str = ""
    shapes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    look: str = PLAIN
    subject: str = "none"


def said(scene: Scene, look: str = PLAIN) -> Seen:
    """What a picture of `scene` is to show."""
    things = in_reading_order(scene)
    return Seen(
        scene.background,
        layout_of(scene),
        tuple(thing.shape for thing in things),
        tuple(thing.colour for thing in things),
        look,
    )


def in_reading_order(scene: Scene) -> tuple[Thing, ...]:
    """The objects from left to right, or from top to bottom."""
    return tuple(sorted(scene.things, key=lambda thing: thing.y if layout_of(scene) == "column" else thing.x))


def layout_of(scene: Scene) -> str:
    """One object, two in a row, or two in a column."""
    if not scene.relation:
        return "one"
    return "row" if scene.relation in ("left of", "right of") else "column"


def classes(seen: Seen) -> dict[str, int]:
    """The class of each head, `UNKNOWN` where the picture cannot or does not show it."""
    words = dict.fromkeys(HEADS, "") | {"layout": seen.layout, "look": seen.look, "subject": seen.subject}
    words["background"] = "" if seen.look in HIDES_BACKGROUND else seen.background
    hidden = HIDES_COLOURS.get(seen.look, ())
    for place, shape, colour in zip(("first", "second"), seen.shapes, seen.colours, strict=False):
        words[f"{place} shape"] = shape
        words[f"{place} colour"] = "" if colour in hidden else colour
    return {head: HEADS[head].index(word) if word else UNKNOWN for head, word in words.items()}


def seen_from(numbers: Mapping[str, int]) -> Seen:
    """What the classes of all heads say; of one object the second is left out, of a robot both."""
    words = {head: HEADS[head][number] for head, number in numbers.items()}
    about = Seen(words["background"], look=words["look"], subject=words["subject"])
    if about.subject == ROBOT:
        return about
    places = ("first",) if words["layout"] == "one" else ("first", "second")
    return replace(
        about,
        layout=words["layout"],
        shapes=tuple(words[f"{place} shape"] for place in places),
        colours=tuple(words[f"{place} colour"] for place in places),
    )


def answers(seen: Seen, wanted: Seen) -> dict[str, bool]:
    """For each head that a picture of `wanted` can show, whether `seen` says the same."""
    # A look mistaken for another must not hide what the right one shows.
    said_so, known = classes(replace(seen, look=wanted.look)), classes(wanted)
    same = {head: said_so[head] == known[head] for head in HEADS if known[head] != UNKNOWN}
    return same | {"look": seen.look == wanted.look}


def held_out_scenes(count: int, *, pairs: bool, seed: str = "held out") -> list[Scene]:
    """Scenes each with a triple that the base was never trained on; a caption is not there again before
    nearly all others are."""
    rng, found = random.Random(f"{seed} {pairs}"), []
    told: set[str] = set()
    again = 0  # how often what was drawn had been told before
    while len(found) < count:
        scene = random_scene(rng, Odds(pair=1.0 if pairs else 0.0))
        if not scene.held_out:
            continue
        if scene.caption not in told:
            found.append(scene)
            told.add(scene.caption)
        elif (again := again + 1) > AGAIN:
            told, again = set(), 0
    return found


def lessons(count: int, *, seed: str) -> Iterator[tuple[Image.Image, Seen]]:
    """Pictures of 128×128 with what they show: every look and layout, robots, spoiled objects."""
    rng = random.Random(seed)
    for _ in range(count):
        yield _lesson(rng)


def _lesson(rng: random.Random) -> tuple[Image.Image, Seen]:
    if rng.random() < 0.1:
        background = rng.choice(list(COLOURS))
        image, seen = random_robot(rng, background).render(EDGE), Seen(background, subject=ROBOT)
    elif rng.random() < 0.14:
        image, seen = _spoiled(random_scene(rng, Odds(pair=0.4)), rng)
    else:
        scene = random_scene(rng, Odds(pair=0.55))
        image, seen = scene.render(EDGE, EDGE), said(scene)
    look = rng.choice((PLAIN, PLAIN, PLAIN, *LOOKS))
    return (image, seen) if look == PLAIN else _styled(image, seen, look, rng)


def _styled(image: Image.Image, seen: Seen, look: str, rng: random.Random) -> tuple[Image.Image, Seen]:
    """In the look, at times short of it or a trace of it: what is nearer to plain counts as plain."""
    strength = rng.choice((1.0, 1.0, 1.0, 1.0, rng.uniform(0.65, 1.0), rng.uniform(0.0, 0.35)))
    mixed = Image.blend(image, STYLES[look](image), strength)
    return mixed, replace(seen, look=look if strength > 0.5 else PLAIN)


def _spoiled(scene: Scene, rng: random.Random) -> tuple[Image.Image, Seen]:
    """A scene of which one object is as bases draw them that learned too little: a blob, two shapes run into
    one, or a shape in two colours."""
    things, edge = list(in_reading_order(scene)), EDGE * SUPERSAMPLING
    wrong = rng.randrange(len(things))
    image = Image.new("RGB", (edge, edge), scene.background_rgb)
    for number, thing in enumerate(things):
        if number != wrong:
            image.paste(thing.rgb, mask=thing.mask(edge, edge))
    spoil = rng.choice((_blob, _run_together, _two_coloured))
    things[wrong] = spoil(image, things[wrong], rng)
    seen = replace(
        said(scene),
        shapes=tuple(thing.shape for thing in things),
        colours=tuple(thing.colour for thing in things),
    )
    return image.resize((EDGE, EDGE), Image.Resampling.BOX), seen


def _blob(image: Image.Image, thing: Thing, rng: random.Random) -> Thing:
    """Draws a round thing with dents and bulges; what it then is."""
    bends = rng.sample((2, 3, 4, 5, 6), 3)
    waves = [(bend, rng.uniform(0.1, 0.45 / bend + 0.06), rng.uniform(0, 2 * pi)) for bend in bends]
    corners = []
    for angle in (2 * pi * i / 90 for i in range(90)):
        reach = thing.radius * (0.75 + sum(size * cos(bend * angle + turn) for bend, size, turn in waves))
        corners.append(
            ((thing.x + reach * cos(angle)) * image.width, (thing.y + reach * sin(angle)) * image.height)
        )
    ImageDraw.Draw(image).polygon(corners, fill=thing.rgb)
    return replace(thing, shape=OTHER)


def _run_together(image: Image.Image, thing: Thing, rng: random.Random) -> Thing:
    """Draws two shapes half over each other; what they then are."""
    other = rng.choice([shape for shape in SHAPES if shape != thing.shape])
    angle, apart, radius = rng.uniform(0, 2 * pi), 0.45 * thing.radius, 0.72 * thing.radius
    across, down = apart * cos(angle), apart * sin(angle)
    first = replace(thing, x=thing.x + across, y=thing.y + down, radius=radius)
    second = replace(thing, shape=other, x=thing.x - across, y=thing.y - down, radius=radius)
    image.paste(thing.rgb, mask=ImageChops.lighter(first.mask(*image.size), second.mask(*image.size)))
    return replace(thing, shape=OTHER)


def _two_coloured(image: Image.Image, thing: Thing, rng: random.Random) -> Thing:
    """Draws the shape with a second colour on about a half of it; what it then is."""
    ground = image.crop((0, 0, 1, 1)).tobytes()
    others = [rgb for name, rgb in COLOURS.items() if name != thing.colour and _apart(rgb, ground) > 3 * TINT]
    second = rng.choice(others)
    mask, angle = thing.mask(*image.size), rng.uniform(0, 2 * pi)
    x, y = thing.inner_point(*image.size)
    half, reach = Image.new("L", image.size), 2 * image.width
    corners = [(x + reach * cos(angle + turn), y + reach * sin(angle + turn)) for turn in (0, pi / 2, pi)]
    ImageDraw.Draw(half).polygon(corners, fill=255)
    image.paste(thing.rgb, mask=mask)
    image.paste(second, mask=ImageChops.darker(mask, half))
    return replace(thing, colour=OTHER)


def _apart(rgb: RGB, ground: bytes) -> int:
    return sum(abs(one - other) for one, other in zip(rgb, ground, strict=True))
