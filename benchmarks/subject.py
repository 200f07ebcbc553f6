"""Whether a subject learned from a folder is recognised in new places and under new words."""

from pathlib import Path

from benchmarks.drawing import judged_sheet
from benchmarks.exam import ROBOT
from benchmarks.painter import Painter
from benchmarks.report import Section, share, with_goal
from difflora.adapter import Adapter
from train_scripts.shapes.characters import TRIGGER
from train_scripts.shapes.sample_data import ROBOT_BACKGROUNDS
from train_scripts.shapes.world import COLOURS

SHEET_ROWS, SHEET_COLUMNS = 4, 6
_ABOUT = (
    "A robot. The folder lacks two of the world's backgrounds, which are unseen; the prompts of a sort come "
    "again with other seeds until there are enough."
)


def subject_prompts(count: int) -> dict[str, list[tuple[str, str]]]:
    """Sorts of prompts → `count` pairs of prompt and background; only the last sort has the folder's own."""
    unseen = [colour for colour in COLOURS if colour not in ROBOT_BACKGROUNDS]
    wordings = ("{} on a {} background", "a picture of {} on a {} background", "a {} on a {} background")
    sorts = {
        "unseen backgrounds": [(f"a photo of {TRIGGER} on a {place} background", place) for place in unseen],
        "other words": [(words.format(TRIGGER, place), place) for words in wordings for place in COLOURS],
        "backgrounds of the folder": [
            (f"a photo of {TRIGGER} on a {place} background", place) for place in ROBOT_BACKGROUNDS
        ],
    }
    return {sort: (pairs * -(-count // len(pairs)))[:count] for sort, pairs in sorts.items()}


def subject_section(paint: Painter, adapter: Adapter, count: int, output: Path) -> Section:
    """Shares of pictures with the robot for each sort of prompt; writes a sheet of each to `output`."""
    rows = []
    for sort, pairs in subject_prompts(count).items():
        prompts = [prompt for prompt, _ in pairs]
        drawn, base = paint(prompts, adapter), paint(prompts, adapter, 0.0)
        recognised = [one.subject == ROBOT for one in drawn.seen]
        places = [one.background == place for one, (_, place) in zip(drawn.seen, pairs, strict=True)]
        alone = share([one.subject == ROBOT for one in base.seen])
        found = share(recognised)
        rows.append((sort, with_goal(found, "≥ 0.8"), str(alone), str(share(places))))
        shown = slice(0, SHEET_ROWS * SHEET_COLUMNS)
        sheet = judged_sheet(drawn.images[shown], recognised[shown], columns=SHEET_COLUMNS)
        sheet.save(output / f"judged_{adapter.meta.name}_{sort.replace(' ', '_')}.png")
    columns = ("prompts", "robot recognised", "base alone", "background right")
    return Section("A subject learned from 8 images", _ABOUT, columns, tuple(rows))
