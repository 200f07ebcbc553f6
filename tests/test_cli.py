"""The command line as a user meets it: help, exit codes, precedence of options, and each verb at work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

import difflora.cli
from difflora.commands.drawing import reserve, save_numbered
from difflora.errors import RecipeError
from difflora.formats import read
from difflora.recipe import Recipe, Request, png_text, read_recipe
from difflora.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
DATA = ROOT / "sample_data"
SHAPES = str(DATA / "shapes-sd")
TRAIN = ["train", "--base-model", SHAPES, "--data", str(DATA / "styles" / "halftone")]
PROMPT = "a red circle on a blue background"
DRAW = ["generate", "--base-model", SHAPES, "--steps", "2", "--prompt"]


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Runs `difflora ...` in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["difflora", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            difflora.cli.main()
        printed = capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def halftone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of three steps; tests copy it."""
    folder = tmp_path_factory.mktemp("trained")
    words = [*TRAIN, "--preset", "style", "--output", str(folder), "--name", "halftone", "--steps", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["difflora", *words, "--save-every", "2", "--batch-size", "1", "--seed", "7"]
        )
        with pytest.raises(SystemExit) as ended:
            difflora.cli.main()
    assert ended.value.code == 0
    return folder / "halftone.safetensors"


# --- help and usage ---


def test_the_overview_needs_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys\nfrom difflora.cli import main\nsys.argv = ['difflora', '--help']\n"
        "try: main()\nexcept SystemExit as end: print('code', end.code)\n"
        "print('heavy', sorted({'torch', 'diffusers', 'transformers', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "code 0" in done.stdout and "heavy []" in done.stdout
    assert all(verb in done.stdout for verb in difflora.cli.VERBS)


@pytest.mark.parametrize("verb", list(difflora.cli.VERBS))
def test_every_verb_has_help(cli: Cli, verb: str) -> None:
    said = cli(verb, "--help")
    assert said.code == 0
    assert f"usage: difflora {verb}" in said.out


def test_every_option_of_training_and_of_requests_is_a_flag(cli: Cli) -> None:
    for verb, model in (("train", TrainConfig), ("generate", Request), ("grid", Request)):
        shown = cli(verb, "--help").out
        missing = [name for name in model.model_fields if f"--{name.replace('_', '-')}" not in shown]
        assert not missing, verb


def test_help_shows_the_values_of_a_preset(cli: Cli) -> None:
    plain = cli("train", "--help").out
    shown = cli("train", "--preset", "style", "--base-model", SHAPES, "--help").out
    assert "style on shapes" in shown and "style on" not in plain


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "difflora train"),
        (["train", "--rnak", "3"], "--rank"),
        (["train", "--steps", "many"], "steps"),
        (["train", "--steps", "3"], "--base-model, --output, --name, --data"),
        (["generate", "--base-model", SHAPES], "--prompt"),
        (["generate", "--base-model", SHAPES, "--from", "x.png", "--seed", "3"], "--seed"),
        (["grid", "--base-model", SHAPES, "--prompt", "x"], "--x"),
        (["show"], "TARGET"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(cli: Cli, words: list[str], hint: str) -> None:
    said = cli(*words)
    assert said.code == 2
    assert hint in said.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["show", "no/such/thing.safetensors"], "no such file"),
        ([*TRAIN, "--output", "o", "--name", "a/b", "--steps", "1"], "cannot be a file name"),
        ([*TRAIN, "--output", "o", "--name", "a", "--steps", "1", "--preset", "stlye"], "style"),
        ([*DRAW, "x <lora:nothing:1>"], "--adapters"),
        ([*DRAW, "x", "--adapter", "nothing.safetensors:0.5"], "nothing.safetensors"),
        ([*DRAW, "x", "--sampler", "Oiler"], "Euler"),
        ([*DRAW, "x", "--attention", "xformers"], "xformers"),
    ],
)
def test_an_error_is_one_message_without_traceback(cli: Cli, words: list[str], hint: str) -> None:
    said = cli(*words)
    assert said.code == 1
    assert said.err.startswith("error: ") and hint in said.err
    assert "Traceback" not in said.err


def test_debug_shows_the_traceback(cli: Cli) -> None:
    assert "Traceback" in cli("show", "no/such/thing.safetensors", "--debug").err


