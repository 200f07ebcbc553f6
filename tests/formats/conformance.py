"""The table of docs/formats.md, made by trying everything in it.

python -m tests.formats.conformance      writes docs/formats.md anew
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from difflora.adapter import Adapter, AdapterMeta, Stack
from difflora.apply import applied
from difflora.errors import AdapterFileError
from difflora.families import FAMILIES
from difflora.families.model import Model
from difflora.formats import FORMATS, read, write
from difflora.formats.container import write_tensors
from difflora.kinds import DoRA, Kind, LoHa, LoKr, LoRA, Replace
from tests.kinds.samples import LAYER_NAMES, MAKERS, sample

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"
SHAPES = Path(__file__).parents[2] / "sample_data" / "shapes-sd"

# family -> a linear layer, a 3×3 convolution, a norm; "" where it has none
LAYERS: Mapping[str, tuple[str, str, str]] = {
    "sd1": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "unet.mid_block.resnets.0.conv1",
        "unet.mid_block.resnets.0.norm1",
    ),
    "sdxl": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "unet.mid_block.resnets.0.conv1",
        "unet.mid_block.resnets.0.norm1",
    ),
    "flux": ("transformer.transformer_blocks.0.attn.to_q", "", ""),
    "sd3": ("transformer.transformer_blocks.0.attn.to_q", "", ""),
}
CLASSES = {"unet": "UNet2DConditionModel", "transformer": "FluxTransformer2DModel"}
TITLES = {
    "lora": "LoRA, LoCon, rsLoRA, DyLoRA",
    "lora_bias": "LoRA with the bias of lora_B",
    "lora_tucker": "LoCon with a middle factor (Tucker)",
    "dora_out": "DoRA of LoRA, norms of output rows",
    "dora_in": "DoRA of LoRA, norms of input columns",
    "dora_loha": "DoRA of LoHa",
    "dora_lokr": "DoRA of LoKr",
    "loha": "LoHa",
    "loha_tucker": "LoHa, Tucker",
    "lokr": "LoKr, one factor whole",
    "lokr_full": "LoKr, both factors whole",
    "lokr_both": "LoKr, both factors decomposed",
    "lokr_tucker": "LoKr, Tucker",
    "glora": "GLoRA (the layouts of 2023 and of today)",
    "glora_tucker": "GLoRA, Tucker",
    "ia3_out": "(IA)³ on outputs",
    "ia3_in": "(IA)³ on inputs",
    "full": "full difference",
    "full_bias": "full difference, with the bias",
    "replace": "replaced weight",
    "replace_bias": "replaced weight and bias",
    "norm": "norm difference",
    "norm_bias": "norm difference, with the bias",
    "oft": "Diag-OFT",
    "coft": "COFT",
    "oft_rescaled": "Diag-OFT with rescale",
    "oft_diag": "Diag-OFT of late 2023 (ready rotations)",
    "boft": "BOFT",
    "boft_rescaled": "BOFT with rescale",
    "bias": "bias difference alone",
}

HEAD = """# Which adapter files difflora reads and writes

Made by trying everything in it: `python -m tests.formats.conformance` writes this page anew, and a test
fails where it is not what the code does.

- **kohya**: flattened names, as kohya's sd-scripts, LyCORIS, OneTrainer and ai-toolkit write them.
- **diffusers**: dotted names with `lora_adapter_metadata`; read as well are the dotted names of older
  diffusers, ComfyUI (`diffusion_model.`, `text_encoders.clip_l.transformer.`), ai-toolkit, OneTrainer, XLabs,
  and those of the Open Model Initiative (OMI).
- **peft**: a folder with `adapter_config.json`, or one such folder for each component.
- **cloneofsimo**: numbered layers; read only, LoRA for Stable Diffusion 1 and 2 only.
- Words of textual inversion, alone in a file or beside an adapter, are read, and written to kohya files.

A cell says what works, both exactly: `r` reading, `w` writing so that reading gives back the same numbers;
`·` means that the format has no place for it, which is an error that names the kind.

