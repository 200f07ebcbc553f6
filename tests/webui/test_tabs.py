"""What the buttons do, on the embedded base with few steps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflora import Adapter, AdapterMeta, Model, read_recipe, write
from difflora.errors import ConfigError, DataError, LibraryError
from difflora.kinds import LoRA
from webui.shared import Settings, Shared
from webui.tabs import TABS
from webui.tabs.generate import Wanted, adapter_names, draw
from webui.tabs.train import run

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path, shapes_model: Model) -> Shared:
    """The page's state, with the session's base in place of one more copy."""
    settings = Settings(str(shapes_folder), "", tmp_path_factory.mktemp("outputs"))
    shared = Shared(settings)
    shared._base = (str(shapes_folder), shapes_model)
    out, inner = shapes_model.shapes()[QUERY]
    change = LoRA(torch.randn(2, inner), torch.randn(out, 2), 1.0)
    adapter = Adapter({QUERY: (change,)}, AdapterMeta(name="loud", family="sd1"))
    write(adapter, settings.adapters / "loud.safetensors")
    return shared


@pytest.fixture
def wanted(shared: Shared) -> Wanted:
    request = {"prompt": "a red circle on a blue background", "steps": 2, "seed": 5}
    return Wanted(shared.settings.base_model, request, shared.settings.adapters)


def test_every_file_of_tabs_is_in_its_tuple() -> None:
    folder = Path(__file__).parents[2] / "webui" / "tabs"
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "tab"}
    assert {tab.build.__module__.split(".")[-1] for tab in TABS} == files


def test_images_are_png_files_that_keep_their_recipe(shared: Shared, wanted: Wanted) -> None:
    files = draw(shared, replace(wanted, count=2))
    assert len(set(files)) == 2 and all(file.parent == shared.settings.images for file in files)
    assert [read_recipe(file).seed for file in files] == [5, 6]
    assert read_recipe(files[0]).request.prompt == wanted.request["prompt"]


def test_a_row_and_a_tag_are_the_same_mix(shared: Shared, wanted: Wanted) -> None:
    (row,) = draw(shared, replace(wanted, weights=(("loud", 0.6),)))
    tagged = {**wanted.request, "prompt": f"{wanted.request['prompt']} <lora:loud:0.6>"}
    (tag,) = draw(shared, replace(wanted, request=tagged))
    (plain,) = draw(shared, wanted)
    assert row.read_bytes() == tag.read_bytes() != plain.read_bytes()
    assert [(one.name, one.unet) for one in read_recipe(row).adapters] == [("loud", 0.6)]


def test_progress_reaches_the_last_step(shared: Shared, wanted: Wanted) -> None:
    seen: list[tuple[int, int]] = []
    draw(shared, wanted, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_adapters_of_a_folder_are_listed_and_a_missing_folder_has_none(
    shared: Shared, tmp_path: Path
) -> None:
    assert adapter_names(str(shared.settings.adapters)) == ["loud"]
    assert adapter_names(str(tmp_path / "nowhere")) == []


def test_what_cannot_be_drawn_raises_a_plain_error(shared: Shared, wanted: Wanted) -> None:
    with pytest.raises(LibraryError, match="lood"):
        draw(shared, replace(wanted, weights=(("lood", 1.0),)))
    with pytest.raises(ConfigError, match="steps"):
        draw(shared, replace(wanted, request={**wanted.request, "steps": 0}))


@pytest.fixture
def options(shared: Shared, tmp_path: Path) -> dict[str, object]:
    data = Path(__file__).parents[2] / "sample_data" / "styles" / "halftone"
    given = {
        "base_model": shared.settings.base_model,
        "data": str(data),
        "output": str(tmp_path),
        "name": "dots",
    }
    small = {"rank": 2, "batch_size": 1, "threads": 1, "tensorboard": False, "cache_latents": "off"}
    return {**given, **small, "preset": "style", "steps": 3, "save_every": 100}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Shared]:
    """State without a base: training drops the one in memory."""
    yield Shared(Settings("", "", tmp_path))


def test_training_shows_every_step_and_writes_the_adapter(
    own: Shared, options: dict[str, object], tmp_path: Path
) -> None:
    shown = [moment.status for moment in run(own, options)]
    assert shown[0] == "preparing"
    assert [line.split("   ")[0] for line in shown[1:-1]] == ["step 1 of 3", "step 2 of 3"]
    assert "loss" in shown[1] and "images/s" in shown[1] and "left" in shown[2]
    assert shown[-1].startswith(f"finished: {tmp_path / 'dots.safetensors'}")
    assert adapter_names(str(tmp_path)) == ["dots"]


def test_stop_saves_and_the_same_values_continue(own: Shared, options: dict[str, object]) -> None:
    first = []
    for moment in run(own, options):
        first.append(moment.status)
        if moment.status.startswith("step 1"):
            own.stop.set()
    assert first[-1].startswith("stopped after step 1 and saved")
    rest = [moment.status for moment in run(own, options)]
    assert rest[1].startswith("step 2 of 3") and rest[-1].startswith("finished")


def test_options_that_cannot_be_used_raise_a_plain_error(own: Shared, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="rank"):
        list(run(own, {**options, "rank": 0}))
    with pytest.raises(DataError):
        list(run(own, {**options, "data": str(own.settings.images)}))
