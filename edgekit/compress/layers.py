"""Layers: which linears and convolutions a pass may change one by one, and what enters them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from edgekit import interrupt
from edgekit.compress.batches import batches
from edgekit.errors import EdgekitError
from edgekit.progress import say, track

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.data import Dataset
    from edgekit.model import Model


#: Embeddings wherever they stand in a path, and heads above the first numbered block.
EMBEDDINGS = ("*embed*",)
HEADS = ("head", "heads", "head_*", "*classifier*", "*lm_head", "score", "fc", "proj_out")


@dataclass
class Layers:
    """The layers that a pass looks at.

    Attributes:
        chosen: those that it may change, by path, in the module's order.
        left: the paths of the others, by why they are left as they are.
    """

    chosen: dict[str, Any] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, path: str, why: str) -> None:
        """Leave a layer as it is."""
        self.chosen.pop(path, None)
        self.left.setdefault(why, []).append(path)

    def tell(self) -> None:
        """Say what is left as it is, and why."""
        for why, paths in self.left.items():
            more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
            say(f"Left as they are, {why}: {', '.join(paths[:5])}{more}.")


def find(model: Model, kinds: tuple[type[nn.Module], ...], exclude: Sequence[str]) -> Layers:
    """All layers of these kinds, but those that cannot be changed on their own.

    Left are layers whose weights another module holds too, that a call of the model does not go
    through (a parent reads their weights itself), and those that ``exclude`` names.

    Args:
        exclude: globs over paths of layers, or of modules that hold them.

    Raises:
        EdgekitError: a glob matches nothing.
    """
    from torch import nn

    found = Layers()
    module = model.module
    holders = Counter(id(p) for each in module.modules() for p in each._parameters.values())
    paths = {path: each for path, each in module.named_modules() if isinstance(each, kinds)}
    asked = excluded(exclude, paths)
    called = _called(model, paths.values())
    for path, layer in paths.items():
        found.chosen[path] = layer
        if path in asked:
            found.leave(path, "as asked")
        elif any(holders[id(p)] > 1 for p in layer._parameters.values() if p is not None):
            found.leave(path, "their weights are another module's too")
        elif layer not in called:
            found.leave(path, "their parents read their weights themselves")
    for path, other in module.named_modules():
        if type(other).__name__ == "Conv1D" and not isinstance(other, nn.Conv1d):
            found.leave(path, "transformers' Conv1D is no linear of torch")
    return found


def matches(path: str, glob: str) -> bool:
    """Whether a glob names a layer or what holds it."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1))


def excluded(exclude: Sequence[str], paths: Iterable[str]) -> set[str]:
    """The paths that globs name, by themselves or by what holds them.

    Raises:
        EdgekitError: a glob matches nothing.
    """
    paths = list(paths)
    for glob in exclude:
        if not any(matches(path, glob) for path in paths):
            raise EdgekitError(
                f"exclude={glob!r} matches no layer.",
                f"The model has, for example, {', '.join(paths[:8]) or 'none'}.",
                "Write a path, or a glob over paths, such as head or blocks.0.*.",
            )
    return {path for path in paths if any(matches(path, glob) for glob in exclude)}


def delicate(path: str) -> str:
    """Why a layer had better stay exact, by the names in its path; or nothing."""
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    if any(fnmatchcase(part, glob) for part in parts for glob in EMBEDDINGS):
        return "embeddings are small and lose most"
    if any(fnmatchcase(part, glob) for part in parts[:first] for glob in HEADS):
        return "heads are small and lose most"
    return ""


def replace(made: Model, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put others in the places of modules, in what is exported too.

    Places are found first: one of the others may hold the module whose place it takes.
    """
    roots = [root for root in (made.module, made.traced) if root is not None]
    places = [
        (parent, name, others[child])
        for parent in dict.fromkeys(each for root in roots for each in root.modules())
        for name, child in parent._modules.items()
        if child is not None and child in others
    ]
    for parent, name, other in places:
        parent._modules[name] = other.train(parent.training)


def _called(model: Model, layers: Iterable[nn.Module]) -> set[nn.Module]:
    """The layers that one call of the model goes through."""
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda m, *_: called.add(m)) for layer in layers]
    try:
        run_once(model)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def run_once(model: Model) -> None:
    """Call the model on zeros, to see that it runs and through what."""
    import torch

    tensor = next(model.module.parameters(), torch.empty(0))
    inputs = {
        spec.name: torch.zeros(
            spec.concrete(), dtype=getattr(torch, spec.dtype), device=tensor.device
        )
        for spec in model.inputs
    }
    with torch.no_grad():
        model.module.eval()(**inputs)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    return sum(each.nbytes for each in (*module.parameters(), *module.buffers()))


def grams(
    model: Model, layers: Mapping[str, nn.Module], data: Dataset, batch_size: int
) -> dict[str, Tensor]:
    """What enters each layer: the mean of x x^T over all rows x, (groups, K, K) by path.

    Of a convolution a row holds, for each place of the kernel, all input channels of a group.
    """
    import torch

    sums: dict[str, Tensor] = {}
    rows: Counter[str] = Counter()

    def watch(path: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = rows_of(layer, args[0] if args else kwargs["input"])
            product = x.transpose(1, 2) @ x
            sums[path] = sums[path] + product if path in sums else product
            rows[path] += x.shape[1]

        return hook

    hooks = [
        layer.register_forward_pre_hook(watch(path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            total = -(-len(data) // batch_size)
            what = f"Measuring the inputs of {len(layers)} layers"
            for batch in track(batches(data, batch_size), what, total):
                interrupt.check()
                model.module(**batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: total / rows[path] for path, total in sums.items()}


def rows_of(layer: Any, x: Tensor) -> Tensor:
    """The rows (groups, n, K) that a layer's weight, as ``matrix_of`` has it, multiplies."""
    import torch.nn.functional as F
    from torch import nn

    if isinstance(layer, nn.Linear):
        width: int = layer.in_features
        return x.detach().reshape(1, -1, width)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x.detach(), layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if x.dim() == 3:
        x = x[:, :, None]
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    patches = F.unfold(x, kernel, dilation=dilation, stride=stride)
    samples, _, places = patches.shape
    cut = patches.reshape(samples, layer.groups, layer.in_channels // layer.groups, -1, places)
    by_place: Tensor = cut.permute(1, 0, 4, 3, 2)
    return by_place.flatten(3).flatten(1, 2)


def matrix_of(layer: Any) -> Tensor:
    """A layer's weight as (groups, outputs of a group, K), K as in ``rows_of``."""
    from torch import nn

    weight: Tensor = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight[None]
    by_place = weight.flatten(2).transpose(1, 2).flatten(1)
    return by_place.reshape(layer.groups, -1, by_place.shape[1])


def assign(layer: Any, matrix: Tensor) -> None:
    """Write a weight, as ``matrix_of`` gives it, into its layer."""
    import torch

    weight: Tensor = layer.weight
    rows = matrix.flatten(0, 1)
    if weight.dim() > 2:
        rows = rows.reshape(len(rows), -1, weight.shape[1]).transpose(1, 2)
    with torch.no_grad():
        weight.copy_(rows.reshape(weight.shape))