In kohya files for UNets, attention and text encoders whose LoRA have different alphas get one for all, since
diffusers gives them that of most modules: what is left of a scale is multiplied into the factors, rounded
once. The bias of lora_B is there a difference of the layer's bias (`diff_b`), which ComfyUI reads; diffusers
takes no kohya file with a bias.
"""

APPLIED = """
## Applied to a model

Merged: W0 + weight · ΔW is in the weights, rounded once. Live: what is kept beside the layer. Both were
compared with ΔW itself on the embedded base. Models of Flux and Stable Diffusion 3 are not loaded yet;
their files are read, written, merged and compared.

| kind | merged | live |
|---|---|---|
"""


def page(model: Model) -> str:
    """The whole document."""
    lines = [HEAD]
    for family in FAMILIES:
        columns = [layout.name for layout in FORMATS if layout.is_written]
        lines.append(f"\n## {family.title} (`{family.name}`)\n")
        lines.append(f"| kind | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for name in MAKERS:
            cells = [cell(name, layout, family.name) for layout in columns]
            if any(cells):
                lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    rows = [f"| {TITLES[name]} | {' | '.join(application(name, model))} |" for name in MAKERS]
    return "\n".join([*lines, APPLIED.rstrip("\n"), *rows, ""])


def place(name: str, family: str) -> tuple[str, tuple[int, ...]]:
    """A layer of the family that can have a sample, and a shape for it; "" where there is none."""
    linear, convolution, norm = LAYERS[family]
    if name not in LAYER_NAMES:
        return norm, (8,)
    return (convolution, (8, 6, 3, 3)) if "tucker" in name else (linear, (8, 6))


def cell(name: str, layout: str, family: str) -> str:
    """What works with one kind in one format for one family."""
    path, shape = place(name, family)
    if not path:
        return ""
    kind = sample(name, shape)
    reads = is_read(kind, path, layout, family)
    writes = is_written(kind, path, layout, family)
    return f"{'r' * reads}{'w' * writes}" or "·"


def is_written(kind: Kind, path: str, layout: str, family: str) -> bool:
    """Whether a file takes it. Fails if what is read back is another change."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "a"
        try:
            write(Adapter({path: (kind,)}, AdapterMeta("n", family)), target, format=layout)
        except AdapterFileError as error:
            assert path in str(error) and kind.name in str(error), error
            return False
        assert_same(read(target).modules, path, kind)
    return True