def test_what_was_not_foreseen_has_no_traceback_either(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import difflora.commands.show

    def broken(words: list[str]) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(difflora.commands.show, "run", broken)
    said = cli("show", "x")
    assert said.code == 1
    assert "ZeroDivisionError: oh" in said.err and "--debug" in said.err and "Traceback" not in said.err


# --- train ---


def test_the_same_command_again_changes_nothing_without_overwrite(
    cli: Cli, halftone: Path, tmp_path: Path
) -> None:
    shutil.copytree(halftone.parent, tmp_path / "out")
    file = tmp_path / "out" / halftone.name
    before = file.read_bytes(), file.stat().st_mtime_ns
    words = [*TRAIN, "--preset", "style", "--output", str(tmp_path / "out"), "--name", "halftone"]
    said = cli(*words, "--steps", "3", "--save-every", "2", "--batch-size", "1", "--seed", "7")
    assert said.code == 0 and "--overwrite" in said.out
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    again = cli(*words, "--steps", "2", "--batch-size", "1", "--overwrite")
    assert again.code == 0 and f"wrote {file}" in again.out
    assert read(file).meta.training["ss_steps"] == "2"


def test_flags_override_the_file_which_overrides_the_preset(cli: Cli, tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'base_model = "{Path(SHAPES).as_posix()}"\npreset = "style"\nrank = 3\nschedule = "linear"\n'
        'learning_rate = 0.5\nepochs = 7.0\nmin_snr_gamma = "none"\nbatch_size = 1\n'
    )
    words = [
        "train",
        "--config",
        toml,
        "--data",
        DATA / "styles" / "neon",
        "--output",
        tmp_path,
        "--name",
        "x",
    ]
    # 1e-4 is the field's own default, and was given: neither the file's 0.5 nor the preset's value may win.
    said = cli(*words, "--learning-rate", "1e-4", "--steps", "1", "--no-tensorboard")
    assert said.code == 0, said.err
    config = json.loads((tmp_path / "x.training.json").read_text())["config"]
    assert config["learning_rate"] == 1e-4
    assert (config["rank"], config["schedule"], config["min_snr_gamma"]) == (3, "linear", None)
    assert (config["steps"], config["epochs"]) == (1, None)
    assert config["targets"] == "all"


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("rnak = 3", "did you mean rank"),
        ("base-model = 'x'", "did you mean base_model"),
        ("= 3", "not a TOML file"),
    ],
)
def test_a_file_with_a_mistake_is_refused(cli: Cli, tmp_path: Path, content: str, hint: str) -> None:
    (tmp_path / "run.toml").write_text(content)
    said = cli("train", "--config", tmp_path / "run.toml")
    assert said.code == 1 and hint in said.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals to another process are POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_continues(
    cli: Cli, tmp_path: Path, number: int, code: int
) -> None:
    words = [*TRAIN, "--preset", "style", "--output", str(tmp_path), "--name", "cut", "--steps", "40"]
    words += ["--batch-size", "1", "--rank", "2", "--no-tensorboard"]
    command = [sys.executable, "-m", "difflora", *words]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        seen = next(line for line in process.stdout if line.startswith("cut 1/40"))
        time.sleep(0.2)
        process.send_signal(number)
        said = process.stderr.read()
        assert seen and process.wait(60) == code, said
    assert "The same command continues" in said and "Traceback" not in said
    assert not (tmp_path / "cut.safetensors").exists()
    if number == signal.SIGINT:
        again = cli(*words)
        assert again.code == 0, again.err
        assert "cut 1/40" not in again.out and "cut 40/40" in again.out
        assert read(tmp_path / "cut.safetensors").meta.training["ss_steps"] == "40"


# --- generate and grid ---


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_images_are_numbered_replayed_to_the_bit_and_never_overwritten(
    cli: Cli, halftone: Path, tmp_path: Path
) -> None:
    words = [*DRAW, f"{PROMPT} <lora:halftone:0.5>", "--adapters", halftone.parent, "--output", tmp_path]
    assert cli(*words, "--count", "2", "--seed", "5").code == 0
    first, second = sorted(tmp_path.iterdir())
    assert (first.name, second.name) == ("00001-5.png", "00002-6.png")
    recipe = read_recipe(second)
    assert recipe.request.prompt == PROMPT and recipe.adapters[0].unet == 0.5
    before = second.read_bytes()
    again = cli(*DRAW[:3], "--adapters", halftone.parent, "--from", second, "--output", tmp_path)
    assert again.code == 0 and "bit-exact" in again.out, again.out + again.err
    assert pixels(tmp_path / "00003-6.png") == pixels(second)
    assert second.read_bytes() == before


def test_a_tag_and_a_flag_give_the_same_image(cli: Cli, halftone: Path, tmp_path: Path) -> None:
    tag = [*DRAW, f"{PROMPT}<lora:halftone:0.25:-1>", "--adapters", halftone.parent, "--output", tmp_path]
    flag = [*DRAW, PROMPT, "--adapter", f"{halftone}:-1:0.25", "--output", tmp_path]
    assert (cli(*tag).code, cli(*flag).code) == (0, 0)
    assert pixels(tmp_path / "00001-0.png") == pixels(tmp_path / "00002-0.png")


