"""UNet module names of original (LDM, SGM) checkpoints, from their diffusers names.

Holds for UNets with two layers a block, as SD 1.x, SD 2.x and SDXL have. Inside transformers both agree.
"""

import re
from collections.abc import Iterable

_LAYERS = 2

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ITEM = re.compile(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(resnets|attentions)\.(\d+)\.(.+)")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")


def sgm_names(names: Iterable[str]) -> dict[str, str]:
    """diffusers name -> SGM name of every UNet module in `names` (both without a component or a prefix).

    Raises KeyError on a name that is no parametrised module of such a UNet.
    """
    known = list(names)
    items = [match for name in known if (match := _ITEM.fullmatch(name))]
    up_attending = {match[2] for match in items if (match[1], match[3]) == ("up_blocks", "attentions")}
    return {name: _sgm_name(name, up_attending) for name in known}


def _sgm_name(name: str, up_attending: set[str]) -> str:
    if match := _ITEM.fullmatch(name):
        block, index, kind, item, rest = match.groups()
        inside = _RESNET[rest] if kind == "resnets" else rest
        if block == "mid_block":
            return f"middle_block.{2 * int(item) + (kind == 'attentions')}.{inside}"
        position = (_LAYERS + 1) * int(index) + int(item) + (block == "down_blocks")
        side = "input_blocks" if block == "down_blocks" else "output_blocks"
        return f"{side}.{position}.{int(kind == 'attentions')}.{inside}"
    if match := _SAMPLER.fullmatch(name):
        side, index = match.groups()
        if side == "down":
            return f"input_blocks.{(_LAYERS + 1) * (int(index) + 1)}.0.op"
        # The upsampler stands after the last resnet, and after its attention where the block has one.
        return (
            f"output_blocks.{(_LAYERS + 1) * int(index) + _LAYERS}.{2 if index in up_attending else 1}.conv"
        )
    return _OUTSIDE[name]
