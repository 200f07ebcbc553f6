"""Modules that a file holds in one: cutting and joining them is exact, and the one undoes the other."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difflora.adapter import Adapter, same
from difflora.errors import AdapterError
from difflora.families import family
from difflora.families.fused import join, kohya_modules, rows_of, split
from difflora.kinds import Bias, DoRA, Full, Kind, LoHa, LoKr, LoRA
from tests.kinds.samples import LAYER_NAMES, sample

FLUX, SD3 = family("flux"), family("sd3")
H, RANK = 12, 4
QKV = "lora_unet_double_blocks_3_img_attn_qkv"
LINEAR1 = "lora_unet_single_blocks_7_linear1"
FINAL = "lora_unet_final_layer_adaLN_modulation_1"
ATTN = "transformer.transformer_blocks.3.attn"
SINGLE = "transformer.single_transformer_blocks.7"
PARTS = {
    QKV: {f"{ATTN}.to_q": (0, H), f"{ATTN}.to_k": (H, 2 * H), f"{ATTN}.to_v": (2 * H, 3 * H)},
    LINEAR1: {
        f"{SINGLE}.attn.to_q": (0, H),
        f"{SINGLE}.attn.to_k": (H, 2 * H),
        f"{SINGLE}.attn.to_v": (2 * H, 3 * H),
        f"{SINGLE}.proj_mlp": (3 * H, 7 * H),
    },
}

SEPARATE = ("lora", "loha", "lora_bias", "full_bias", "bias", "ia3_out", "dora_out", "dora_loha",
            "replace_bias", "oft_diag")  # fmt: skip


def lora(out: int, *, rank: int = RANK, scale: float = 0.5, seed: int = 0, columns: int = H) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, columns, generator=generator), torch.randn(out, rank, generator=generator)
    return LoRA(down, up, scale)


def delta(kind: Kind, weight: Tensor) -> Tensor:
    return kind.delta(weight)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind_name", [name for name in LAYER_NAMES if "tucker" not in name])
def test_a_part_is_the_rows_of_the_whole(name: str, kind_name: str) -> None:
    """Each kind is cut exactly, but for one whose rows depend on those of other parts."""
    out = max(stop for _, stop in PARTS[name].values())
    torch.manual_seed(1)
    weight = torch.randn(out, H)
    kind = sample(kind_name, (out, H))
    if kind_name == "dora_in":
        with pytest.raises(
            AdapterError, match=r"dora: .* norms of its columns are over the rows of all parts"
        ):
            split((kind,), FLUX, name)
        return
    found = split((kind,), FLUX, name)
    total = delta(kind, weight)
    assert set(found) == set(PARTS[name])
    for path, (start, stop) in PARTS[name].items():
        (part,) = found[path]
        torch.testing.assert_close(delta(part, weight[start:stop]), total[start:stop], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PARTS)
def test_a_lora_read_from_a_fused_module_is_written_as_it_was(name: str) -> None:
    kind = lora(max(stop for _, stop in PARTS[name].values()))
    found = split((kind,), FLUX, name)
    assert all(part.factors() is not None for (part,) in found.values())
    (written,) = kohya_modules(FLUX, found)[name]
    assert isinstance(written, LoRA)
    assert torch.equal(written.down, kind.down)
    assert torch.equal(written.up, kind.up)
    assert written.scale == kind.scale


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("ranks", [(4, 4, 4, 4), (1, 2, 3, 4)], ids=["one-rank", "several-ranks"])
def test_separate_loras_come_back_as_they_were(name: str, ranks: tuple[int, ...]) -> None:
    modules: dict[str, tuple[Kind, ...]] = {
        path: (lora(stop - start, rank=rank, seed=rank + start),)
        for (path, (start, stop)), rank in zip(PARTS[name].items(), ranks, strict=False)
    }
    written = kohya_modules(FLUX, modules)
    assert set(written) == {name}
    (kind,) = written[name]
    assert isinstance(kind, LoRA)
    assert kind.rank == sum(part.rank for (part,) in modules.values() if isinstance(part, LoRA))
    assert same(Adapter(split(written[name], FLUX, name)), Adapter(modules))


def test_a_part_whose_up_is_zero_comes_back_with_its_own_factors() -> None:
    modules: dict[str, tuple[Kind, ...]] = {path: (lora(H, seed=i),) for i, path in enumerate(PARTS[QKV])}
    first = next(iter(modules))
    modules[first] = (replace(lora(H), up=torch.zeros(H, RANK)),)
    assert same(Adapter(split(kohya_modules(FLUX, modules)[QKV], FLUX, QKV)), Adapter(modules))


def test_a_fused_lora_that_is_still_zero_is_shared_among_its_parts() -> None:
    found = split((replace(lora(3 * H), up=torch.zeros(3 * H, RANK)),), FLUX, QKV)
    assert set(found) == set(PARTS[QKV])


def test_parts_that_are_not_changed_stay_so() -> None:
    modules: dict[str, tuple[Kind, ...]] = {f"{ATTN}.to_q": (lora(H),), f"{ATTN}.to_v": (lora(H, seed=1),)}
    written = kohya_modules(FLUX, modules)
    (kind,) = written[QKV]
    assert torch.equal(kind.delta()[H : 2 * H], torch.zeros(H, H))
    assert same(Adapter(split(written[QKV], FLUX, QKV)), Adapter(modules))


@pytest.mark.parametrize(
    "kind_name", ["lora", "lora_bias", "loha", "lokr", "full", "full_bias", "bias", "ia3_out"]
)
def test_parts_of_zeros_are_left_out(kind_name: str) -> None:
    """Of factors that the parts share, too: so read(write(x)) has the modules of x."""
    whole = split((sample(kind_name, (3 * H, H)),), FLUX, QKV)
    del whole[f"{ATTN}.to_k"]
    found = split(kohya_modules(FLUX, whole)[QKV], FLUX, QKV)
    assert same(Adapter(found), Adapter(whole))


def read_again(written: Mapping[str, tuple[Kind, ...]]) -> Adapter:
    return Adapter(
        {path: kinds for name, found in written.items() for path, kinds in split(found, FLUX, name).items()}
    )


def zero_up(part: LoRA) -> LoRA:
    return replace(part, up=torch.zeros_like(part.up))


@pytest.mark.parametrize(
    "parts",
    [
        [lora(H, scale=0.3), lora(H, scale=1.3, seed=1), lora(H, scale=2.3, seed=2)],
        [lora(H, scale=0.5), lora(H, scale=0.25, seed=1), lora(H, scale=0.5, seed=2)],
        [lora(H, rank=1, scale=0.5), lora(H, rank=2, scale=1.0, seed=1), lora(H, rank=4, seed=2)],
        [lora(H, rank=1), zero_up(lora(H, rank=2)), lora(H, rank=4, seed=2)],
        [lora(H), zero_up(lora(H)), lora(H)],
        [replace(lora(H), down=lora(H).down.half()), lora(H, seed=1), lora(H, seed=2)],
        [sample("full", (H, H)), Full(torch.zeros(H, H)), sample("full", (H, H), seed=1)],
        [replace(lora(H), scale=0.0), lora(H, seed=1), lora(H, seed=2)],
    ],
    ids=["scales", "powers-of-two", "scales-and-ranks", "zero-and-ranks", "zero-of-one-down", "dtypes",
         "zero-full", "scale-of-zero"],
)  # fmt: skip
def test_parts_that_would_not_come_back_are_written_alone(parts: list[Kind]) -> None:
    """A scale that is folded in, a path or a dtype that is lost: exact changes, but other kinds."""
    modules = {path: (part,) for path, part in zip(PARTS[QKV], parts, strict=True)}
    written = kohya_modules(FLUX, modules)
    assert set(written) == {FLUX.kohya_name(path) for path in modules}
    assert all(name.startswith("lora_transformer_") for name in written)
    assert same(read_again(written), Adapter(modules))


def test_an_alpha_that_only_the_parts_hold_exactly_keeps_them_alone() -> None:
    """alpha = scale · rank is float32 in a file: 0.1 of rank 1 is, three times as much of rank 3 is not."""
    scale = next(
        scale
        for scale in torch.linspace(0.1, 0.2, 50).tolist()
        if (torch.tensor(torch.tensor(3 * scale).item() / 3) != torch.tensor(scale)).item()
    )
    modules = {path: (lora(H, rank=1, scale=scale, seed=i),) for i, path in enumerate(PARTS[QKV])}
    assert QKV not in kohya_modules(FLUX, modules)
    modules = {path: (replace(part, scale=0.125),) for path, (part,) in modules.items()}
    assert set(kohya_modules(FLUX, modules)) == {QKV}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_parts_are_they_come_back(seed: int) -> None:
    """Ranks, scales, zeros and gaps at random."""
    generator = torch.Generator().manual_seed(seed)

    def one_of(*choices: float) -> float:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    modules: dict[str, tuple[Kind, ...]] = {}
    for index, path in enumerate(PARTS[QKV]):
        part = lora(H, rank=int(one_of(2, 2, 4)), scale=one_of(0.5, 0.5, 0.75), seed=index)
        if index == 0 or one_of(0, 1, 1):
            modules[path] = (part if one_of(0, 1, 1) else zero_up(part),)
    assert same(read_again(kohya_modules(FLUX, modules)), Adapter(modules))


@pytest.mark.parametrize("kind_name", [*SEPARATE, "full", "glora", "lokr", "replace", "oft", "boft"])
def test_what_was_cut_is_joined_to_the_same_change(kind_name: str) -> None:
    torch.manual_seed(1)
    weight, bias = torch.randn(3 * H, H), torch.randn(3 * H)
    kind = sample(kind_name, (3 * H, H))
    written = kohya_modules(FLUX, split((kind,), FLUX, QKV))
    (again,) = written[QKV]
    assert torch.equal(again.delta(weight), kind.delta(weight))
    before, after = kind.bias_delta(bias), again.bias_delta(bias)
    assert (before is None and after is None) or torch.equal(before, after)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind_name", SEPARATE)
def test_separate_kinds_are_joined_and_come_back(kind_name: str) -> None:
    torch.manual_seed(1)
    weight = torch.randn(3 * H, H)
    modules: dict[str, tuple[Kind, ...]] = {
        path: (sample(kind_name, (H, H), seed=index),) for index, path in enumerate(PARTS[QKV])
    }
    written = kohya_modules(FLUX, modules)
    assert set(written) == {QKV}
    total = written[QKV][0].delta(weight)
    for path, (start, stop) in PARTS[QKV].items():
        expected = modules[path][0].delta(weight[start:stop])
        torch.testing.assert_close(total[start:stop], expected, rtol=1e-5, atol=1e-5)
    assert same(Adapter(split(written[QKV], FLUX, QKV)), Adapter(modules))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([sample("lora", (H, H)), sample("loha", (H, H))], "loha and lora cannot be one change"),
        (
            [sample("boft", (8, H)), sample("boft", (H, H))],
            "boft cannot be joined: .* of different sizes or stages",
        ),
        ([sample("coft", (H, H)), sample("coft", (H, H))], "the constraint is on all its blocks"),
        ([sample("dora_in", (H, H)), sample("dora_in", (H, H))], "dora on the input axis"),
        ([sample("dora_out", (H, H)), None], "dora cannot be joined with a part that is not changed"),
        ([sample("ia3_in", (H, H)), sample("ia3_in", (H, H), seed=1)], "ia3 on the input axis"),
        ([sample("lokr", (H, H)), sample("lokr", (H, H), seed=1)], "lokr cannot be joined"),
        ([sample("glora", (H, H)), sample("glora", (H, H), seed=1)], "glora cannot be joined"),
        ([sample("replace", (H, H)), sample("replace_bias", (H, H))], "replace cannot be joined"),
        ([lora(H), lora(H, scale=0.25)], r"lora cannot be joined: the parts have the scales 0\.25, 0\.5"),
        ([None, None], "nothing cannot be one change"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_joined_is_said(parts: list[Kind | None], why: str) -> None:
    with pytest.raises(AdapterError, match=why):
        join(parts, [H, H])


def test_what_cannot_be_joined_is_written_alone_and_read_again() -> None:
    modules: dict[str, tuple[Kind, ...]] = {
        path: (sample("lokr", (H, H), seed=index),) for index, path in enumerate(PARTS[QKV])
    }
    modules[f"{SINGLE}.proj_mlp"] = (sample("boft", (4 * H, H)),)
    written = kohya_modules(FLUX, modules)
    assert "lora_transformer_transformer_blocks_3_attn_to_q" in written
    assert len(written) == len(modules)
    assert same(read_again(written), Adapter(modules))


def test_a_lokr_whose_blocks_end_elsewhere_is_cut_in_its_low_rank_form() -> None:
    generator = torch.Generator().manual_seed(0)
    w1, a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((4, 2), (9, 2), (2, 6)))
    kind = LoKr(scale=0.5, w1=w1, w2_a=a, w2_b=b)
    assert kind.rows(0, H) is None
    found = split((kind,), FLUX, QKV)
    assert {part.name for (part,) in found.values()} == {"lora"}
    for path, (start, stop) in PARTS[QKV].items():
        torch.testing.assert_close(found[path][0].delta(), kind.delta()[start:stop], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kohya_modules(FLUX, found)[QKV][0].delta(), kind.delta(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lokr_of_two_whole_sides_whose_blocks_end_elsewhere_is_cut_as_full(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    w1, w2 = (torch.randn(shape, generator=generator).to(dtype) for shape in ((4, 2), (9, 6)))
    kind = LoKr(w1=w1, w2=w2)
    found = split((kind,), FLUX, QKV)
    for path, (start, stop) in PARTS[QKV].items():
        (part,) = found[path]
        assert isinstance(part, Full)
        assert part.diff.dtype == torch.float32
        assert part.bias is None
        assert torch.equal(part.diff, kind.delta()[start:stop])
    written = kohya_modules(FLUX, found)
    assert torch.equal(written[QKV][0].delta(), kind.delta())
    assert same(read_again(written), Adapter(found))
    header = LoKr(w1=w1.to("meta"), w2=w2.to("meta"))
    assert {rows_of(part) for (part,) in split((header,), FLUX, QKV).values()} == {H}


def test_several_kinds_on_one_module() -> None:
    kinds = (lora(3 * H), Bias(torch.randn(3 * H)))
    found = split(kinds, FLUX, QKV)
    assert [kind.name for kind in found[f"{ATTN}.to_k"]] == ["lora", "bias"]
    again = kohya_modules(FLUX, found)[QKV]
    assert torch.equal(again[0].delta(), kinds[0].delta())
    assert torch.equal(again[1].bias_delta(), kinds[1].bias_delta())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "kind", [lora(2 * H), Full(torch.randn(2 * H, H), torch.randn(2 * H))], ids=["lora", "full"]
)
def test_swapped_halves_are_put_right_and_back(kind: Kind) -> None:
    path = "transformer.norm_out.linear"
    ((found, (part,)),) = split((kind,), FLUX, FINAL).items()
    assert found == path
    assert torch.equal(part.delta(), torch.cat([kind.delta()[H:], kind.delta()[:H]]))
    (again,) = kohya_modules(FLUX, {path: (part,)})[FINAL]
    assert type(again) is type(kind)
    assert same(Adapter({path: (again,)}), Adapter({path: (kind,)}))


@pytest.mark.parametrize(
    ("block", "rows", "is_swapped"),
    [(23, 3072, True), (23, 14592, False), (37, 4864, True), (5, 9216, False)],
)
def test_the_last_block_of_each_sd3_model_has_its_context_swapped(
    block: int, rows: int, is_swapped: bool
) -> None:
    """Block 23 ends the medium models, and lies in the middle of the large one."""
    name = f"lora_unet_joint_blocks_{block}_context_block_adaLN_modulation_1"
    path = f"transformer.transformer_blocks.{block}.norm1_context.linear"
    kind = lora(rows, rank=1, columns=2)
    (part,) = split((kind,), SD3, name)[path]
    half = rows // 2
    expected = torch.cat([kind.delta()[half:], kind.delta()[:half]]) if is_swapped else kind.delta()
    assert torch.equal(part.delta(), expected)
    (again,) = kohya_modules(SD3, {path: (part,)})[name]
    assert torch.equal(again.delta(), kind.delta())
    alone = SD3.kohya_name(path)
    assert alone.startswith("lora_transformer_" if block in (23, 37) else "lora_unet_joint_blocks_")
    for name in (path, alone):
        (own,) = split((kind,), SD3, name)[path]
        assert own is kind


def test_a_plain_name_is_not_touched() -> None:
    kinds = (lora(H), Bias(torch.randn(H)))
    for name in ("lora_unet_double_blocks_0_img_attn_proj", "transformer.transformer_blocks.0.attn.to_out.0"):
        assert split(kinds, FLUX, name)["transformer.transformer_blocks.0.attn.to_out.0"] == kinds
    with pytest.raises(KeyError):
        split(kinds, FLUX, "lora_unet_double_blocks_19_img_attn_proj")
    with pytest.raises(AdapterError, match="it has 13 rows, expected a multiple of 3"):
        split((lora(13),), FLUX, QKV)


def test_headers_alone_are_enough_to_cut() -> None:
    kind = LoRA(torch.empty(RANK, H, device="meta"), torch.empty(7 * H, RANK, device="meta"), 1.0)
    found = split((kind,), FLUX, LINEAR1)
    assert {path: rows_of(part) for path, (part,) in found.items()} == {
        path: stop - start for path, (start, stop) in PARTS[LINEAR1].items()
    }
    swapped = LoRA(torch.empty(RANK, H, device="meta"), torch.empty(2 * H, RANK, device="meta"), 1.0)
    assert list(split((swapped,), FLUX, FINAL)) == ["transformer.norm_out.linear"]


@pytest.mark.parametrize("kind_name", LAYER_NAMES)
def test_every_kind_says_how_many_rows_it_changes(kind_name: str) -> None:
    assert rows_of(sample(kind_name, (8, 6))) == (None if kind_name == "ia3_in" else 8)


def test_dtypes_are_kept_where_they_agree() -> None:
    half = [
        replace(lora(H, seed=i), down=torch.ones(1, H).half(), up=torch.ones(H, 1).half()) for i in range(2)
    ]
    joined = join(half, [H, H])
    assert isinstance(joined, LoRA)
    assert joined.down.dtype == joined.up.dtype == torch.float16
    mixed = join([half[0], lora(H)], [H, H])
    assert isinstance(mixed, LoRA)
    assert mixed.down.dtype == torch.float32
    assert isinstance(join([sample("loha", (H, H)), None], [H, H]), LoHa)
    assert isinstance(join([sample("lokr", (H, H)), None], [H, H]), LoKr)
    assert not isinstance(join([sample("dora_out", (H, H))] * 2, [H, H]), LoRA)
    assert isinstance(join([sample("dora_out", (H, H))] * 2, [H, H]), DoRA)
