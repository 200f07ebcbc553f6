"""The tabs, the mix, and what is read out of pictures, without a browser."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from difflora import (
    Adapter,
    AdapterMeta,
    Model,
    Recipe,
    Request,
    Stack,
    configure,
    generate,
    save_png,
    survey,
    write,
)
from difflora.errors import ConfigError, DiffloraError, RecipeError
from difflora.kinds import LoRA
from webui.app import Flags, _settings
from webui.bases import choices
from webui.blending import contact_of, sheet_drawn, sheet_of, steps_of
from webui.parts import mix as mixes
from webui.parts.header import device_of, facts_of
from webui.parts.images import save_captions, told
from webui.parts.request import NUMBERS, SEED, WIDGETS, filled, wanted
from webui.restore import restored
from webui.settings import Settings
from webui.shared import Shared, linked
from webui.shelf import Query, found, to_trash
from webui.tabs import TABS
from webui.tabs.train import MANY
from webui.tabs.train import wanted as training_of
from webui.visitors import LOCAL
from webui.work.contact import Contact, SheetAxis
from webui.work.desk import MixRow
from webui.work.draw import Draw

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapters"


def loud(model: Model, name: str, *, rank: int = 2) -> Adapter:
    out, inner = model.shapes()[QUERY]
    source = torch.Generator().manual_seed(len(name))
    down, up = (torch.randn(*shape, generator=source) for shape in ((rank, inner), (out, rank)))
    return Adapter({QUERY: (LoRA(down, up, 1.0),)}, AdapterMeta(name=name, family="sd1", trigger="so loud"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path, shapes_model: Model) -> Shared:
    settings = Settings(str(shapes_folder), "", tmp_path_factory.mktemp("outputs"))
    settings.prepare()
    for name, rank in (("loud", 2), ("louder", 8)):
        write(loud(shapes_model, name, rank=rank), settings.adapters / f"{name}.safetensors")
    xl = FIXTURES / "kohya_sdxl_diffnames_lora.safetensors"
    (settings.adapters / "xl.safetensors").write_bytes(xl.read_bytes())
    return Shared(settings)


def chosen(shared: Shared, *rows: MixRow) -> list[object]:
    """The values of the mix's widgets."""
    known = [mixes.Known(row.name, "", "") for row in rows]
    cells = [
        value
        for row in rows
        for value in (row.on, row.unet, row.text is not None, row.unet if row.text is None else row.text)
    ]
    return [known, *cells, *[True, 1.0, False, 1.0] * (mixes.MAX_ROWS - len(rows))]


def test_every_file_of_tabs_is_in_its_tuple() -> None:
    folder = Path(__file__).parents[2] / "webui" / "tabs"
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "tab"}
    assert {tab.build.__module__.split(".")[-1] for tab in TABS} == files


def test_the_rows_of_a_mix_come_back_from_its_widgets(shared: Shared) -> None:
    rows = (MixRow(name="loud", unet=0.6), MixRow(name="louder", unet=-1, text=0.25, on=False))
    assert mixes.rows_of(chosen(shared, *rows)) == rows


def test_a_mix_that_the_server_has_forgotten_is_not_drawn_without(shared: Shared) -> None:
    _, *widgets = chosen(shared, MixRow(name="loud"))
    with pytest.raises(DiffloraError, match="open it again"):
        mixes.rows_of([None, *widgets])


def test_a_row_tells_what_is_known_of_its_adapter(shared: Shared) -> None:
    known = mixes.known_of(shared, "louder", shared.settings.base_model)
    assert known.words == "so loud" and "sd1" in known.facts and "rank 8" in known.facts
    assert "1 modules fit" in known.facts and "‖ΔW‖" in known.facts


@pytest.mark.parametrize(
    ("name", "words"), [("xl", "does not fit"), ("loud", "in the mix already"), ("nobody", "no adapter")]
)
def test_what_cannot_join_the_mix_says_why(shared: Shared, name: str, words: str) -> None:
    values = chosen(shared, MixRow(name="loud"))
    message, known, *_ = mixes.added(shared, name, shared.settings.base_model, values)
    assert words in message and [one.name for one in known] == ["loud"]


