"""The names that every program gives to one and the same change."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.errors import AdapterFileError
from difflora.formats import inspect, read
from difflora.formats.container import write_tensors
from difflora.kinds import Bias, DoRA, Full, LoKr, LoRA, Replace
from tests.kinds.samples import sample

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
PROJECTION = "text_encoder_2.text_projection"
FLAT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"

# (family, path, down's name, up's name)
PAIRS = [
    ("sd1", Q, f"{FLAT}.lora_down.weight", f"{FLAT}.lora_up.weight"),
    ("sd1", Q, f"{FLAT}.lora_A.weight", f"{FLAT}.lora_B.weight"),
    ("sd1", Q, f"{FLAT}.lora.down.weight", f"{FLAT}.lora.up.weight"),
    ("sd1", Q, f"{FLAT.replace('lora_unet', 'lycoris')}.lora_down.weight", f"{FLAT}.lora_up.weight"),
    ("sd1", Q, f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"),
    ("sd1", Q, f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight"),
    ("sd1", Q, f"{Q}.lora_A", f"{Q}.lora_B"),
    ("sd1", Q, f"{Q}.lora.down.weight", f"{Q}.lora.up.weight"),
    ("sd1", Q, f"{Q}.lora_down.weight", f"{Q}.lora_up.weight"),
    ("sd1", Q, f"{Q}.down", f"{Q}.up"),
    ("sd1", Q, f"{Q.removeprefix('unet.')}.lora_A.weight", f"{Q.removeprefix('unet.')}.lora_B.weight"),
    ("sd1", Q, f"{Q.replace('to_q', 'processor.to_q_lora')}.down.weight", f"{Q}.lora_B.weight"),
    ("sd1", OUT, f"{OUT.replace('to_out.0', 'processor.to_out_lora')}.down.weight", f"{OUT}.lora.up.weight"),
    (
        "sd1",
        Q,
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.lora_B.weight",
    ),
    ("sd1", TEXT, f"{TEXT}.lora_linear_layer.down.weight", f"{TEXT}.lora_linear_layer.up.weight"),
    ("sd1", TEXT, f"{TEXT.replace('q_proj', 'to_q_lora')}.down.weight", f"{TEXT}.lora.up.weight"),
    ("sd1", TEXT, f"{TEXT.replace('text_model.', '')}.lora_A.weight", f"{TEXT}.lora_B.weight"),
    (
        "sd1",
        TEXT,
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te_encoder_layers_0_self_attn_q_proj.lora_up.weight",
    ),
    (
        "sdxl",
        Q,
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        f"{FLAT}.lora_up.weight",
    ),
    (
        "sdxl",
        PROJECTION,
        "lora_te2_text_projection.lora_down.weight",
        "lora_te2_text_projection.lora_up.weight",
    ),
    (
        "sdxl",
        TEXT,
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight",
    ),
    (
        "flux",
        "transformer.transformer_blocks.0.attn.to_q",
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_up.weight",
    ),
    (
        "sdxl",  # OneTrainer with OMI's names
        Q,
        "unet.middle_block.1.transformer_blocks.0.attn1.to_q.lora_down.weight",
        "unet.middle_block.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
    ),
    ("sdxl", PROJECTION, "clip_g.text_projection.lora_down.weight", "clip_g.text_projection.lora_up.weight"),
    (
        "sd1",
        TEXT,
        f"{TEXT.replace('text_encoder', 'clip_l')}.lora_down.weight",
        f"{TEXT.replace('text_encoder', 'clip_l')}.lora_up.weight",
    ),
    (
        "flux",
        "transformer.transformer_blocks.0.attn.to_out.0",
        "double_blocks.0.processor.proj_lora1.down.weight",
        "double_blocks.0.processor.proj_lora1.up.weight",
    ),
]


@pytest.mark.parametrize(("family", "path", "down", "up"), PAIRS, ids=lambda value: str(value)[-40:])
def test_names_of_down_and_up(tmp_path: Path, family: str, path: str, down: str, up: str) -> None:
    kind = sample("lora", (8, 6))
    assert isinstance(kind, LoRA)
    write_tensors(tmp_path / "a.safetensors", {down: kind.down, up: kind.up})
    found = read(tmp_path / "a.safetensors", family=family)
    assert same(found, Adapter({path: (LoRA(kind.down, kind.up, scale=1.0),)}))


def factors(name: str = FLAT) -> dict[str, Tensor]:
    kind = sample("lora", (8, 6))
    assert isinstance(kind, LoRA)
    return {f"{name}.lora_down.weight": kind.down, f"{name}.lora_up.weight": kind.up}


def only(tmp_path: Path, tensors: dict[str, Tensor]) -> tuple[object, ...]:
    """The kinds of the one module of a file of these tensors."""
    write_tensors(tmp_path / "a.safetensors", {name: tensor.contiguous() for name, tensor in tensors.items()})
    (kinds,) = read(tmp_path / "a.safetensors").modules.values()
    return kinds


@pytest.mark.parametrize(
    "name",
    [
        f"{FLAT}.dora_scale",
        f"{FLAT}.magnitude",  # ai-toolkit
        f"{FLAT}.lora_magnitude_vector",
        # what diffusers' conversion to kohya names makes of it
        f"{FLAT.removesuffix('_to_q')}.to_q.lora_magnitude_vector",
    ],
)
def test_a_magnitude_of_output_rows_may_be_a_vector(tmp_path: Path, name: str) -> None:
    magnitude = torch.rand(8) + 0.5
    (dora,) = only(tmp_path, {**factors(), name: magnitude})
    assert isinstance(dora, DoRA) and dora.on_output
    assert torch.equal(dora.magnitude, magnitude[:, None])


def test_the_magnitude_of_a_single_output_is_of_a_row(tmp_path: Path) -> None:
    tensors = {f"{FLAT}.lora_down.weight": torch.ones(2, 6), f"{FLAT}.lora_up.weight": torch.ones(1, 2)}
    (dora,) = only(tmp_path, {**tensors, f"{FLAT}.magnitude": torch.ones(1)})
    assert isinstance(dora, DoRA) and dora.on_output


@pytest.mark.parametrize("shape", [(8,), (1, 8, 1, 1)])
@pytest.mark.parametrize("end", ["", ".weight", ".default", ".default.weight"])
def test_peft_magnitudes_of_convolutions_are_of_output_rows(
    tmp_path: Path, shape: tuple[int, ...], end: str
) -> None:
    kind = sample("lora", (8, 8, 3, 3))
    assert isinstance(kind, LoRA)
    magnitude = torch.rand(shape) + 0.5
    tensors = {f"{CONV}.lora_A.weight": kind.down, f"{CONV}.lora_B.weight": kind.up}
    (dora,) = only(tmp_path, {**tensors, f"{CONV}.lora_magnitude_vector{end}": magnitude})
    assert isinstance(dora, DoRA) and dora.on_output
    assert torch.equal(dora.magnitude, magnitude.reshape(8, 1, 1, 1))


def test_a_stored_scale_counts_for_more_than_alpha(tmp_path: Path) -> None:
    extra = {f"{FLAT}.scale": torch.tensor(0.25), f"{FLAT}.alpha": torch.tensor(9.0)}
    (lora,) = only(tmp_path, {**factors(), **extra})
    assert isinstance(lora, LoRA) and lora.scale == 0.25


@pytest.mark.parametrize(
    "alpha", [torch.tensor(float("inf"), dtype=torch.float16), torch.tensor(9999999999.0)]
)
def test_lokr_of_whole_factors_has_any_alpha(tmp_path: Path, alpha: Tensor) -> None:
    kind = sample("lokr_full", (8, 6))
    leaves = {f"{FLAT}.{leaf}": tensor for leaf, tensor in kind.to_leaves().items()}
    (lokr,) = only(tmp_path, {**leaves, f"{FLAT}.alpha": alpha})
    assert isinstance(lokr, LoKr) and torch.equal(lokr.delta(), kind.delta())
    assert inspect(tmp_path / "a.safetensors").ok
    decomposed = {f"{FLAT}.{leaf}": tensor for leaf, tensor in sample("lokr", (8, 6)).to_leaves().items()}
    with pytest.raises(AdapterFileError, match=f"{FLAT}: alpha is"):
        only(tmp_path, {**decomposed, f"{FLAT}.alpha": alpha})


def test_comfyui_names_parameters(tmp_path: Path) -> None:
    name = "diffusion_model.middle_block.0.in_layers.2"
    weight, bias = torch.randn(8, 6, 3, 3), torch.randn(8)
    (replaced,) = only(tmp_path, {f"{name}.set_weight": weight, f"{name}.bias.set_weight": bias})
    assert isinstance(replaced, Replace) and replaced.weight is not None and replaced.bias is not None
    assert torch.equal(replaced.weight, weight) and torch.equal(replaced.bias, bias)
    (full,) = only(tmp_path, {f"{name}.diff": weight, f"{name}.diff_b": bias})
    assert isinstance(full, Full) and full.bias is not None
    (alone,) = only(tmp_path, {f"{name}.diff_b": bias})
    assert isinstance(alone, Bias)


def test_several_kinds_on_one_module(tmp_path: Path) -> None:
    kinds = only(
        tmp_path, {**factors(), f"{FLAT}.diff_b": torch.randn(8), f"{FLAT}.alpha": torch.tensor(1.5)}
    )
    assert [type(kind) for kind in kinds] == [LoRA, Bias]
    assert inspect(tmp_path / "a.safetensors").kinds == {Q: ("lora", "bias")}


def test_both_namings_of_sdxl_in_one_file(tmp_path: Path) -> None:
    sgm = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_k"
    write_tensors(tmp_path / "a.safetensors", {**factors(), **factors(sgm)})
    found = read(tmp_path / "a.safetensors", family="sdxl")
    assert found.modules.keys() == {Q, Q.replace("to_q", "to_k")}


def test_words_in_the_file_of_an_adapter(tmp_path: Path) -> None:
    word = torch.randn(2, 768)
    write_tensors(tmp_path / "a.safetensors", {**factors(), "bundle_emb.cat.emb_params": word})
    found = read(tmp_path / "a.safetensors")
    assert torch.equal(found.tokens["cat"]["text_encoder"], word) and found.modules.keys() == {Q}
    from difflora.formats import write

    write(found, tmp_path / "b.safetensors")
    assert same(read(tmp_path / "b.safetensors"), found)


def test_a_file_of_words_alone(tmp_path: Path) -> None:
    word = torch.randn(2, 768)
    write_tensors(tmp_path / "cat.safetensors", {"emb_params": word})
    found = read(tmp_path / "cat.safetensors")
    assert not found.modules and torch.equal(found.tokens["cat"]["text_encoder"], word)
    report = inspect(tmp_path / "cat.safetensors")
    assert (report.format, report.words, report.family, report.ok) == ("embedding", ("cat",), "sd1", True)


def test_a_word_with_values_that_are_not_finite_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "cat.safetensors", {"emb_params": torch.full((1, 768), float("nan"))})
    with pytest.raises(AdapterFileError, match="emb_params: 768 of 768 values"):
        read(tmp_path / "cat.safetensors")


def test_flux_projections_in_one_are_cut_and_joined(tmp_path: Path) -> None:
    from difflora.formats import write

    name = "lora_unet_double_blocks_0_img_attn_qkv"
    kind = sample("lora", (24, 3072))
    assert isinstance(kind, LoRA)
    leaves = {f"{name}.{leaf}": tensor for leaf, tensor in kind.to_leaves().items()}
    write_tensors(tmp_path / "a.safetensors", leaves)
    found = read(tmp_path / "a.safetensors")
    assert found.meta.family == "flux"
    paths = [f"transformer.transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
    assert sorted(found.modules) == sorted(paths)
    assert torch.equal(torch.cat([found.delta(path) for path in paths]), kind.delta())
    write(found, tmp_path / "b.safetensors")
    assert same(read(tmp_path / "b.safetensors"), found)
    write(Adapter(found.modules, AdapterMeta("n", "flux")), tmp_path / "c", format="diffusers")
    assert same(read(tmp_path / "c"), found)


def test_what_extraction_left_over_is_a_difference_beside_the_lora(tmp_path: Path) -> None:
    rest = torch.randn(8, 6) * (torch.rand(8, 6) > 0.8)
    sparse = rest.to_sparse()
    alpha = {f"{FLAT}.alpha": torch.tensor(1.5)}  # of rank 3: a scale of one half
    stored = {
        "bias_indices": sparse.indices().to(torch.int16),
        "bias_values": sparse.values(),
        "bias_size": torch.tensor([8, 6], dtype=torch.int16),
    }
    for leaves in (stored, {"bias": rest}):
        tensors = {**factors(), **alpha, **{f"{FLAT}.{leaf}": tensor for leaf, tensor in leaves.items()}}
        lora, full = only(tmp_path, tensors)
        assert isinstance(lora, LoRA) and isinstance(full, Full)
        assert torch.equal(full.diff, rest * 0.5)
        assert inspect(tmp_path / "a.safetensors").kinds == {Q: ("lora", "full")}
    outside = {**stored, "bias_indices": sparse.indices().to(torch.int16) + 5}
    with pytest.raises(AdapterFileError, match="every index inside"):
        only(tmp_path, {**factors(), **{f"{FLAT}.{leaf}": tensor for leaf, tensor in outside.items()}})