def test_another_image_than_the_recipe_says_is_called_so(cli: Cli, halftone: Path, tmp_path: Path) -> None:
    assert cli(*DRAW, PROMPT, "--output", tmp_path).code == 0
    from difflora.recipe import save_png

    recipe = read_recipe(tmp_path / "00001-0.png")
    save_png(Image.new("RGB", (128, 128)), tmp_path / "edited.png", recipe)
    said = cli(*DRAW[:3], "--from", tmp_path / "edited.png", "--output", tmp_path)
    assert said.code == 0 and "not bit-exact" in said.out


def test_a_grid_takes_adapters_named_by_its_axes_from_the_folder(
    cli: Cli, halftone: Path, tmp_path: Path
) -> None:
    words = ["grid", "--base-model", SHAPES, "--prompt", PROMPT, "--steps", "2", "--batch", "4"]
    words += [
        "--x",
        "weight:halftone=0:1:2",
        "--y",
        "seed=1,2",
        "--adapters",
        str(halftone.parent),
        "--cells",
    ]
    said = cli(*words, "--output", tmp_path)
    assert said.code == 0, said.err
    sheet, *cells = sorted(tmp_path.iterdir())
    assert sheet.name == "00001-grid.png" and len(cells) == 4
    assert [[adapter.unet for adapter in read_recipe(cell).adapters] for cell in cells] in (
        [[], [1.0], [], [1.0]],
        [[0.0], [1.0], [0.0], [1.0]],
    )


def test_prompts_of_an_axis_are_prompts_enough(cli: Cli, tmp_path: Path) -> None:
    words = ["grid", "--base-model", SHAPES, "--x", "prompt=a red star|a blue ring", "--steps", "1"]
    said = cli(*words, "--output", tmp_path)
    assert said.code == 0, said.err
    assert [file.name for file in tmp_path.iterdir()] == ["00001-grid.png"]


def test_a_picture_that_cannot_be_written_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (8, 8))
    image.info.update(png_text(Recipe(request=Request(prompt="x"))))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RecipeError, match="No space left"):
        save_numbered([image], tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_that_has_run_out_is_no_bug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr("difflora.commands.options.BaseOptions.load", fail)
    said = cli(*DRAW, PROMPT)
    assert said.code == 1 and "error: out of memory" in said.err and "--offload" in said.err


def test_two_processes_never_get_the_same_number(tmp_path: Path) -> None:
    first, second = reserve(tmp_path, "1.png"), reserve(tmp_path, "1.png")
    assert (first.name, second.name) == ("00001-1.png", "00002-1.png")


# --- show ---


def test_show_names_what_a_base_would_train(cli: Cli) -> None:
    said = cli("show", SHAPES, "--rank", "4")
    assert said.code == 0
    assert "sd1, variant shapes" in said.out and "v_prediction with zero terminal SNR" in said.out
    listed = cli("show", SHAPES, "--targets", r"attn2\.to_k$", "--rank", "4").out.splitlines()
    layers = [line for line in listed if ".attn2.to_k " in line]
    assert f"selects {len(layers)} layers" in listed[0]
    # down (4, 128 of text) and up (64, 4)
    assert next(line for line in layers if "64 × 128" in line).endswith(str(4 * (128 + 64)))


def test_show_says_what_an_adapter_is_and_whether_it_fits(cli: Cli, halftone: Path) -> None:
    said = cli("show", halftone, "--base-model", SHAPES, "--metadata")
    assert said.code == 0
    assert read(halftone).data_hash in said.out
    assert "rank        32" in said.out and "fits" in said.out and "ss_seed = 7" in said.out
    other = ROOT / "tests" / "fixtures" / "adapters" / "kohya_sd15_lora.safetensors"
    assert cli("show", other, "--base-model", SHAPES).code == 1


def test_show_of_a_damaged_file_says_why(cli: Cli, halftone: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(halftone.read_bytes()[:1000])
    said = cli("show", tmp_path / "cut.safetensors")
    assert said.code == 1 and "cut.safetensors" in said.out


def test_show_of_an_image_is_its_recipe(cli: Cli, halftone: Path, tmp_path: Path) -> None:
    assert cli(*DRAW, PROMPT, "--adapter", f"{halftone}:0.5", "--output", tmp_path).code == 0
    said = cli("show", tmp_path / "00001-0.png")
    assert PROMPT in said.out and "halftone, weight 0.5" in said.out
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    assert cli("show", tmp_path / "bare.png").code == 1
