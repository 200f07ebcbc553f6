"""The demonstration, shortened: what it writes, and that running it again reuses it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflora.commands.demo import _is_current, run
from difflora.demo import LESSONS, find_sample_data
from difflora.errors import ConfigError, DiffloraError
from difflora.formats import read
from difflora.training.config import TrainConfig, configure
from train_scripts import make_sample_adapters

SHORT = ["--steps", "1", "--draw-steps", "1"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert run([*SHORT, "--output", str(folder)]) == 0
    return folder


def test_every_lesson_leaves_an_adapter_and_a_sheet(output: Path) -> None:
    for lesson in LESSONS:
        assert read(output / f"{lesson.name}.safetensors").meta.name == lesson.name
        with Image.open(output / f"{lesson.name}_before_after.png") as sheet:
            # three rows of five pictures, each enlarged to 256
            assert sheet.width > 5 * 256 and sheet.height > 3 * 256


def test_the_adapters_can_be_kept_as_sample_data(output: Path, tmp_path: Path) -> None:
    make_sample_adapters.main(demo=output, to=tmp_path)
    for lesson in LESSONS:
        kept, made = (read(folder / f"{lesson.name}.safetensors") for folder in (tmp_path, output))
        assert kept.meta.trigger == made.meta.trigger == lesson.trigger
        assert {t.dtype for kinds in kept.modules.values() for k in kinds for t in k.factors()[:2]} == {
            torch.float16
        }
        with Image.open(tmp_path / f"{lesson.name}.preview.png") as picture:
            assert picture.size == (128, 128)
    with pytest.raises(DiffloraError, match="make demo"):
        make_sample_adapters.main(demo=tmp_path / "nothing", to=tmp_path)


def test_the_blend_is_five_by_five(output: Path) -> None:
    with Image.open(output / "blend_halftone_neon.png") as sheet:
        assert min(sheet.size) > 5 * 256


def test_run_again_it_reuses_the_adapters(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {file: file.stat().st_mtime_ns for file in output.glob("*.safetensors")}
    assert run([*SHORT, "--output", str(output)]) == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert capsys.readouterr().out.count("trained before") == len(LESSONS)


def test_an_adapter_that_was_learned_from_other_images_is_trained_anew(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(output, tmp_path / "again")
    record = tmp_path / "again" / "neon.training.json"
    told = json.loads(record.read_text(encoding="utf-8"))
    told["data"]["fingerprint"] = "of other images"
    record.write_text(json.dumps(told), encoding="utf-8")
    assert run([*SHORT, "--output", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "neon: of other images, another base or other steps, trained anew" in said
    assert said.count("trained before") == len(LESSONS) - 1
    told = json.loads(record.read_text(encoding="utf-8"))
    assert told["data"]["fingerprint"] != "of other images"


def test_an_adapter_of_other_steps_or_without_its_record_is_not_current(output: Path, tmp_path: Path) -> None:
    def lesson(folder: Path, steps: int | None) -> TrainConfig:
        return configure(LESSONS[0].options(find_sample_data(), folder, steps=steps))

    assert _is_current(lesson(output, 1))
    assert not _is_current(lesson(output, 2)) and not _is_current(lesson(output, None))
    shutil.copytree(output, tmp_path / "again")
    (tmp_path / "again" / f"{LESSONS[0].name}.training.json").unlink()
    assert not _is_current(lesson(tmp_path / "again", 1))


def test_no_prompt_is_a_caption_that_was_trained_on() -> None:
    data = find_sample_data()
    for lesson in LESSONS:
        captions = {file.read_text(encoding="utf-8").strip() for file in (data / lesson.folder).glob("*.txt")}
        unseen = [prompt for prompt in lesson.prompts if prompt not in captions]
        assert len(captions) >= 8
        assert len(unseen) >= (2 if lesson.preset == "subject" else len(lesson.prompts)), lesson.name


def test_without_sample_data_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clone of the repository"):
        find_sample_data(tmp_path)
