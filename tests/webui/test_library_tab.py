"""The library's tab: thousands of cards, what is told of an adapter and of two, to the trash and back."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from difflora import Adapter, AdapterMeta, Model, profile, scale, write
from difflora.errors import LibraryError
from tests.algebra.adapters import of_kind
from tests.library.scenes import adapter
from webui.jobs import Job, Jobs
from webui.parts import pair, strength
from webui.settings import Settings
from webui.shared import Shared
from webui.shelf import COVER, PAGE, Query, cover, found, out_of_trash, to_trash
from webui.tabs.library import _page
from webui.work import WORK, Desk
from webui.work.arithmetic import HEAT, Comparing
from webui.work.desk import Bases
from webui.worker import do

MANY = 5000


@pytest.fixture
def shared(tmp_path: Path, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    made = Shared(Settings(str(shapes_folder), "", tmp_path / "out"))
    for number, name in enumerate(("neon", "a/robot", "b/robot")):
        keep(made, name, adapter(number))
    return made


def keep(shared: Shared, name: str, one: Adapter) -> Path:
    path = shared.settings.adapters / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(one, path)
    return path


def everything(shared: Shared) -> dict[str, bytes]:
    """Path below the folder of adapters -> what is in the file."""
    folder = shared.settings.adapters
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def beside(shared: Shared, name: str) -> None:
    """Notes, a picture and the record of a training beside an adapter."""
    shared.library.note(name, trigger="in neon", text="bright")
    stem = shared.settings.adapters / name
    Image.new("RGB", (9, 9), "red").save(f"{stem}.preview.png")
    Path(f"{stem}.training.json").write_text("{}")
    shared.library.refresh()


@pytest.mark.parametrize("name", ["neon", "a/robot"])
def test_an_adapter_comes_back_from_the_trash_with_all_that_lay_beside_it(shared: Shared, name: str) -> None:
    beside(shared, name)
    before, entry = everything(shared), shared.library.find(name)
    place = to_trash(entry, shared)
    assert not [path for path in everything(shared) if path.startswith(f"{name}.")]
    assert name not in shared.library.entries
    out_of_trash(place, shared)
    assert everything(shared) == before and len(before) == 6
    assert shared.library.find(name) == entry and entry.notes.text == "bright"
    assert not list(shared.settings.trash.iterdir())


def test_what_comes_back_overwrites_nothing(shared: Shared) -> None:
    beside(shared, "neon")
    whole = everything(shared)
    place = to_trash(shared.library.find("neon"), shared)
    new = shared.settings.adapters / "neon.json"
    new.write_text('{"notes": "of another"}')
    before = everything(shared)
    with pytest.raises(LibraryError, match=r"other files have its names(?s:.*)neon\.json"):
        out_of_trash(place, shared)
    assert everything(shared) == before
    new.unlink()
    out_of_trash(place, shared)
    assert everything(shared) == whole
    with pytest.raises(LibraryError, match="not in the trash any more"):
        out_of_trash(place, shared)


def test_adapters_of_one_name_are_kept_apart_in_the_trash(shared: Shared) -> None:
    before = everything(shared)
    first, second = (to_trash(shared.library.find(f"{folder}/robot"), shared) for folder in "ab")
    assert first != second
    out_of_trash(second, shared)
    out_of_trash(first, shared)
    assert everything(shared) == before


def test_a_folder_goes_to_the_trash_whole_and_takes_nothing_of_its_neighbours(shared: Shared) -> None:
    folder = shared.settings.adapters / "neon.v1"
    write(adapter(7), folder, format="peft")
    (shared.settings.adapters / "neon.training.json").write_text("{}")
    shared.library.refresh()
    before = everything(shared)
    place = to_trash(shared.library.find("neon.v1"), shared)
    assert not folder.exists() and "neon.training.json" in everything(shared)
    out_of_trash(place, shared)
    assert everything(shared) == before and "neon.v1" in shared.library.entries


def test_cards_show_a_small_picture_or_the_first_letters(shared: Shared) -> None:
    folder = shared.settings.adapters
    Image.new("RGB", (600, 400), "red").save(folder / "neon.png")
    (folder / "a" / "robot.png").write_bytes(b"\x89PNG nothing")
    shared.library.refresh()
    pictures = {}
    for name, entry in shared.library.entries.items():
        with Image.open(cover(shared, entry)) as picture:
            pictures[name] = picture.convert("RGB")
    assert pictures["neon"].size == (COVER, 171) and pictures["neon"].getpixel((9, 9)) == (254, 0, 0)
    assert pictures["a/robot"].tobytes() == pictures["b/robot"].tobytes()
    assert len(pictures["b/robot"].getcolors(1 << 16) or []) > 2, "letters on a ground"
    entry = shared.library.find("neon")
    (folder / "neon.png").unlink()
    assert Path(cover(shared, entry)).exists()


def test_what_is_measured_is_shown_of_the_adapter_on_show_alone(shared: Shared) -> None:
    measured = strength._measuring(shared)("neon")
    truth = profile(shared.library.get("neon"))
    assert measured.spectrum is not None and measured.blocks is not None
    (unet,) = truth.spectra.values()
    assert measured.spectrum["√Σσ²"].tolist() == pytest.approx(unet)
    assert dict(measured.blocks.itertuples(index=False)) == pytest.approx(truth.norms_by_block)
    assert f"rank 1 loses {truth.error(1):.1%}" in measured.words and f"{truth.norm:.4g}" in measured.words
    words, blocks, spectrum = strength._shown(measured, "neon")
    assert words == measured.words and spectrum.visible and not blocks.visible
    late = strength._shown(measured, "a/robot")
    assert measured.words not in late and late[0] == late[1] == late[2]
    assert "nobody" in strength._measuring(shared)("nobody").words


@pytest.fixture
def compared(shared: Shared) -> Callable[[str, str], Job]:
    jobs = Jobs(shared.settings.jobs)

    def run(name: str, other: str) -> Job:
        asked = Comparing(adapter=name, other=other, base=shared.settings.base_model)
        number = jobs.submit("ann", "compare", asked.model_dump_json()).number
        job = jobs.claim()
        assert job is not None and job.number == number
        do(job, Desk(job, jobs, shared.settings, Bases()), works=WORK)
        return jobs.get(number, "ann")

    return run


def test_two_adapters_are_compared(shared: Shared, compared: Callable[[str, str], Job]) -> None:
    keep(shared, "against", scale(adapter(0), -0.5)[0])
    job = compared("neon", "against")
    facts = json.loads(job.result)
    assert facts["cosine"] == pytest.approx(-1) and facts["overlap"] == pytest.approx(1)
    assert facts["norms"][0] == pytest.approx(2 * facts["norms"][1])
    assert (facts["both"], facts["alone"], facts["names"]) == (1, [0, 0], ["neon", "against"])
    assert job.files == (HEAT,) and (shared.jobs.place(job) / HEAT).exists()
    told = pair._told(facts)
    assert "-1.0000 over all modules" in told and "100% (median of the modules)" in told
    assert "attn1.to_q" in told


def test_adapters_that_share_no_module_have_no_picture(
    shared: Shared, shapes_model: Model, compared: Callable[[str, str], Job]
) -> None:
    other = of_kind(shapes_model, "lora", 1)
    paths = [path for path in other.modules if path not in adapter(0).modules]
    keep(shared, "far", replace(other, modules={path: other.modules[path] for path in paths}))
    job = compared("neon", "far")
    facts = json.loads(job.result)
    assert (facts["both"], facts["alone"]) == (0, [1, len(paths)]) and facts["cosine"] == 0
    assert not job.files and "0 changed by both, 1 by neon alone" in pair._told(facts)


def test_what_depends_on_the_base_is_compared_on_it(
    shared: Shared, shapes_model: Model, compared: Callable[[str, str], Job]
) -> None:
    for name, kind in (("low", "lora"), ("turned", "dora_out")):
        keep(shared, name, of_kind(shapes_model, kind, 1))
    job = compared("low", "turned")
    assert job.state == "done" and json.loads(job.result)["both"] > 1
    failed = compared("turned", "neon")
    assert failed.state == "failed" and "to_q" in failed.error, "neon is of a larger base"


def test_names_in_a_comparison_are_text(compared: Callable[[str, str], Job], shared: Shared) -> None:
    keep(shared, "<b>x", Adapter(adapter(3).modules, AdapterMeta(family="sd1")))
    told = pair._told(json.loads(compared("<b>x", "neon").result))
    assert "&lt;b&gt;x" in told and "<b>x" not in told


def test_a_worker_lists_the_adapters_once_and_misses_none(shared: Shared) -> None:
    jobs, bases = Jobs(shared.settings.jobs), Bases()
    jobs.submit("ann", "compare", "{}")
    job = jobs.claim()
    assert job is not None
    first = Desk(job, jobs, shared.settings, bases).library()
    again = Desk(job, jobs, shared.settings, bases).library()
    assert again is first
    path = keep(shared, "later", adapter(5))
    assert again.get("later").data_hash == shared.library.get("later").data_hash
    write(adapter(6), path)
    os.utime(path, ns=(1, 1))
    assert again.get("later").data_hash == Shared(shared.settings).library.get("later").data_hash


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, the least of three times."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def test_thousands_of_adapters_are_smooth(shared: Shared) -> None:
    raw = (shared.settings.adapters / "neon.safetensors").read_bytes()
    for number in range(MANY):
        path = shared.settings.adapters / str(number % 40) / f"style {number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
        path.with_suffix(".json").write_text('{"activation text": "some words"}')
        if number < 2 * PAGE:
            Image.new("RGB", (512, 512), (number, 90, 30)).save(path.with_suffix(".png"))
    start = time.monotonic()
    _page(shared, Query())
    print(f"{MANY} files: {time.monotonic() - start:.2f} s to index and show the first page")
    took = {
        "by name": seconds(lambda: _page(shared, Query())),
        "a page of the newest": seconds(lambda: _page(shared, Query(order="newest", page=7))),
        "a search": seconds(lambda: _page(shared, Query("style 49 words"))),
        "a listing anew": seconds(shared.library.refresh),
        "an opened library": seconds(lambda: Shared(shared.settings).library.get("style 17")),
        "a look at one": seconds(lambda: shared.library.find("style 4321")),
    }
    print({what: round(time, 3) for what, time in took.items()})
    assert max(took.values()) < 0.5
    those = sum("49" in str(number) for number in range(MANY))
    assert len(found(shared.library, Query("style 49 words"))) == those
