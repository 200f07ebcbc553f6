"""What is written is no larger than what is read, and reading holds it once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.errors import AdapterFileError
from difflora.formats import inspect, read, sources, write, writing
from difflora.formats.container import read_tensors
from difflora.formats.safe import read_header
from difflora.kinds import Full
from tests.kinds.samples import sample

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_what_is_too_large_is_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    adapter = Adapter({PATH: (sample("lora", (8, 6)),)}, AdapterMeta("n", "sd1"))
    write(adapter, tmp_path / "a", format=layout)
    folder = tmp_path / "a"
    file = read_tensors(folder / "adapter_model.safetensors" if folder.is_dir() else folder)
    size = sum(tensor.nbytes for tensor in file.tensors.values())
    for limit, is_taken in ((size, True), (size - 1, False)):
        for module in (sources, writing):
            monkeypatch.setattr(module, "MAX_DATA", limit)
        if is_taken:
            write(adapter, tmp_path / "b", format=layout)
            assert same(read(tmp_path / "b"), adapter)
        else:
            with pytest.raises(AdapterFileError, match=r"not written.*--dtype float16.*--rank"):
                write(adapter, tmp_path / "c", format=layout)
            assert not (tmp_path / "c").exists()
            with pytest.raises(AdapterFileError, match="the limit for an adapter"):
                read(tmp_path / "a")


def test_full_differences_of_sdxl_are_no_base_model(tmp_path: Path) -> None:
    """5 GB in float16, of which only the header is there: the rest of the file is a hole."""
    rows = 5 << 20
    header = (
        f'{{"lora_unet_mid_block_attentions_0_proj_in.diff":'
        f'{{"dtype":"F16","shape":[{rows},512],"data_offsets":[0,{rows * 1024}]}}}}'
    ).encode()
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 1024)
    report = inspect(tmp_path / "a.safetensors")
    assert report.size > 5e9 and report.problem == "" and report.kind_counts == {"full": 1}


READ = """
import sys
from pathlib import Path
from difflora.formats import read

def held(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))

before = held("VmRSS")
adapter = read(sys.argv[1], family=sys.argv[2])
print(held("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is where the system tells peaks of memory")
@pytest.mark.parametrize(
    ("family", "paths"),
    [
        (
            "sd1",
            [f"unet.down_blocks.{n}.resnets.{m}.conv{k}" for n in range(3) for m in (0, 1) for k in (1, 2)],
        ),
        ("flux", [f"transformer.transformer_blocks.{n}.attn.to_{part}" for n in range(8) for part in "qkv"]),
    ],
)
def test_reading_holds_a_file_once(tmp_path: Path, family: str, paths: list[str]) -> None:
    """Also where one tensor of the file is cut into those of several modules."""
    diff = torch.ones(1 << 9, 3 << 10)
    write(
        Adapter({path: (Full(diff),) for path in paths}, AdapterMeta("n", family)), tmp_path / "a.safetensors"
    )
    modules = {name.partition(".")[0] for name in read_header(tmp_path / "a.safetensors").tensors}
    assert len(modules) == (8 if family == "flux" else len(paths))
    command = [sys.executable, "-c", READ, str(tmp_path / "a.safetensors"), family]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(said.stdout) < 1.5 * diff.nbytes * len(paths)
