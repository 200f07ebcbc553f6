"""Every kind that LyCORIS has against its own forward on the same layer.

Its forward is the truth, not its `merge_to`, which multiplies alpha / rank in twice for LoHa and LoKr.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from difflora.kinds import BOFT, IA3, KINDS, OFT, DoRA, Full, GLoRA, Kind, LoHa, LoKr, LoRA, Norm

modules = pytest.importorskip("lycoris.modules")

LAYERS = {
    "linear": lambda: nn.Linear(12, 16),
    "conv 1x1": lambda: nn.Conv2d(12, 16, 1),
    "conv 3x3": lambda: nn.Conv2d(12, 16, 3, padding=1),
}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Peer:
    """One LyCORIS module with its options, and the kind that reads its tensors."""

    module: str
    kind: type[Kind]
    options: Mapping[str, object] = field(default_factory=dict)
    straight: bool = True
    """Whether its own multiplier, too, is linear."""


PEERS = {
    "locon": Peer("LoConModule", LoRA),
    "locon tucker": Peer("LoConModule", LoRA, {"use_tucker": True}),
    "locon rs": Peer("LoConModule", LoRA, {"rs_lora": True}),
    "loha": Peer("LohaModule", LoHa),
    "loha tucker": Peer("LohaModule", LoHa, {"use_tucker": True}),
    "lokr": Peer("LokrModule", LoKr, {"lora_dim": 1, "alpha": 0.6}),
    "lokr full": Peer("LokrModule", LoKr, {"full_matrix": True}),
    "lokr both": Peer("LokrModule", LoKr, {"lora_dim": 1, "decompose_both": True, "factor": 4, "alpha": 0.6}),
    "lokr tucker": Peer("LokrModule", LoKr, {"lora_dim": 1, "use_tucker": True, "alpha": 0.6}),
    "lokr unbalanced": Peer("LokrModule", LoKr, {"lora_dim": 1, "unbalanced_factorization": True}),
    "dora out": Peer("LoConModule", DoRA, {"weight_decompose": True}, straight=False),
    "dora in": Peer("LoConModule", DoRA, {"weight_decompose": True, "wd_on_out": False}, straight=False),
    "dora tucker": Peer("LoConModule", DoRA, {"weight_decompose": True, "use_tucker": True}, straight=False),
    "dora loha": Peer("LohaModule", DoRA, {"weight_decompose": True}, straight=False),
    "dora loha in": Peer("LohaModule", DoRA, {"weight_decompose": True, "wd_on_out": False}, straight=False),
    "dora lokr": Peer("LokrModule", DoRA, {"lora_dim": 1, "weight_decompose": True}, straight=False),
    "glora": Peer("GLoRAModule", GLoRA),
    "ia3 out": Peer("IA3Module", IA3),
    "ia3 in": Peer("IA3Module", IA3, {"train_on_input": True}),
    "oft": Peer("DiagOFTModule", OFT),
    "coft": Peer("DiagOFTModule", OFT, {"constraint": 0.01}),
    "oft rescaled": Peer("DiagOFTModule", OFT, {"rescaled": True}, straight=False),
    "boft": Peer("ButterflyOFTModule", BOFT, straight=False),
    "boft constrained": Peer("ButterflyOFTModule", BOFT, {"constraint": 0.01, "rescaled": True}, False),
}  # fmt: skip


def attach(peer: Peer, layer: nn.Module, multiplier: float = 1.0) -> nn.Module:
    """The peer's module around `layer`, with random numbers in all of its tensors."""
    options = {"lora_dim": 3, "alpha": 1.5, **peer.options}
    module = getattr(modules, peer.module)("test", layer, multiplier, **options)
    for name, parameter in module.named_parameters():
        noise = torch.randn_like(parameter) * 0.3
        around_one = "dora_scale" in name or name == "rescale"
        parameter.data = parameter.data * noise.exp() if around_one else noise
    return module.eval()


def kind_of(state: Mapping[str, Tensor]) -> Kind:
    """The one kind that claims every tensor."""
    leaves = {name: tensor.detach() for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in leaves.items()}
    kind = next(kind for kind in KINDS if kind.claim(shapes) == frozenset(leaves))
    return kind.from_leaves(leaves, lambda rank: float(leaves["alpha"]) / rank)


