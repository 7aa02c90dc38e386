"""ecoformer: softmax attention replaced by linear attention on learned binary codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit import interrupt
from edgekit.compress import Context, attentions, layers, measure, structure
from edgekit.compress.batches import batches
from edgekit.errors import EdgekitError
from edgekit.progress import bar, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from edgekit.compress.attentions import SelfAttention
    from edgekit.compress.layers import Layers
    from edgekit.compress.modules.code_attention import CodeAttention
    from edgekit.compress.modules.codes import Codes
    from edgekit.data import Dataset
    from edgekit.model import Model

#: Samples, and queries of each, that a step of learning looks at.
_SAMPLES, _QUERIES = 8, 256
#: Vectors that a hash's first scales are taken from.
_FIRST = 1024


@dataclass(frozen=True)
class EcoFormer:
    """Replace softmax attention by linear attention on binary codes of queries and keys.

    J. Liu et al., EcoFormer (NeurIPS 2022): a hash gives each query and key a few bits, and a key
    counts for as many as it shares with the query. The cost then grows with the number of tokens,
    not with its square: of the operations of a ViT-Tiny it saves 11 % at 197 tokens and 45 % at
    1025, and of a model of few tokens next to nothing. The pass says how much. No runtime here
    multiplies by bits: they are floats of -1 and 1.

    The hashes are learned on calibration data, attention by attention, from each one's own
    softmax: gradient descent on the squared error of what its heads give, through the sign. (The
    paper fits codes to pairs of most and least attention.) Accuracy falls: let ``distill`` follow,
    which trains the hashes with the rest.

    Replaced are modules that compute plain attention of one linear's queries, keys and values,
    with no mask or positions in between, such as those of timm's ViT and DeiT.

    Attributes:
        bits: of a code.
        anchors: of a hash: vectors that what it takes is compared with.
        exclude: globs of paths of attentions, or of what holds them, that stay as they are.
        steps: of learning, an attention.
        rate: of learning, at the first step; it falls to 0.
        samples: of calibration data, at most.
        batch_size: samples of a call of the model.
    """

    bits: int = 16
    anchors: int = 20
    exclude: tuple[str, ...] = ()
    steps: int = 300
    rate: float = 0.03
    samples: int = 128
    batch_size: int = 16

    def __post_init__(self) -> None:
        least = {"bits": 1, "anchors": 2, "steps": 0, "samples": 1, "batch_size": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise EdgekitError(
                    f"ecoformer: {name}={getattr(self, name)} is too small.",
                    "",
                    f"Give {smallest} or more.",
                )
        if not self.rate > 0:
            raise EdgekitError(
                f"ecoformer: rate={self.rate} is not above zero.", "", "0.03 is usual."
            )

    def requires(self, model: Model, context: Context) -> None:
        """Raise without data."""
        context.samples("the codes of queries and keys")

    def call(self, model: Model, context: Context) -> Model:
        """The model with attention by codes.

        Raises:
            EdgekitError: no attention can be replaced.
        """
        import torch

        made = structure.copied(model)
        found = self._attentions(made)
        data = context.samples("codes").take(self.samples, context.seed)
        generator = torch.Generator().manual_seed(context.seed)
        steps = self.steps * len(found.chosen)
        with bar(f"Learning codes of {len(found.chosen)} attentions", steps) as advance:
            for parts in found.chosen.values():
                seen = _given(made, parts.module, data, self.batch_size)
                coded = self._learned(parts, seen, generator, advance)
                layers.replace(made, {parts.module: coded})
        before, after = (measure.operations(each) / 1e6 for each in (model, made))
        say(f"{len(found.chosen)} attentions go by codes of {self.bits} bits.")
        found.tell()
        say(f"Operations: {before:.2f} M before, {after:.2f} M now.")
        return made

    def _attentions(self, made: Model) -> Layers:
        found = attentions.find(made, self.exclude)
        if not found.chosen:
            raise EdgekitError(
                f"{made.source} has no attention that codes can replace.",
                "; ".join(f"{', '.join(paths[:5])}: {why}" for why, paths in found.left.items())
                or "None of its modules is attention of a known form.",
                "Exclude less, or leave this pass out.",
            )
        return found

    def _learned(
        self,
        parts: SelfAttention,
        seen: Tensor,
        generator: torch.Generator,
        advance: Callable[[str], None],
    ) -> CodeAttention:
        """What gives nearly what softmax attention gives of these tokens (n, L, width)."""
        import torch

        from edgekit.compress.modules.code_attention import attend, take_over

        made = take_over(parts, self.bits, self.anchors)
        with torch.no_grad():
            queries, keys, values = parts.split(seen)
            _begin(made.queries, queries, generator)
            _begin(made.keys, keys, generator)
        learning = [*made.queries.parameters(), *made.keys.parameters()]
        optimizer = torch.optim.Adam(learning, self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.steps, 1))
        for _ in range(self.steps):
            interrupt.check()
            chosen = torch.randperm(len(seen), generator=generator)[:_SAMPLES]
            places = torch.randperm(seen.shape[1], generator=generator)[:_QUERIES]
            q, k, v = queries[chosen][:, :, places], keys[chosen], values[chosen]
            loss = _error(attend(made.queries(q), made.keys(k), v), q, k, v)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            advance(f"error {loss.item():.3f}")
        return made


def _begin(codes: Codes, x: Tensor, generator: torch.Generator) -> None:
    """Random bits that split what they are of in halves; call it without gradients.

    Anchors are some of the vectors x (n, heads, L, head_dim), and s^2 the mean square of the
    distance to them, as in W. Liu et al., "Supervised Hashing with Kernels", CVPR 2012.
    """
    import torch

    rows = x.transpose(0, 1).flatten(1, 2)
    order = torch.randperm(rows.shape[1], generator=generator)
    some = rows[:, order[:_FIRST]]
    count = codes.anchors.shape[1]
    codes.anchors.copy_(rows[:, order[torch.arange(count) % len(order)]])
    spread = torch.cdist(some, codes.anchors).square().mean((1, 2)).clamp_min(1e-12)
    codes.nearness.copy_((2 * spread).rsqrt()[:, None, None])
    near = codes.kernel(some)
    codes.projection.copy_(torch.randn(codes.projection.shape, generator=generator))
    given = near @ codes.projection
    codes.projection.div_(given.std(1, keepdim=True).clamp_min(1e-6))
    codes.offset.copy_(-(near @ codes.projection).mean(1, keepdim=True))


def _error(given: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The squared error of what heads give, relative to softmax attention's, the heads' mean."""
    import torch.nn.functional as F

    wanted = F.scaled_dot_product_attention(q, k, v)
    wrong = (given - wanted).square().sum((0, 2, 3))
    return (wrong / wanted.square().sum((0, 2, 3)).clamp_min(1e-12)).mean()


def _given(made: Model, module: nn.Module, data: Dataset, size: int) -> Tensor:
    """The tokens (n, L, width) that a module of a model is given."""
    import torch

    given: list[Tensor] = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            for batch in batches(data, size):
                interrupt.check()
                made.module(**batch.inputs)
    finally:
        hook.remove()
    return torch.cat(given)


PASS = EcoFormer
