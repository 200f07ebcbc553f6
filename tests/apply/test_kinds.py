"""Every kind on every type of layer: live equals merged, images have their own mix, the base comes back."""

import hashlib
import random
from contextlib import ExitStack, suppress

import pytest
import torch
from torch import Tensor, nn

from difflora.adapter import Adapter, AdapterMeta, Stack
from difflora.apply import Live, applied
from difflora.errors import ApplyError, FitError
from difflora.families.model import Model
from difflora.kinds import IA3, Bias, Kind
from tests.apply.scenes import CONV, POINT, STRIDED, TEXT, UNET, relative, tolerance
from tests.kinds.samples import LAYER_NAMES, NORM_NAMES, sample

BIASED = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
GROUP_NORM = "unet.down_blocks.0.resnets.0.norm1"
LAYER_NORM = "unet.down_blocks.0.attentions.0.transformer_blocks.0.norm1"
WORDS = "text_encoder.text_model.embeddings.token_embedding"
LAYERS = (BIASED, POINT, CONV, STRIDED, TEXT)
NORMS = (GROUP_NORM, LAYER_NORM)
CASES = [
    *((name, path) for name in LAYER_NAMES for path in LAYERS),
    *((name, path) for name in NORM_NAMES for path in NORMS),
    *((name, WORDS) for name in ("lora", "full", "replace", "loha")),
]


def inputs(model: Model, path: str, rows: int = 4) -> Tensor:
    """Something that the layer takes."""
    shape = model.shapes()[path]
    if path == WORDS:
        return torch.arange(rows * 16).view(rows, 16)
    if path == GROUP_NORM or len(shape) == 4:
        return torch.randn(rows, shape[0] if path == GROUP_NORM else shape[1], 16, 16)
    return torch.randn(rows, 10, shape[-1])


def of(model: Model, *names: str, path: str, seed: int = 0) -> Adapter:
    """An adapter with these kinds on one layer."""
    kinds = tuple(sample(name, model.shapes()[path], seed=seed + n) for n, name in enumerate(names))
    return Adapter({path: kinds}, AdapterMeta(name="+".join(names)))


def answer(model: Model, stack: Stack, path: str, x: Tensor, *, mode="live") -> Tensor:
    with applied(model, stack, mode=mode):
        return model.module(path)(x)


@torch.no_grad()
@pytest.mark.parametrize(("name", "path"), CASES)
def test_live_equals_merged_for_every_kind_and_layer(model: Model, name: str, path: str) -> None:
    stack = Stack([(of(model, name, path=path), 0.6), (of(model, name, path=path, seed=5), -0.3)])
    x = inputs(model, path)
    base = model.module(path)(x)
    merged = answer(model, stack, path, x, mode="merged")
    assert (merged - base).norm() > 1e-3 * base.norm()
    assert relative(answer(model, stack, path, x), merged, base) < tolerance(merged, base)


@torch.no_grad()
@pytest.mark.parametrize(("name", "path"), CASES)
def test_images_have_their_own_mix_of_every_kind(model: Model, name: str, path: str) -> None:
    a, b = of(model, name, path=path), of(model, "bias" if path != WORDS else name, path=path, seed=3)
    mixes = [[0.0, 0.7], [0.5, -0.2]]
    x = inputs(model, path)
    base = model.module(path)(x)
    with applied(model, Stack([(a, 1.0), (b, 1.0)]), mode="live") as mix:
        assert isinstance(mix, Live)
        mix.set_image_weights(mixes)
        together = model.module(path)(x)
        for image, weights in enumerate(mixes):
            mix.set_weights(weights)
            alone = model.module(path)(x)
            assert relative(together[image::2], alone[image::2], base[image::2]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("path", LAYERS)
def test_all_kinds_at_once_on_one_layer(model: Model, path: str) -> None:
    """The sum of their changes; at weight 0 they are absent bit for bit, in any order."""
    one = of(model, *LAYER_NAMES, path=path)
    parts = [of(model, name, path=path, seed=n) for n, name in enumerate(LAYER_NAMES)]
    x = inputs(model, path)
    base = model.module(path)(x)
    merged = answer(model, Stack([(one, 0.1)]), path, x, mode="merged")
    together = answer(model, Stack([(one, 0.1)]), path, x)
    apart = answer(model, Stack([(part, 0.1) for part in reversed(parts)]), path, x)
    assert relative(together, merged, base) < 1e-5 and relative(apart, merged, base) < 1e-5
    for mode in ("live", "merged"):
        shuffled = [(part, 0.1) for part in random.Random(0).sample(parts, len(parts))]
        wanted = answer(model, Stack([(part, 0.1) for part in parts]), path, x, mode=mode)
        assert torch.equal(answer(model, Stack(shuffled), path, x, mode=mode), wanted)
        for part in parts:
            alone = answer(model, Stack([(parts[0], 0.3)]), path, x, mode=mode)
            beside = answer(model, Stack([(part, 0.0), (parts[0], 0.3)]), path, x, mode=mode)
            assert part is parts[0] or torch.equal(alone, beside), part.meta.name
    stack = Stack([(part, 0.1) for part in parts])
    with applied(model, stack, mode="merged") as mix:
        mix.set_weights([0.0] * len(parts))
        assert torch.equal(model.module(path)(x), base)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["lora_bias", "dora_out", "dora_in", "ia3_out", "loha", "replace_bias", "oft"]
)
def test_live_inside_live_adds_to_the_base_not_to_what_is_there(model: Model, name: str) -> None:
    for path in LAYERS:
        a, b = (Stack([(of(model, name, path=path, seed=seed), 0.4)]) for seed in (0, 5))
        x = inputs(model, path)
        base = model.module(path)(x)
        merged = answer(model, Stack([*a, *b]), path, x, mode="merged")
        with applied(model, a, mode="live"), applied(model, b, mode="live") as mix:
            assert relative(model.module(path)(x), merged, base) < 1e-5
            assert isinstance(mix, Live)
            mix.set_image_weights([[0.4]])
            assert relative(model.module(path)(x), merged, base) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_near_as_its_rounding(shapes_folder, dtype: str) -> None:
    from difflora.families import load

    exact = load(shapes_folder, device="cpu", dtype="float32")
    model = load(shapes_folder, device="cpu", dtype=dtype)
    for name, path in CASES if dtype == "bfloat16" else CASES[::8]:  # a CPU is slow in float16
        adapter = of(exact, name, path=path)
        stack, x = Stack([(adapter, 0.5)]), inputs(exact, path)
        base = exact.module(path)(x)
        wanted = answer(exact, stack, path, x)
        rounded = x if path == WORDS else x.to(model.dtype)
        found = answer(model, stack, path, rounded)
        assert found.dtype == model.dtype
        error = (found.float() - wanted).norm() / (wanted.norm() + base.norm())
        assert error < 0.02, (name, path)