def test_an_adapter_joins_with_its_preferred_weight(shared: Shared) -> None:
    shared.library.note("louder", weight=0.4)
    message, known, *rest = mixes.added(
        shared, "louder", shared.settings.base_model, chosen(shared, MixRow(name="loud", unet=0.7))
    )
    assert "louder</b> joined" in message and [one.name for one in known] == ["loud", "louder"]
    weights = [
        update.value
        for update in rest
        if type(update).__name__ == "Slider" and update.label in ("loud", "louder")
    ]
    assert weights == [0.7, 0.4]


def test_the_form_makes_a_request_and_an_empty_seed_is_a_new_one(shared: Shared) -> None:
    fixed = ["a ring", "", "Euler", 7, "", 2, False]
    numbers = [{"guidance": "3.5", "width": "64"}.get(name, "") for name in NUMBERS]
    first, second = (
        wanted("base", [*fixed, *numbers], mix=chosen(shared, MixRow(name="loud"))) for _ in range(2)
    )
    assert (first.request.steps, first.request.guidance, first.request.width) == (7, 3.5, 64)
    assert first.request.height is None and first.mix == (MixRow(name="loud"),) and first.count == 2
    assert first.request.seed != second.request.seed
    with pytest.raises(ConfigError, match="width"):
        wanted("base", [*fixed, "63", *[""] * 5], mix=[[]])


@pytest.mark.parametrize(
    ("given", "every"),
    [({"steps": "200"}, 50), ({"steps": "3"}, 1), ({"epochs": "2"}, MANY // 4), ({"preview_every": "7"}, 7)],
)
def test_a_training_is_previewed_four_times_unless_the_form_says_otherwise(
    shared: Shared, given: dict[str, str], every: int
) -> None:
    values = ["folder", "style", "name", False, *given.values()]
    asked = training_of(shared.settings.base_model, values, list(given))
    assert asked.options["preview_every"] == every and "output" not in asked.options


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0, 0.5, 1", (0.0, 0.5, 1.0)),
        ("0 - 1 [5]", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("-1-1[3]", (-1.0, 0.0, 1.0)),
    ],
)
def test_weights_of_an_axis(text: str, steps: tuple[float, ...]) -> None:
    assert steps_of(text) == steps


@pytest.mark.parametrize("text", ["", "a, b", "0 - 1 [500]", "0 - 1 [0]", "99", "nan"])
def test_an_axis_that_cannot_be_drawn_says_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"0, 0\.5, 1"):
        steps_of(text)


@pytest.mark.parametrize("names", [("loud",), ("loud", "louder"), ("loud", "louder", "loudest")])
def test_a_sheet_comes_back_from_its_job_with_the_weights_of_its_cells(names: tuple[str, ...]) -> None:
    sheet = sheet_of([MixRow(name=name, unet=0.3) for name in names], "loud", "0, 0.5, 1", None, "0, 2")
    job = contact_of("base", sheet, "a ring", seed="3", steps=4, guidance="")
    again = sheet_drawn(Contact.model_validate_json(job.model_dump_json()))
    assert again is not None and again == sheet and again.weights(1)[0] == MixRow(name="loud", unet=0.5)
    if len(names) > 1:
        assert again.weights(5)[:2] == (MixRow(name="loud", unet=1.0), MixRow(name="louder", unet=2.0))
        assert {row.unet for row in again.weights(5)[2:]} <= {0.3}


def test_a_cell_dials_the_text_encoders_as_the_sheet_was_drawn() -> None:
    rows = [MixRow(name="loud", unet=0.5, text=0.25), MixRow(name="louder", unet=0.0, text=0.7)]
    sheet = sheet_of(rows, "loud", "0, 1", "louder", "0, 2")
    assert sheet.weights(3) == (
        MixRow(name="loud", unet=1.0, text=0.5),
        MixRow(name="louder", unet=2.0, text=None),
    )


def test_a_weight_beyond_the_sliders_is_told(shared: Shared) -> None:
    rows = [MixRow(name="loud", unet=3.5), MixRow(name="louder", unet=1.5)]
    _, fit, told = mixes.fitting(shared, rows, shared.settings.base_model)
    assert [row.unet for row in fit] == [2.0, 1.5] and len(told) == 1 and "3.5" in told[0]


def test_what_was_drawn_fills_the_form_again(shared: Shared) -> None:
    request = Request(prompt="a ring", steps=400, seed=5, guidance=3.0, batch=4)
    drawing = Draw(base=shared.settings.base_model, request=request, mix=(MixRow(name="loud"),), count=3)
    told, prompt, *_ = updates = filled(shared, drawing)
    assert prompt == "a ring" and any("400 steps" in one for one in told)
    asked = wanted(drawing.base, updates[1 : 1 + WIDGETS], mix=[[]])
    assert asked.request == request.model_copy(update={"steps": 100}) and asked.count == 3
    assert updates[1 + SEED] == "5"