def is_read(kind: Kind, path: str, layout: str, family: str) -> bool:
    """Whether a file in the spelling of other programs is taken. Fails if it is read as another change."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "a.safetensors"
        if layout == "kohya":
            names = {leaf: f"{flat(path, family)}.{leaf}" for leaf in kind.to_leaves()}
        elif layout == "diffusers":
            names = {leaf: f"{path}.{leaf}" for leaf in kind.to_leaves()}
        else:
            names = {leaf: f"base_model.model.{path.partition('.')[2]}.{leaf}" for leaf in peft_leaves(kind)}
            if not names:
                return False
            target = Path(folder) / "adapter_model.safetensors"
            config = {
                "peft_type": {"loha": "LOHA", "lokr": "LOKR"}.get(kind.name, "LORA"),
                **dict.fromkeys(("r", "alpha", "lora_alpha"), 1),
                "auto_mapping": {"base_model_class": CLASSES[path.partition(".")[0]]},
            }
            (Path(folder) / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        leaves = {**kind.to_leaves(), **peft_leaves(kind)} if layout == "peft" else kind.to_leaves()
        write_tensors(target, {name: leaves[leaf].contiguous() for leaf, name in names.items()})
        try:
            found = read(target, family=family)
        except AdapterFileError as error:
            if layout == "diffusers" and any(leaf in ("weight", "bias") for leaf in leaves):
                return False  # these are names of whole layers there
            raise error
        assert_same(found.modules, path, kind)
    return True


def flat(path: str, family: str) -> str:
    """A flattened name that some program writes for a path alone."""
    return next(one for one in FAMILIES if one.name == family).kohya_name(path)


def peft_leaves(kind: Kind) -> dict[str, Tensor]:
    """The tensors of a PEFT folder for the types that PEFT has; none for the others."""
    inner = kind.inner if isinstance(kind, DoRA) else kind
    if isinstance(kind, Replace):
        return dict(kind.tensors())
    if isinstance(kind, LoHa | LoKr):
        return dict(kind.to_leaves())
    if not isinstance(inner, LoRA) or inner.mid is not None:
        return {}
    found = {"lora_A.weight": inner.down, "lora_B.weight": inner.up, "alpha": kind.to_leaves()["alpha"]}
    if inner.bias is not None:
        found["lora_B.bias"] = inner.bias
    if isinstance(kind, DoRA):
        if not kind.on_output:
            return {}
        found["lora_magnitude_vector"] = kind.magnitude.flatten()
    return found


def assert_same(modules: Mapping[str, tuple[Kind, ...]], path: str, kind: Kind) -> None:
    """What was read changes that weight, and its bias, as `kind` does."""
    assert list(modules) == [path]
    shape = next(shape for shape in ((8, 6), (8, 6, 3, 3), (8,)) if kind.problem(shape) is None)
    weight, bias = torch.randn(shape), torch.randn(8)
    first, *beside = modules[path]  # the bias of a LoRA is a kind of its own in kohya files
    assert torch.equal(first.delta(weight), kind.delta(weight))
    assert not any(one.delta(weight).any() for one in beside)
    changes = [one.bias_delta(bias) for one in modules[path]]
    ours, theirs = [one for one in changes if one is not None], kind.bias_delta(bias)
    assert len(ours) == (theirs is not None)
    assert theirs is None or torch.equal(ours[0], theirs)


def application(name: str, model: Model) -> tuple[str, str]:
    """How a kind acts merged and live. Fails if either is not what its ΔW says."""
    path = place(name, "sd1")[0]
    module = model.pipeline.unet.get_submodule(path.removeprefix("unet."))
    kind = sample(name, tuple(module.weight.shape))
    adapter = Adapter({path: (kind,)}, AdapterMeta("n", "sd1"))
    shape = (2, module.weight.shape[0], 8, 8)
    if module.weight.ndim > 1:
        shape = (2, module.weight.shape[1], *(8,) * (module.weight.ndim - 2))
    x = torch.randn(shape)
    wanted = dict(changed(module, kind, 0.7))
    before = module.weight.detach().clone()
    expected = functional_call(module, wanted, (x,))
    with applied(model, Stack([(adapter, 0.7)]), mode="merged"):
        assert close(module.weight, wanted["weight"]) and close(module(x), expected), name
    assert torch.equal(module.weight, before)
    with applied(model, Stack([(adapter, 0.7)]), mode="live"):
        assert close(module(x), expected), name
    return "yes", live_words(kind, before)


def changed(module: nn.Module, kind: Kind, weight: float) -> Iterator[tuple[str, Tensor]]:
    own = dict(module.named_parameters())
    yield "weight", own["weight"].detach() + weight * kind.delta(own["weight"].detach())
    if "bias" in own:
        change = kind.bias_delta(own["bias"].detach())
        yield "bias", own["bias"].detach() + (0.0 if change is None else weight * change)


def live_words(kind: Kind, weight: Tensor) -> str:
    form = kind.live_form(weight)
    if form is None:
        return "one dense ΔW"
    words = [
        word for word, part in (("a gain", form.gain), ("a low-rank pair", form.factors)) if part is not None
    ]
    return " and ".join(words) or "a bias"


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-5 * expected.norm())


def main() -> None:
    """Writes the document."""
    from difflora.families import load

    torch.manual_seed(0)
    with torch.no_grad():
        DOCUMENT.write_text(page(load(str(SHAPES), device="cpu", dtype="float32")), encoding="utf-8")


if __name__ == "__main__":
    main()
