"""What is measured on a GPU, run where there is none: on the small base, and on true sizes without data."""

import pytest
import torch

from benchmarks import true_size
from benchmarks.true_size import Work, work_rows
from difflora.families import load
from tests.benchmarks.test_figures import SAMPLES


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT says so of every second adapter
def test_rows_of_a_small_base() -> None:
    model = load(SAMPLES / "shapes-sd", device="cpu", dtype="float32")
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 32, 128))
    before = model.checksum()
    trained, drawn = work_rows(Work("the small base", model, inputs, rounds=2, compiled=False))
    assert trained[0] == "training step, the small base, batch 2" and trained[-1].startswith("≥ 1.15: ")
    assert drawn[0] == "forward with 4 live adapters, the small base, batch 2" and drawn[-1] == ""
    for row in (trained, drawn):
        assert len(row) == len(true_size.COLUMNS) and float(row[3]) > 0 and row[4:6] == ("–", "–")
    assert model.checksum() == before


@pytest.mark.parametrize("make", [true_size._sd15, true_size._sdxl])
def test_inputs_fit_the_true_architectures(make) -> None:
    work = make(torch.device("meta"))
    assert true_size._called(work.model.pipeline.unet, work).shape == work.inputs[0].shape
    assert work.model.dtype == torch.bfloat16


def test_without_a_gpu_there_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert true_size.true_size_sections() == []
