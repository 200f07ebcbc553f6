"""Which kind takes which leaves of a module, also where several are on one."""

import pytest

from difflora.kinds import KINDS

LORA = {"lora_down.weight": (4, 6), "lora_up.weight": (8, 4), "alpha": ()}
LOHA = {"hada_w1_a": (8, 4), "hada_w1_b": (4, 6), "hada_w2_a": (8, 4), "hada_w2_b": (4, 6)}
LOKR = {"lokr_w1": (2, 2), "lokr_w2": (4, 3)}


def claimed(leaves: dict[str, tuple[int, ...]]) -> dict[str, set[str]]:
    """Kind -> its leaves, each kind asked for what those before it left; what is left goes under ""."""
    left, found = dict(leaves), {}
    for kind in KINDS:
        if taken := kind.claim(left):
            assert taken <= left.keys()
            found[kind.name] = set(taken)
            left = {leaf: shape for leaf, shape in left.items() if leaf not in taken}
    return {**found, **({"": set(left)} if left else {})}


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        (LORA, {"lora": set(LORA)}),
        ({**LORA, "lora_up.bias": (8,)}, {"lora": {*LORA, "lora_up.bias"}}),
        ({**LORA, "dora_scale": (8, 1)}, {"dora": {*LORA, "dora_scale"}}),
        ({**LOHA, "alpha": (), "dora_scale": (8, 1)}, {"dora": {*LOHA, "alpha", "dora_scale"}}),
        ({**LOKR, "dora_scale": (8, 1)}, {"dora": {*LOKR, "dora_scale"}}),
        ({"dora_scale": (8, 1)}, {"dora": {"dora_scale"}}),
        ({**LORA, "diff_b": (8,)}, {"lora": set(LORA), "bias": {"diff_b"}}),
        ({"diff": (8, 6), "diff_b": (8,)}, {"full": {"diff", "diff_b"}}),
        ({**LORA, "diff": (8, 6), "diff_b": (8,)}, {"lora": set(LORA), "full": {"diff", "diff_b"}}),
        ({**LORA, **LOKR}, {"lora": set(LORA), "lokr": set(LOKR)}),
        ({**LORA, "set_bias": (8,)}, {"lora": set(LORA), "replace": {"set_bias"}}),
        ({**LORA, "weight": (8,), "on_input": ()}, {"lora": set(LORA), "ia3": {"weight", "on_input"}}),
        ({"weight": (8, 6)}, {"": {"weight"}}),
        ({"weight": (8,), "on_input": ()}, {"ia3": {"weight", "on_input"}}),
        ({"w_norm": (8,), "b_norm": (8,)}, {"norm": {"w_norm", "b_norm"}}),
        ({"b_norm": (8,)}, {"norm": {"b_norm"}}),
        ({"oft_blocks": (2, 4, 4), "rescale": (8, 1)}, {"oft": {"oft_blocks", "rescale"}}),
        ({"oft_blocks": (1, 2, 4, 4), "alpha": ()}, {"boft": {"oft_blocks", "alpha"}}),
        ({"oft_diag": (2, 4, 4), "alpha": ()}, {"oft_diag": {"oft_diag", "alpha"}}),
        ({"alpha": ()}, {"": {"alpha"}}),
        ({**LORA, "q_layer.weight": (4, 6)}, {"lora": set(LORA), "": {"q_layer.weight"}}),
        ({"reshape_weight": (2,)}, {"": {"reshape_weight"}}),
        ({"lora_up.weight": (8, 4)}, {"lora": {"lora_up.weight"}}),
    ],
)  # fmt: skip
def test_every_leaf_goes_to_the_kind_it_belongs_to(
    leaves: dict[str, tuple[int, ...]], expected: dict[str, set[str]]
) -> None:
    assert claimed(leaves) == expected
