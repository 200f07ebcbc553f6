"""The format of kohya's sd-scripts and of LyCORIS, which A1111, ComfyUI, Forge and diffusers read.

    unet.mid_block.attentions.0.proj_in  <->  lora_unet_mid_block_attentions_0_proj_in.lora_down.weight
                                              lora_unet_mid_block_attentions_0_proj_in.lora_up.weight
                                              lora_unet_mid_block_attentions_0_proj_in.alpha

It holds every kind, and words with vectors of their own. diffusers (0.42) has limits with these files: it
reads LoRA and DoRA only, without biases, and a text encoder only if an `out_proj` is among its modules. Its
own format has neither of the last two. Nor does it find every alpha: see `difflora.formats.alphas`.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import AdapterError
from difflora.families import Family
from difflora.families.fused import kohya_modules
from difflora.formats import embeddings
from difflora.formats.alphas import with_alphas_found
from difflora.formats.format import Encoded, Format, Metadata, Part, refusal
from difflora.formats.leaves import leaves_of
from difflora.formats.network import network_facts
from difflora.formats.suffixes import flattened
from difflora.kinds import Kind

_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_transformer_",
             "lora_prior_", "oft_unet_", "lycoris_")  # fmt: skip


class Kohya(Format):
    """Flattened module names, and alpha as a tensor."""

    name: ClassVar[str] = "kohya"
    title: ClassVar[str] = "kohya file"

    @classmethod
    def recognises(cls, names: Collection[str], metadata: Metadata) -> bool:
        """Whether any name has one of kohya's prefixes."""
        return any(name.startswith(_PREFIXES) for name in names)

    @classmethod
    def part(cls, name: str) -> Part | None:
        """Split at the first dot: flattened names have none."""
        return flattened(name) if name.startswith(_PREFIXES) else None

    @classmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """Every leaf as it is, and alpha as a float32 number; see `difflora.formats.alphas` for UNets."""
        _checked(adapter, adapter.modules)  # first, as only sound modules can be put together
        tensors = _checked(adapter, _modules(adapter.modules, family))
        words = embeddings.leaves(adapter.tokens, family)
        found = with_alphas_found(adapter.modules) if _is_of_unets(family) else adapter.modules
        if found is adapter.modules:
            return Encoded(tensors | words, {})
        changed = _checked(adapter, _modules(found, family))
        stored = {
            name: tensors[name].dtype
            for name, tensor in changed.items()
            if tensor.dtype != tensors[name].dtype
        }
        return Encoded(changed | words, network_facts(found), stored)


def _checked(adapter: Adapter, modules: Mapping[str, tuple[Kind, ...]]) -> dict[str, Tensor]:
    """The tensors of the modules. Raises AdapterFileError naming every module that no file can hold."""
    tensors: dict[str, Tensor] = {}
    problems: list[str] = []
    for module, kinds in sorted(modules.items()):
        try:
            tensors |= {f"{module}.{leaf}": tensor for leaf, tensor in leaves_of(kinds).items()}
        except AdapterError as error:
            problems.append(f"{module}: {error}")
    if problems:
        raise refusal(adapter, Kohya.title, problems, "Merge or extract these modules to one kind first.")
    return tensors


def _is_of_unets(family: Family) -> bool:
    return any(component.name == "unet" for component in family.components)


def _modules(modules: Mapping[str, tuple[Kind, ...]], family: Family) -> dict[str, tuple[Kind, ...]]:
    """The kinds of each module of the file, under its flattened name."""
    if all(family.kohya_group(path)[1][0].is_whole for path in modules):
        return {family.kohya_name(path): kinds for path, kinds in modules.items()}
    return kohya_modules(family, modules)