def test_a_sheet_over_something_else_than_weights_has_no_cells_to_take() -> None:
    seeds = SheetAxis(name="seed", values=(1, 2))
    assert sheet_drawn(Contact(base="base", request=Request(prompt="a ring"), mix=(), axes=(seeds,))) is None


def test_settings_come_back_from_a_picture(shared: Shared, shapes_model: Model, tmp_path: Path) -> None:
    request = Request(prompt="a red circle", negative="blue", steps=2, seed=5, guidance=3.0, sampler="Euler")
    stack = Stack([(shared.library.get("loud"), 0.6)])
    (image,) = generate(shapes_model, request, stack=stack)
    save_png(image, tmp_path / "a.png", Recipe.from_json(image.info["difflora"]))
    back = restored(tmp_path / "a.png", shared.library)
    assert back.rows == (MixRow(name="loud", unet=0.6),) and back.notes == ()
    assert (back.request.prompt, back.request.negative, back.request.seed) == ("a red circle", "blue", 5)
    assert (back.request.steps, back.request.guidance, back.request.sampler) == (2, 3.0, "Euler")


def test_settings_come_back_from_a_picture_of_a1111(shared: Shared, tmp_path: Path) -> None:
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a red circle <lora:loud:0.5> <lora:gone:1>\nNegative prompt: blue\n"
        "Steps: 9, Sampler: Euler, CFG scale: 6, Seed: 3, Size: 64x64, Model: v1, Version: v1.10.1",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    back = restored(tmp_path / "a.png", shared.library)
    assert back.rows == (MixRow(name="loud", unet=0.5),)
    assert (back.request.steps, back.request.seed, back.request.width) == (9, 3, 64)
    assert any("gone" in note for note in back.notes)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(RecipeError, match="no recipe"):
        restored(tmp_path / "b.png", shared.library)


def test_a_weight_of_a_picture_that_no_mix_can_have_is_told(shared: Shared, tmp_path: Path) -> None:
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a ring <lora:loud:9>\nSteps: 9, Sampler: Euler, CFG scale: 6, Seed: 3")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    back = restored(tmp_path / "a.png", shared.library)
    assert back.rows == () and any("9" in note and "loud" in note for note in back.notes)


def test_nobody_learns_from_the_pictures_of_another(shared: Shared) -> None:
    settings, own = shared.settings, shared.uploads("user ann")
    previews = settings.adapters / "previews" / "bobs"
    jobs, uploads = settings.jobs / "000001", settings.uploads
    for folder in (jobs, settings.output, shared.uploads("user bob"), uploads, previews):
        with pytest.raises(ConfigError, match="others have made"):
            shared.require_readable(str(folder), "user ann")
        shared.require_readable(str(folder), LOCAL)
    for folder in (own / "0123", settings.output.parent / "images"):
        shared.require_readable(str(folder), "user ann")


def test_captions_are_written_where_they_differ(tmp_path: Path) -> None:
    from PIL import Image

    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (64 + 16 * number, 64), (number, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a ring")
    (tmp_path / "b.caption").write_text("a star")
    seen = survey(configure({"data": tmp_path, "base_model": "x", "name": "x", "output": "x", "steps": 1,
                             "trigger": "t"}), resolution=64)  # fmt: skip
    assert "from 64×64 to 96×64" in told(seen) and "1 have no caption" in told(seen)
    written = save_captions(
        seen, {"a.png": "a ring", "b.png": "a heart", "c.png": "a cross", "../evil.png": "x"}
    )
    assert "2 captions written" in written
    texts = {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix != ".png"}
    assert texts == {"a.txt": "a ring", "b.caption": "a heart\n", "c.txt": "a cross\n"}


def test_two_pages_may_link_one_picture_at_once(tmp_path: Path) -> None:
    for number in range(50):
        source, target = tmp_path / f"{number}.png", tmp_path / "served" / f"{number}.png"
        target.parent.mkdir(exist_ok=True)
        source.write_bytes(b"a picture")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, pair=(source, target): linked(*pair), range(4)))
        assert found == [target] * 4 and target.read_bytes() == b"a picture"
    assert len(list((tmp_path / "served").iterdir())) == 50