def inputs(layer: nn.Module) -> Tensor:
    return torch.randn(5, 12) if isinstance(layer, nn.Linear) else torch.randn(2, 12, 5, 5)


def ours(layer: nn.Linear | nn.Conv2d, change: Kind, x: Tensor, dial: float = 1.0) -> Tensor:
    """The layer with W0 + dial · ΔW."""
    weight = layer.weight + dial * change.delta(layer.weight)
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, layer.bias)
    return functional.conv2d(x, weight, layer.bias, padding=layer.padding)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("name", PEERS)
@torch.no_grad()
def test_a_layer_changed_by_delta_answers_as_lycoris_does(name: str, layer_name: str) -> None:
    torch.manual_seed(3)
    peer, layer = PEERS[name], LAYERS[layer_name]()
    module, x = attach(peer, layer), inputs(layer)
    change = kind_of(module.state_dict())
    assert type(change) is peer.kind
    base, truth = layer(x), module(x)
    assert error(base, truth) > 0.01, "the change must be there to be compared"
    assert error(ours(layer, change, x), truth) < TOLERANCE


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.straight])
@torch.no_grad()
def test_half_the_weight_is_half_the_multiplier_where_that_is_linear(name: str, layer_name: str) -> None:
    torch.manual_seed(4)
    layer = LAYERS[layer_name]()
    module, x = attach(PEERS[name], layer, multiplier=0.5), inputs(layer)
    assert error(ours(layer, kind_of(module.state_dict()), x, 0.5), module(x)) < TOLERANCE


@torch.no_grad()
def test_dora_at_weight_0_is_the_base_here_and_the_change_inside_in_lycoris() -> None:
    layer = nn.Linear(12, 16)
    module, x = attach(PEERS["dora out"], layer, multiplier=0.0), inputs(layer)
    change = kind_of(module.state_dict())
    assert isinstance(change, DoRA)
    assert torch.equal(ours(layer, change, x, 0.0), layer(x))
    assert error(ours(layer, change.inner, x), module(x)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("layer_name", LAYERS)
def test_a_layer_with_a_full_difference_answers_as_lycoris_does(layer_name: str) -> None:
    layer = LAYERS[layer_name]()
    own, x = copy.deepcopy(layer), inputs(layer)
    module = attach(Peer("FullModule", Full), layer)
    module.apply_to()  # before it, the module subtracts W0 once too often on saving
    change = kind_of(module.state_dict())
    truth = module(x)
    shift = change.bias_delta(own.bias)
    assert shift is not None
    own.bias += shift
    assert error(ours(own, change, x), truth) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("layer", [nn.LayerNorm(12), nn.GroupNorm(3, 12)], ids=["layer norm", "group norm"])
def test_a_norm_changed_answers_as_lycoris_does(layer: nn.LayerNorm | nn.GroupNorm) -> None:
    x = torch.randn(4, 12)
    module = attach(Peer("NormModule", Norm), layer)
    change = kind_of(module.state_dict())
    truth = module(x)
    weight, bias = layer.weight + change.delta(layer.weight), layer.bias + change.bias_delta(layer.bias)
    if isinstance(layer, nn.LayerNorm):
        found = functional.layer_norm(x, (12,), weight, bias, layer.eps)
    else:
        found = functional.group_norm(x, 3, weight, bias, layer.eps)
    assert error(found, truth) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("layer_name", LAYERS)
def test_dylora_tensors_are_a_lora_whose_up_may_be_flat(layer_name: str) -> None:
    layer = LAYERS[layer_name]()
    module = attach(Peer("DyLoraModule", LoRA, {"lora_dim": 4, "block_size": 2}), layer)
    change = kind_of(module.state_dict())
    assert isinstance(change, LoRA) and change.problem(tuple(layer.weight.shape)) is None
    up, down = torch.cat(list(module.up_list), dim=1), torch.cat(list(module.down_list))
    torch.testing.assert_close(change.delta(), up @ down * 1.5 / 4)
