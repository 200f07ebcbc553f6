"""Malformed files by name: the bytes of each, and what its refusal must say, the tensor among it."""

import json
from typing import Any

import safetensors.torch
import torch

from difflora.formats.safe import MAX_HEADER, MAX_METADATA, MAX_TENSORS

Header = dict[str, Any]


def entry(begin: int, end: int, *, dtype: str = "F32", shape: list[Any] | None = None) -> Header:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(header: bytes, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def packed(header: Header, data: bytes = bytes(16)) -> bytes:
    return raw(json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass"), data)


A = entry(0, 16)
K = "lora_unet_mid_block_attentions_0_proj_in"

HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "seven_bytes": (bytes(7), "7 bytes"),
    "header_of_nothing": (raw(b""), "header claims 0"),
    "header_longer_than_the_file": (raw(b"{}", length=10**6), "header claims 1000000"),
    "header_one_byte_too_long": (raw(b"{}", b"", length=3), "header claims 3"),
    "header_of_2_to_64": (raw(b"{}", length=2**64 - 1), "header claims"),
    "not_utf8": (raw(b'{"\xff": 1}'), "utf-8"),
    "not_json": (raw(b"{nonsense"), "cannot be read"),
    "an_array": (raw(b"[1, 2]"), "starts with"),
    "leading_space": (raw(b" " + json.dumps({"a": A}).encode()), "starts with"),
    "byte_order_mark": (raw(b"\xef\xbb\xbf{}"), "starts with"),
    "deep_nesting": (raw(b'{"a":' + b"[" * 100_000), "more than 20000 tensors"),
    "nesting_within_the_limit": (raw(b'{"a":' + b"[" * 30_000), "recursion"),
    "a_number_of_5000_digits": (raw(b'{"a":' + b"9" * 5000 + b"}"), "cannot be read"),
    "not_a_number": (raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'), "NaN"),
    "no_tensors": (packed({}, b""), "no tensors"),
    "metadata_only": (packed({"__metadata__": {"a": "b"}}, b""), "no tensors"),
    "duplicate_tensor": (
        raw(b'{"twin":' + json.dumps(A).encode() + b',"twin":' + json.dumps(A).encode() + b"}"),
        "twin is there twice",
    ),
    "duplicate_of_another_shape": (
        raw(
            b'{"twin":'
            + json.dumps(A).encode()
            + b',"twin":'
            + json.dumps(entry(0, 16, shape=[2, 2])).encode()
            + b"}"
        ),
        "twin is there twice",
    ),
    "a_million_names_and_one_twice": (
        raw(b"{" + b",".join(b'"%d":1' % n for n in range(10**6)) + b',"999999":1}'),
        "more than 20000 tensors",
    ),
    "names_enough_for_one_to_be_there_twice": (
        raw(b"{" + b",".join(b'"%d":1' % n for n in range(20_000)) + b',"19999":1}'),
        "19999 is there twice",
    ),
    "millions_of_lists": (raw(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"), "more than 20000 tensors"),
    "a_size_for_each_of_millions": (
        raw(b'{"a":{"dtype":"F32","shape":[' + b"1," * 7_000_000 + b'4],"data_offsets":[0,16]}}'),
        "more than 20000 tensors",
    ),
    "a_text_never_closed": (raw(b'{"a":"' + b'\\"' * 7_000_000), "cannot be read"),
    "many_sizes": (packed({"long": entry(0, 16, shape=[1] * 1000 + [4])}), "long: the shape"),
    "duplicate_metadata": (
        raw(b'{"__metadata__":{"k":"1","k":"2"},"a":' + json.dumps(A).encode() + b"}"),
        "k is there twice",
    ),
    "duplicate_field": (
        raw(b'{"a":{"dtype":"F16","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "dtype is there twice",
    ),
    "metadata_is_a_list": (packed({"__metadata__": ["x"], "a": A}), "text to text"),
    "metadata_with_a_number": (packed({"__metadata__": {"k": 1}, "a": A}), "text to text"),
    "metadata_with_a_lone_surrogate": (
        raw(b'{"__metadata__":{"k":"\\ud800"},"a":' + json.dumps(A).encode() + b"}"),
        "k: is not valid Unicode",
    ),
    "metadata_key_with_an_escape": (packed({"__metadata__": {"k\x1b": "1"}, "a": A}), r"k\\x1b"),
    "too_much_metadata": (
        packed({"__metadata__": {str(n): "" for n in range(MAX_METADATA + 1)}, "a": A}),
        "metadata entries",
    ),
    "too_many_tensors": (
        packed({str(n): entry(0, 0, shape=[0]) for n in range(MAX_TENSORS + 1)}),
        "more than 20000 tensors",
    ),
    "a_flood_of_tensors": (
        packed({str(n): entry(0, 0, shape=[0]) for n in range(200_000)}, b""),
        "more than 20000 tensors",
    ),
    "empty_name": (packed({"": A}), "name of 0 letters"),
    "long_name": (packed({"n" * 1_000_000: A}), "name of 1000000 letters"),
    "name_with_nul": (packed({"a\x00b": A}), r"a\\x00b: control"),
    "name_with_escape": (packed({"a\x1b[2J": A}), r"a\\x1b\[2J: control"),
    "name_turned_around": (packed({"a\u202eb": A}), r"a\\u202eb: control"),
    "missing_field": (packed({"lost": {"dtype": "F32", "shape": [4]}}), "lost: expected exactly"),
    "extra_field": (packed({"more": {**A, "extra": 1}}), "more: expected exactly"),
    "tensor_is_text": (packed({"word": "F32"}), "word: expected exactly"),
    "unknown_dtype": (packed({"odd": entry(0, 16, dtype="F128")}), "odd: dtype is F128"),
    "dtype_is_a_list": (packed({"odd": entry(0, 16) | {"dtype": ["F32"]}}), "odd: dtype is"),
    "negative_size": (packed({"minus": entry(0, 16, shape=[-4])}), "minus: the shape"),
    "size_of_2_to_40": (packed({"vast": entry(0, 0, shape=[0, 2**40]), "a": A}), "vast: the shape"),
    "size_times_size_overflows": (
        packed({"vast": entry(0, 16, shape=[2**31 - 1] * 8)}),
        "vast: 16 bytes of data",
    ),
    "nine_dimensions": (packed({"deep": entry(0, 16, shape=[1] * 8 + [4])}), "deep: the shape"),
    "size_is_a_fraction": (packed({"part": entry(0, 16, shape=[4.0])}), "part: the shape"),
    "size_is_text": (packed({"text": entry(0, 16, shape=["4"])}), "text: the shape"),
    "size_is_true": (packed({"yes": entry(0, 16, shape=[True, 4])}), "yes: the shape"),
    "shape_is_text": (packed({"text": entry(0, 16) | {"shape": "4"}}), "text: the shape"),
    "no_values": (packed({"void": entry(0, 0, shape=[0, 4])}, b""), "void: the shape"),
    "three_offsets": (packed({"a": entry(0, 16) | {"data_offsets": [0, 8, 16]}}), "a: data_offsets"),
    "negative_offset": (packed({"a": entry(-4, 12, shape=[4])}), "a: data_offsets"),
    "ends_before_it_begins": (packed({"a": entry(16, 0, shape=[4])}), "a: -16 bytes"),
    "offset_is_null": (packed({"a": entry(0, 16) | {"data_offsets": [None, 16]}}), "a: data_offsets"),
    "wrong_size": (packed({"a": entry(0, 16, shape=[5])}), "a: 16 bytes of data, expected 20"),
    "past_the_end": (packed({"a": entry(0, 32)}), "a: its data ends at byte 32"),
    "whole_overlap": (packed({"a": A, "b": A}), "b: 16 bytes of its data overlap those of a"),
    "partial_overlap": (packed({"a": entry(0, 12), "b": entry(8, 16)}), "b: 4 bytes of its data overlap"),
    "a_hole": (packed({"a": entry(0, 4), "b": entry(8, 16)}), "b: a hole of 4 bytes"),
    "a_hole_at_the_start": (packed({"a": entry(4, 16)}), "a: a hole of 4 bytes"),
    "trailing_bytes": (packed({"a": A}, bytes(20)), "4 bytes after the last tensor"),
    "bool_that_is_neither": (
        packed({f"{K}.alpha": entry(0, 16, dtype="BOOL", shape=[16])}, bytes([2] * 16)),
        f"{K}.alpha: a BOOL",
    ),
    "pickle": (b"\x80\x02}q\x00." + bytes(100), "pickle"),
    "zip": (b"PK\x03\x04" + bytes(100), "pickle"),
    "zeros": (bytes(4096), "header claims 0"),
    "metadata_of_40_megabytes": (
        packed({"__metadata__": {"note": "x" * (40 << 20)}, "a": A}),
        f"the limit is {MAX_HEADER}",
    ),
}
"""Refused for their header, or a byte that no value of the dtype has, whatever they are taken for."""


def adapter(changes: dict[str, torch.Tensor | None], metadata: dict[str, str] | None = None) -> bytes:
    """A small good LoRA with some tensors changed, added, or (None) left out."""
    tensors = {
        f"{K}.lora_down.weight": torch.full((2, 4, 1, 1), 0.5),
        f"{K}.lora_up.weight": torch.full((4, 2, 1, 1), 0.5),
        f"{K}.alpha": torch.tensor(2.0),
        **changes,
    }
    return safetensors.torch.save(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata
    )


def changed(leaf: str, tensor: torch.Tensor | None) -> bytes:
    return adapter({f"{K}.{leaf}": tensor})


NAN, INF = float("nan"), float("inf")
CONTENT: dict[str, tuple[bytes, str]] = {
    "nan": (changed("lora_up.weight", torch.full((4, 2), NAN)), f"{K}.lora_up.weight: 8 of 8 values are NaN"),
    "infinite": (
        changed("lora_down.weight", torch.tensor([[INF] + [0.0] * 3, [0.0] * 4])),
        f"{K}.lora_down.weight: 1 of 8 values are NaN or inf",
    ),
    "infinite_half": (
        changed("lora_down.weight", torch.full((2, 4), -INF, dtype=torch.bfloat16)),
        f"{K}.lora_down.weight: 8 of 8",
    ),
    "factor_without_dimensions": (changed("lora_down.weight", torch.tensor(1.0)), rf"{K}: down is \(\)"),
    "factor_of_one_dimension": (
        changed("lora_up.weight", torch.ones(8)),
        rf"{K}: down is .* and up is \(8,\)",
    ),
    "down_alone": (changed("lora_up.weight", None), f"{K}.*lora_up.weight"),
    "up_alone": (changed("lora_down.weight", None), f"{K}.*lora_down.weight"),
    "ranks_that_differ": (changed("lora_up.weight", torch.ones(4, 3)), f"{K}: down is .*, but up is"),
    "whole_numbers": (changed("lora_up.weight", torch.ones(4, 2, dtype=torch.int8)), f"{K}.*int8"),
    "yes_and_no": (changed("lora_up.weight", torch.ones(4, 2, dtype=torch.bool)), f"{K}.*bool"),
    "doubles": (changed("lora_up.weight", torch.ones(4, 2, dtype=torch.float64)), f"{K}.*float64"),
    "alpha_nan": (changed("alpha", torch.tensor(NAN)), f"{K}.*alpha"),
    "alpha_vast": (changed("alpha", torch.tensor(1e30)), f"{K}.*alpha"),
    "alpha_of_two": (changed("alpha", torch.ones(2)), f"{K}.*alpha"),
    "magnitude_without_dimensions": (changed("magnitude", torch.tensor(1.0)), rf"{K}: magnitude is \(\)"),
    "name_of_a_system_file": (adapter({"../../etc/passwd": torch.ones(2)}), "../../etc/passwd"),
    "name_of_a_page": (adapter({"<script>alert(1)</script>": torch.ones(2)}), "<script>"),
    "name_of_a_drive": (adapter({"C:\\boot.ini": torch.ones(2)}), "boot.ini"),
    "module_that_is_not_there": (adapter({f"{K}_9.lora_down.weight": torch.ones(2, 4)}), f"{K}_9"),
    "leaf_that_is_not_there": (changed("lora_sideways", torch.ones(2)), f"{K}.lora_sideways"),
    "word_of_whole_numbers": (
        adapter({"bundle_emb.cat.emb_params": torch.ones(1, 768, dtype=torch.int64)}),
        "bundle_emb.cat.emb_params: the vectors of a word are torch.int64",
    ),
    "word_without_a_name": (adapter({"bundle_emb.emb_params": torch.ones(1, 768)}), "bundle_emb.emb_params"),
    "word_for_another_encoder": (adapter({"bundle_emb.cat.t5": torch.ones(1, 8)}), "bundle_emb.cat.t5: .*t5"),
    "word_of_many_vectors": (
        adapter({"bundle_emb.cat.emb_params": torch.ones(76, 768)}),
        "bundle_emb.cat.emb_params: a word of 76 vectors",
    ),
    "word_that_is_nan": (
        adapter({"bundle_emb.cat.emb_params": torch.full((1, 768), NAN)}),
        "bundle_emb.cat.emb_params: 768 of 768",
    ),
}
"""Sound containers whose tensors make no adapter."""

MALFORMED = HEADERS | CONTENT

ACCEPTED_BY_THE_LIBRARY = (
    "leading_space",
    "extra_field",
    "duplicate_tensor",
    "duplicate_of_another_shape",
    "factor_without_dimensions",
    "size_of_2_to_40",
    "no_tensors",
    "metadata_only",
    "nan",
    "name_of_a_system_file",
    "name_with_escape",
    "name_of_a_page",
    "long_name",
    "a_flood_of_tensors",
    "metadata_of_40_megabytes",
    "bool_that_is_neither",
    "empty_name",
)
"""Read by safetensors 0.8 without an error. The 18th of that sort, HTML in metadata, is text here too."""

PAGE = "<img src=x onerror=alert(1)> [bold]loud[/bold] :boom: {0} %s\x1b[2J\u202e"
"""What a page, a terminal, or a template would make something else of; as text it has no control letters."""
TEXT = PAGE.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")
HTML_IN_METADATA = adapter(
    {},
    dict.fromkeys(
        ("ss_training_comment", "ss_output_name", "modelspec.title", "modelspec.trigger_phrase", "note"), PAGE
    ),
)
