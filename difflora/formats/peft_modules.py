"""What PEFT and diffusers can hold of an adapter: LoRA, DoRA on output rows, their biases, whole weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import AdapterError
from difflora.formats.format import ALPHA, refusal
from difflora.formats.leaves import bounded
from difflora.kinds import Bias, DoRA, Kind, LoRA, Replace


@dataclass(frozen=True, slots=True, eq=False)
class PeftModule:
    """One module in PEFT's words.

    `factors` maps lora_A.weight and lora_B.weight, and where there are any lora_magnitude_vector and
    lora_B.bias, to their tensors; it is empty where the module is replaced. `whole` maps weight and bias to
    what takes their place.
    """

    alpha: float
    factors: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """The number of rank-one terms."""
        return self.factors["lora_A.weight"].shape[0]


def encoded_modules(adapter: Adapter, title: str, *, whole: bool = False) -> dict[str, PeftModule]:
    """Each path of `adapter` in PEFT's words; `whole` says whether the format holds replaced weights.

    Raises AdapterFileError naming everything that a file in the format `title` cannot hold.
    """
    problems = [f"the word {word!r}: it holds no embeddings" for word in sorted(adapter.tokens)]
    modules: dict[str, PeftModule] = {}
    for path, kinds in sorted(adapter.modules.items()):
        try:
            modules[path] = _module(kinds, whole=whole)
        except AdapterError as error:
            problems.append(f"{path}: {error}")
    problems += _uneven(modules)
    if problems:
        raise refusal(adapter, title, problems, 'Write it as "kohya", which holds every kind.')
    return modules


def _module(kinds: Sequence[Kind], *, whole: bool) -> PeftModule:
    names = ", ".join(kind.name for kind in kinds) or "nothing"
    kinds = _with_bias_inside(kinds)
    if len(kinds) != 1:
        raise AdapterError(f"holds {names}, expected one lora or dora")
    (kind,) = kinds
    if isinstance(kind, Replace) and whole:
        if kind.weight is None:
            raise AdapterError("replaces the bias alone; PEFT replaces weights, with their biases")
        return PeftModule(0.0, {}, kind.tensors())
    inner = kind.inner if isinstance(kind, DoRA) else kind
    if not isinstance(inner, LoRA):
        raise AdapterError(
            f"is {names}{f' of {inner.name}' if inner is not kind else ''}, expected lora or dora"
        )
    if inner.mid is not None:
        raise AdapterError(f"is {names} in Tucker form, expected two factors")
    factors = {"lora_A.weight": inner.down, "lora_B.weight": inner.folded().up}
    if inner.bias is not None:
        factors["lora_B.bias"] = inner.bias
    if isinstance(kind, DoRA):
        if not kind.on_output:
            raise AdapterError("is dora with the norms of input columns; PEFT has those of output rows")
        shape = (1, -1, 1, 1) if inner.down.ndim == 4 else (-1,)
        factors["lora_magnitude_vector"] = kind.magnitude.reshape(shape)
    return PeftModule(bounded(ALPHA, inner.scale * inner.rank), factors, {})


def _with_bias_inside(kinds: Sequence[Kind]) -> Sequence[Kind]:
    """A LoRA or DoRA with the difference of the bias beside it as its own, in float32, as PEFT has it."""
    if len(kinds) != 2:
        return kinds
    kind, bias = kinds
    inner = kind.inner if isinstance(kind, DoRA) else kind
    if not isinstance(bias, Bias) or not isinstance(inner, LoRA) or inner.bias is not None or not inner.scale:
        return kinds
    whole = replace(inner, bias=bias.bias.float() / inner.scale)
    return (replace(kind, inner=whole) if isinstance(kind, DoRA) else whole,)


def _uneven(modules: Mapping[str, PeftModule]) -> list[str]:
    """What only some LoRA modules of a component have: PEFT gives a magnitude or a bias to all or none."""
    problems = []
    for component in sorted({path.split(".", 1)[0] for path in modules}):
        inside = {path: module for path, module in modules.items() if path.startswith(f"{component}.")}
        factored = {path: module for path, module in inside.items() if module.factors}
        for leaf, title in (("lora_magnitude_vector", "dora"), ("lora_B.bias", "a bias")):
            having = [path for path, module in factored.items() if leaf in module.factors]
            if 0 < len(having) < len(factored):
                without = next(path for path in factored if path not in having)
                problems.append(
                    f"{without}: has no {title}, as {len(having)} of {len(factored)} modules of the "
                    f"{component} do; expected all or none"
                )
    return problems