def test_searching_sorting_and_filtering_the_library(shared: Shared) -> None:
    names = [entry.name for entry in found(shared.library, Query())]
    assert names == ["loud", "louder", "xl"]
    assert [entry.name for entry in found(shared.library, Query("so loud"))] == ["loud", "louder"]
    assert [entry.name for entry in found(shared.library, Query(family="sdxl"))] == ["xl"]
    ranked = [entry.name for entry in found(shared.library, Query("lou", order="rank"))]
    assert ranked == ["louder", "loud"]
    by_hash = shared.library.find("loud").hashes.autov3
    assert [entry.name for entry in found(shared.library, Query(by_hash.upper()))] == ["loud"]


def test_the_trash_takes_an_adapter_with_its_notes_and_no_other(
    shared: Shared, shapes_model: Model, tmp_path: Path
) -> None:
    folder = shared.settings.adapters
    write(loud(shapes_model, "brief"), folder / "brief.safetensors")
    shared.library.refresh()
    shared.library.note("brief", text="not long")
    place = to_trash(shared.library.find("brief"), shared)
    assert sorted(path.name for path in place.iterdir()) == ["brief.json", "brief.safetensors"]
    assert not (folder / "brief.safetensors").exists() and "brief" not in shared.library.entries
    elsewhere = Settings("", "", tmp_path / "out", (folder,))
    other = Shared(elsewhere)
    with pytest.raises(Exception, match="only read"):
        to_trash(other.library.find("loud"), other)
    assert (folder / "loud.safetensors").exists()


def test_a_base_that_is_none_is_told(shared: Shared) -> None:
    assert "shapes" in facts_of(shared, shared.settings.base_model)
    assert "error" in facts_of(shared, "/there/is/<b>none</b>")
    assert "<b>none" not in facts_of(shared, "<b>none")


def test_the_header_tells_the_device_once_the_worker_has(shared: Shared) -> None:
    assert "starting" in device_of(shared)
    state = {"device": "<b>GPU", "used": 3 << 30, "total": 24 << 30, "loaded": "shapes-sd"}
    shared.settings.state.write_text(json.dumps(state))
    assert "&lt;b&gt;GPU · 3.0 of 24.0 GiB · shapes-sd loaded" in device_of(shared)


def test_bases_to_choose_from_are_the_first_the_baked_and_those_in_folders(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for folder in (models / "deep" / "whole" / "unet", tmp_path / "outputs" / "bases"):
        folder.mkdir(parents=True)
    (models / "deep" / "whole" / "model_index.json").touch()
    files = [models / "one.safetensors", tmp_path / "outputs" / "bases" / "one.safetensors"]
    for file in (*files, models / "whole.yaml", models / "deep" / "whole" / "unet" / "part.safetensors"):
        file.touch()
    (models / "round").symlink_to(models)
    found = dict(choices(Settings("org/first", "", tmp_path / "outputs", checkpoints=(models,))))
    assert found == {
        "first": "org/first",
        "whole": str(models / "deep" / "whole"),
        **{f"one ({file})": str(file) for file in files},
    }


def test_what_does_not_fit_another_base_leaves_the_mix(shared: Shared) -> None:
    rows = chosen(shared, MixRow(name="loud", unet=0.4), MixRow(name="xl"))
    message, known, *_ = mixes.rechecked(shared, shared.settings.base_model, rows)
    assert "xl is left out of the mix" in message and "does not fit" in message
    assert [one.name for one in known] == ["loud"] and "modules fit" in known[0].facts
    assert mixes.rechecked(shared, shared.settings.base_model, chosen(shared, MixRow(name="loud")))[0] == ""


def test_a_new_page_brings_the_demonstration_and_an_old_one_what_was_left(tmp_path: Path) -> None:
    settings = _settings(Flags(output=tmp_path))
    names = sorted(path.name for path in settings.adapters.glob("*.safetensors"))
    assert names == ["halftone.safetensors", "neon.safetensors", "robot.safetensors"]
    library = Shared(settings).library
    for name, entry in library.entries.items():
        assert entry.preview is not None and mixes.known_of(Shared(settings), name, settings.base_model)
    (settings.adapters / "neon.safetensors").unlink()
    again = _settings(Flags(output=tmp_path))
    assert not (again.adapters / "neon.safetensors").exists()