def test_a_bias_where_there_is_none_is_refused(model: Model) -> None:
    for name in ("bias", "lora_bias", "full_bias", "replace_bias"):
        with (
            pytest.raises(FitError, match="changes the bias, but the layer has none"),
            applied(model, Stack([(of(model, name, path=UNET), 1.0)])),
        ):
            pass


def test_shapes_of_every_kind_are_checked(model: Model) -> None:
    for name in LAYER_NAMES:
        wrong = Adapter({BIASED: (sample(name, (48, 40)),)})
        with pytest.raises(FitError, match="1 of 1 modules"), applied(model, Stack([(wrong, 1.0)])):
            pass


def test_dense_updates_are_counted_first_and_refused_beyond_a_limit(model: Model) -> None:
    size = model.module(CONV).weight.numel() * 4
    for names, count in ((["full"], 2), (["full", "oft"], 2), (["lora", "dora_out", "ia3_out", "bias"], 0)):
        stack = Stack([(of(model, *names, path=CONV), 1.0)])
        with applied(model, stack, mode="live") as mix:
            assert isinstance(mix, Live) and mix.dense_bytes == count * size
    two = Stack([(of(model, "full", path=CONV), 1.0), (of(model, "oft", path=CONV), 1.0)])
    with applied(model, two, mode="live", dense_limit=3 * size) as mix:
        assert isinstance(mix, Live) and mix.dense_bytes == 3 * size
    with (
        pytest.raises(ApplyError, match=r"(?s)1 layers.*conv1: 0\.\d MiB for full, oft.*mode='merged'"),
        applied(model, two, mode="live", dense_limit=3 * size - 1),
    ):
        pass


class _Stop(Exception):
    pass


def test_the_base_is_bit_identical_after_any_cycles_with_all_kinds(model: Model) -> None:
    source = random.Random(1)
    pool = []
    for seed in range(16):
        paths = source.sample((*LAYERS, *NORMS), 3)
        modules: dict[str, tuple[Kind, ...]] = {}
        for path in paths:
            names = source.sample(NORM_NAMES if path in NORMS else LAYER_NAMES, 2)
            modules[path] = tuple(sample(name, model.shapes()[path], seed=seed) for name in names)
        pool.append(Adapter(modules))
    before = model.checksum()
    touched = {path: _digest(model.module(path)) for path in (*LAYERS, *NORMS)}
    for _ in range(200):
        entries = [(one, source.uniform(-2, 2)) for one in source.sample(pool, source.randint(1, 4))]
        mode = source.choice(["merged", "live"])
        with suppress(_Stop), ExitStack() as contexts:
            mix = contexts.enter_context(applied(model, Stack(entries), mode=mode))
            for _change in range(source.randint(0, 2)):
                mix.set_weights([source.choice([0.0, source.uniform(-2, 2)]) for _ in entries])
            if isinstance(mix, Live) and source.random() < 0.3:
                mix.set_image_weights([[source.uniform(-1, 1) for _ in entries] for _ in range(2)])
                contexts.enter_context(applied(model, Stack([(pool[0], 0.5)]), mode="live"))
            if source.random() < 0.33:
                raise _Stop
        assert touched == {path: _digest(model.module(path)) for path in touched}
    assert model.checksum() == before


def _digest(module: nn.Module) -> str:
    total = hashlib.sha256()
    for parameter in module.parameters():
        total.update(parameter.detach().numpy().tobytes())
    return total.hexdigest()


@torch.no_grad()
def test_a_gain_leaves_the_bias_alone(model: Model) -> None:
    out = model.shapes()[BIASED][0]
    stack = Stack([(Adapter({BIASED: (IA3(torch.full((out,), -1.0), on_input=False),)}), 1.0)])
    x = inputs(model, BIASED)
    bias = model.module(BIASED).bias
    for mode in ("live", "merged"):
        assert torch.allclose(answer(model, stack, BIASED, x, mode=mode), bias.expand(4, 10, out), atol=1e-6)
    shift = Stack([(Adapter({BIASED: (Bias(torch.ones(out)),)}), 0.25)])
    assert torch.allclose(answer(model, shift, BIASED, x), model.module(BIASED)(x) + 0.25)
