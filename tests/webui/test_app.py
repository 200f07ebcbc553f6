"""The page is served to this computer only, hands out a user's own pictures and nothing else, and answers
scripts as it answers people."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from difflora import Model, Request, Stack, generate, read, read_recipe, write
from tests.webui.serving import ROOT, SHAPES, Site, free_port, random_adapter, serve
from webui.passwords import add_user

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    output = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("dots", "glow")):
        (output / "adapters").mkdir(exist_ok=True)
        write(random_adapter(name, seed), output / "adapters" / f"{name}.safetensors")
    with serve(output) as site:
        yield site


@pytest.fixture(scope="module")
def client(site: Site) -> Client:
    return Client(site.url, verbose=False, download_files=str(site.output / "downloads"))


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return str(answer.read().decode())


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def pixels(path: str) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def test_it_listens_on_the_loopback_address_only(site: Site) -> None:
    port = int(site.url.rstrip("/").rsplit(":", 1)[1])
    listening = re.findall(
        rf"\b([0-9A-F]{{8}}):{port:04X} 00000000:0000 0A", Path("/proc/net/tcp").read_text()
    )
    assert listening == ["0100007F"]


def test_the_page_loads_nothing_from_elsewhere(site: Site) -> None:
    page = fetch(site.url)
    loaded = re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", page)
    assert "difflora" in page and not [url for url in loaded if not url.startswith(site.url)]
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", fetch(f"{site.url}theme.css"))


@pytest.mark.parametrize(
    "path",
    [
        "{output}/adapters/dots.safetensors",
        "{output}/jobs/jobs.sqlite",
        "{output}/worker.log",
        "{root}/sample_data/shapes-sd/unet/diffusion_pytorch_model.safetensors",
        "{root}/README.md",
        "{root}/pyproject.toml",
        "/etc/passwd",
        "{output}/jobs/../adapters/dots.safetensors",
    ],
)
def test_no_file_is_served_by_its_path(site: Site, path: str) -> None:
    where = path.format(output=site.output, root=ROOT)
    assert status(f"{site.url}gradio_api/file={where}") in (403, 404)
    assert status(f"{site.url}file={where}") in (403, 404)


def test_the_named_endpoints_are_those_that_readme_names(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)
    assert isinstance(named, dict)
    assert sorted(named["named_endpoints"]) == ["/generate", "/grid", "/jobs", "/library", "/train"]


def test_a_script_draws_with_a_mix(client: Client) -> None:
    settings = {"steps": 2, "seed": 7}
    (path,) = client.predict(PROMPT, mix={"dots": 0.5}, settings=settings, api_name="/generate")
    recipe = read_recipe(path)
    assert (recipe.seed, recipe.request.prompt, recipe.request.steps) == (7, PROMPT, 2)
    assert [(one.name, one.unet) for one in recipe.adapters] == [("dots", 0.5)]


def test_the_calls_of_readme_do_what_it_says(site: Site, client: Client) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (one for one in re.findall(r"```py\n(.*?)```", text, re.DOTALL) if "gradio_client" in one)
    here = {"http://127.0.0.1:7860": site.url, "halftone": "dots", "sample_data": str(ROOT / "sample_data")}
    for shown, meant in here.items():
        code = code.replace(shown, meant)
    told: dict[str, Any] = {}
    exec(code, told)
    assert read_recipe(told["files"][0]).adapters[0].unet == 0.6
    weights = [[one.unet for one in read_recipe(cell).adapters] for cell in told["cells"]]
    assert weights == [[], [0.5], [1.0]]
    assert told["state"] in ("waiting", "running", "done")
    client.predict(number=told["job"]["job"], cancel=True, api_name="/jobs")


def test_errors_reach_a_script_in_words(client: Client) -> None:
    with pytest.raises(Exception, match="nobody"):
        client.predict(PROMPT, mix={"nobody": 1.0}, api_name="/generate")
    with pytest.raises(Exception, match="steps"):
        client.predict(PROMPT, settings={"steps": 0}, api_name="/generate")
    with pytest.raises(Exception, match="no job 999"):
        client.predict(number=999, api_name="/jobs")


def test_a_script_draws_a_sheet(client: Client) -> None:
    axes = [{"name": "weight", "adapter": "dots", "values": [0, 1]}]
    files = client.predict(PROMPT, {"dots": 1.0}, axes, settings={"steps": 2}, api_name="/grid")
    assert len(files) == 3 and [read_recipe(path).request.steps for path in files[1:]] == [2, 2]


def test_a_script_trains_and_finds_what_it_has_trained(client: Client, tmp_path: Path) -> None:
    options = {
        "preset": "style",
        "data": str(ROOT / "sample_data" / "styles" / "halftone"),
        "name": "scripted",
        "steps": 2,
        "rank": 2,
        "targets": "mid_block.*attn2",
    }
    job = client.predict(options, api_name="/train")
    assert job["state"] == "done" and job["result"]["adapter"] == "scripted"
    assert [one["name"] for one in client.predict("scripted", True, api_name="/library")] == ["scripted"]
    assert client.predict(api_name="/jobs")[0]["kind"] == "train"


def test_eight_scripts_at_once_each_get_what_one_alone_gets(site: Site, shapes_model: Model) -> None:
    mixes = [{"dots": round(0.1 * n, 1), "glow": round(0.8 - 0.1 * n, 1)} for n in range(1, 9)]

    def ask(mix: dict[str, float]) -> bytes:
        own = Client(site.url, verbose=False, download_files=str(site.output / f"downloads-{mix['dots']}"))
        settings = {"steps": 2, "seed": 3}
        (path,) = own.predict(PROMPT, mix=mix, settings=settings, api_name="/generate")
        return pixels(path)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, mixes))
    assert together == [ask(mix) for mix in mixes]
    assert len(set(together)) == 8
    adapters = {name: read(site.output / "adapters" / f"{name}.safetensors") for name in ("dots", "glow")}
    request = Request(prompt=PROMPT, steps=2, seed=3)
    for mix, drawn in zip(mixes[:2], together, strict=False):
        stack = Stack([(adapters[name], weight) for name, weight in mix.items()])
        (alone,) = generate(shapes_model, request, stack=stack)
        assert max(abs(a - b) for a, b in zip(alone.tobytes(), drawn, strict=True)) <= 1


def test_listening_to_others_needs_passwords(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "webui",
        "--port",
        str(free_port()),
        "--output",
        str(tmp_path),
        "--listen",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--auth" in done.stderr and "--insecure" in done.stderr


def test_with_users_each_sees_own_jobs_only(tmp_path: Path) -> None:
    users = tmp_path / "users"
    for name in ("ann", "bob"):
        add_user(users, name, f"password of {name}")
    output = tmp_path / "out"
    output.mkdir()
    with serve(output, "--auth", str(users)) as site:
        assert status(f"{site.url}config") == 401
        ann, bob = (
            Client(site.url, auth=(name, f"password of {name}"), verbose=False) for name in ("ann", "bob")
        )
        ann.predict(PROMPT, settings={"steps": 1}, api_name="/generate")
        mine = ann.predict(api_name="/jobs")
        assert [job["state"] for job in mine] == ["done"] and bob.predict(api_name="/jobs") == []
        with pytest.raises(Exception, match="no job"):
            bob.predict(number=mine[0]["job"], api_name="/jobs")
        with pytest.raises(Exception, match=r"(?i)credentials|401|login"):
            Client(site.url, auth=("ann", "wrong password"), verbose=False)


def test_a_browser_gets_a_cookie_that_no_script_can_read(site: Site) -> None:
    jar = CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    opener.open(site.url, timeout=60).read()
    (cookie,) = [one for one in jar if one.name == "difflora_visitor"]
    assert len(cookie.value or "") >= 32 and cookie.has_nonstandard_attr("HttpOnly")
    assert "set-cookie" not in str(opener.open(site.url, timeout=60).headers).lower()


def test_nothing_is_kept_open_to_gradio_or_the_hub() -> None:
    names = ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")
    code = f"import webui, os; print(*[os.environ[name] for name in {names}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]


def test_the_config_names_no_path_of_the_library(site: Site) -> None:
    config: dict[str, Any] = json.loads(fetch(f"{site.url}config"))
    assert str(site.output) not in json.dumps(config) and config["title"] == "difflora"
    assert str(SHAPES) in json.dumps(config), "the base that the form begins with"
