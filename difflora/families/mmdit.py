"""Module names of Stable Diffusion 3 and 3.5 as Stability AI writes them, from those of diffusers.

Source: the conversion of SD3 checkpoints in diffusers.
"""

from collections.abc import Iterable, Mapping

from difflora.families.spellings import Slices, swapped, thirds, whole

_BLOCK = {
    "x_block.attn.proj": "attn.to_out.0",
    "context_block.attn.proj": "attn.to_add_out",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
}
_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def mmdit_names(names: Iterable[str]) -> dict[str, Slices]:
    """What every module holds that the original of an SD3 transformer with modules `names` has, by its name.

    The last block does not change the text any more, so its context has only a shift and a scale, which
    diffusers holds in the other order.
    """
    known = set(names)
    blocks = sorted({int(name.split(".")[1]) for name in known if name.startswith("transformer_blocks.")})
    found = {original: whole(name) for original, name in _OUTSIDE.items()}
    found["final_layer.adaLN_modulation.1"] = swapped("norm_out.linear")
    for index in blocks:
        found |= _block(f"joint_blocks.{index}", f"transformer_blocks.{index}")
    last = f"joint_blocks.{blocks[-1]}.context_block.adaLN_modulation.1"
    found[last] = swapped(found[last][0].path)
    return {name: slices for name, slices in found.items() if all(one.path in known for one in slices)}


def _block(theirs: str, ours: str) -> Mapping[str, Slices]:
    fused = {name: thirds(*(f"{ours}.{part}" for part in parts)) for name, parts in _FUSED.items()}
    alone = {name: whole(f"{ours}.{part}") for name, part in _BLOCK.items()}
    return {f"{theirs}.{name}": slices for name, slices in {**fused, **alone}.items()}
