"""Module names of Flux.1 as Black Forest Labs, XLabs and OMI write them, from those of diffusers.

Source: the conversion of Flux checkpoints in diffusers; XLabs' own attention processors; the names of the
Open Model Initiative as OneTrainer has them, which are BFL's but for one.
"""

from collections.abc import Iterable, Mapping

from difflora.families.spellings import Slice, Slices, swapped, thirds, whole

_DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "processor.proj_lora1": "attn.to_out.0",
    "processor.proj_lora2": "attn.to_add_out",
}
_IMAGE, _TEXT = (
    ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
)
_DOUBLE_FUSED = {
    "img_attn.qkv": _IMAGE,
    "txt_attn.qkv": _TEXT,
    "processor.qkv_lora1": _IMAGE,
    "processor.qkv_lora2": _TEXT,
}
_SINGLE = {
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "processor.proj_lora": "proj_out",
    "processor.proj": "proj_out",
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "img_in.proj": "x_embedder",  # OMI
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def bfl_names(names: Iterable[str]) -> dict[str, Slices]:
    """What every module holds that the original of a Flux transformer with modules `names` has, by its name.

    BFL's names come first, then those of the others.
    """
    known = set(names)
    found = {original: whole(name) for original, name in _OUTSIDE.items()}
    found["final_layer.adaLN_modulation.1"] = swapped("norm_out.linear")
    for index in _indices(known, "transformer_blocks"):
        found |= _double(f"double_blocks.{index}", f"transformer_blocks.{index}")
    for index in _indices(known, "single_transformer_blocks"):
        found |= _single(f"single_blocks.{index}", f"single_transformer_blocks.{index}")
    found |= {f"{name}.scale": slices for name, slices in found.items() if name.endswith("_norm")}
    return {name: slices for name, slices in found.items() if all(one.path in known for one in slices)}


def _double(theirs: str, ours: str) -> Mapping[str, Slices]:
    fused = {name: thirds(*(f"{ours}.{part}" for part in parts)) for name, parts in _DOUBLE_FUSED.items()}
    alone = {name: whole(f"{ours}.{part}") for name, part in _DOUBLE.items()}
    return {f"{theirs}.{name}": slices for name, slices in {**fused, **alone}.items()}


def _single(theirs: str, ours: str) -> Mapping[str, Slices]:
    q, k, v, mlp = (f"{ours}.{part}" for part in (*_IMAGE, "proj_mlp"))
    qkv = thirds(q, k, v)
    # The feed-forward part is four times as high as each of the others.
    linear1 = (Slice(q, 0, 1, 7), Slice(k, 1, 2, 7), Slice(v, 2, 3, 7), Slice(mlp, 3, 7, 7))
    # XLabs leaves the feed-forward part alone.
    fused = {"linear1": linear1, "processor.qkv_lora": qkv, "processor.qkv": qkv}
    alone = {name: whole(f"{ours}.{part}") for name, part in _SINGLE.items()}
    return {f"{theirs}.{name}": slices for name, slices in {**fused, **alone}.items()}


def _indices(names: Iterable[str], blocks: str) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in names if name.startswith(f"{blocks}.")})
