"""YOLOv8 and YOLO11 detectors, written from their published descriptions, with random weights.

Published latencies are of these networks, and what they compute must be counted; nothing here is
trained, and no code or weights of others are used. ``PUBLISHED`` holds the parameters (10**6) and
operations (10**9 at 640 x 640) that the tables of Ultralytics' documentation state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

CLASSES, BINS = 80, 16
PUBLISHED = {
    "YOLO11n": (2.6, 6.5),
    "YOLO11s": (9.4, 21.5),
    "YOLO11m": (20.1, 68.0),
    "YOLO11l": (25.3, 86.9),
    "YOLO11x": (56.9, 194.9),
    "YOLOv8n": (3.2, 8.7),
    "YOLOv8s": (11.2, 28.6),
    "YOLOv8m": (25.9, 78.9),
    "YOLOv8l": (43.7, 165.2),
    "YOLOv8x": (68.2, 257.8),
}


@dataclass(frozen=True)
class Scale:
    """Depth and width of a size, and its widest layer before widening."""

    depth: float
    width: float
    most: int

    def channels(self, wanted: int) -> int:
        """Widened, to a multiple of 8."""
        return int(-(-min(wanted, self.most) * self.width // 8) * 8)

    def repeats(self, wanted: int) -> int:
        """Deepened, at least one."""
        return max(round(wanted * self.depth), 1)


SCALES = {
    "YOLO11": {
        "n": Scale(0.5, 0.25, 1024),
        "s": Scale(0.5, 0.5, 1024),
        "m": Scale(0.5, 1.0, 512),
        "l": Scale(1.0, 1.0, 512),
        "x": Scale(1.0, 1.5, 512),
    },
    "YOLOv8": {
        "n": Scale(0.33, 0.25, 1024),
        "s": Scale(0.33, 0.5, 1024),
        "m": Scale(0.67, 0.75, 768),
        "l": Scale(1.0, 1.0, 512),
        "x": Scale(1.0, 1.25, 512),
    },
}


def unit(
    inward: int, outward: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and SiLU."""
    conv = nn.Conv2d(inward, outward, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outward), nn.SiLU() if act else nn.Identity())


class Bottleneck(nn.Module):
    """Two 3x3 units, and a shortcut around them."""

    def __init__(self, channels: int, inner: int, shortcut: bool) -> None:
        super().__init__()
        self.first, self.second = unit(channels, inner, 3), unit(inner, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.second(self.first(x))
        return x + found if self.shortcut else found


class Stage(nn.Module):
    """Half of the channels pass by, half go through blocks, and every block's result is kept."""

    def __init__(self, inward: int, outward: int, inner: int, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.enter = unit(inward, 2 * inner)
        self.leave = unit((2 + len(self.blocks)) * inner, outward)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            kept.append(block(kept[-1]))
        return self.leave(torch.cat(kept, 1))


class Split(nn.Module):
    """Bottlenecks on one half of the channels, and nothing on the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.through, self.beside = unit(channels, inner), unit(channels, inner)
        self.blocks = nn.Sequential(*(Bottleneck(inner, inner, True) for _ in range(2)))
        self.leave = unit(2 * inner, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(torch.cat((self.blocks(self.through(x)), self.beside(x)), 1))


class Pyramid(nn.Module):
    """Max pooling three times over, all results side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = unit(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = unit(2 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [self.enter(x)]
        for _ in range(3):
            kept.append(self.pool(kept[-1]))
        return self.leave(torch.cat(kept, 1))


class Attention(nn.Module):
    """Self-attention of an image's places, keys half as wide as values, and its feed-forward."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 64
        self.value = channels // self.heads
        self.key = self.value // 2
        self.qkv = unit(channels, channels + 2 * self.key * self.heads, act=False)
        self.place = unit(channels, channels, 3, groups=channels, act=False)
        self.leave = unit(channels, channels, act=False)
        self.widen = unit(channels, 2 * channels)
        self.narrow = unit(2 * channels, channels, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        sizes = (self.key, self.key, self.value)
        mixed = self.qkv(x).reshape(b, self.heads, sum(sizes), h * w)
        q, k, v = mixed.split(sizes, 2)
        weights = ((q.transpose(-2, -1) @ k) * self.key**-0.5).softmax(-1)
        seen = (v @ weights.transpose(-2, -1)).reshape(b, c, h, w)
        x = x + self.leave(seen + self.place(v.reshape(b, c, h, w)))
        return x + self.narrow(self.widen(x))


class AttentionStage(nn.Module):
    """Half of the channels pass by, half go through attention."""

    def __init__(self, channels: int, repeats: int) -> None:
        super().__init__()
        self.inner = channels // 2
        self.enter, self.leave = unit(channels, channels), unit(channels, channels)
        self.blocks = nn.Sequential(*(Attention(self.inner) for _ in range(repeats)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beside, through = self.enter(x).split((self.inner, self.inner), 1)
        return self.leave(torch.cat((beside, self.blocks(through)), 1))


class Head(nn.Module):
    """Boxes and classes of every place of three maps, decoded."""

    def __init__(self, channels: list[int], depthwise: bool) -> None:
        super().__init__()
        box = max(16, channels[0] // 4, 4 * BINS)
        score = max(channels[0], min(CLASSES, 100))
        self.boxes = nn.ModuleList(
            nn.Sequential(unit(c, box, 3), unit(box, box, 3), nn.Conv2d(box, 4 * BINS, 1))
            for c in channels
        )
        self.scores = nn.ModuleList(self._scores(c, score, depthwise) for c in channels)
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).reshape(1, BINS, 1, 1))
        places = sum((640 // stride) ** 2 for stride in (8, 16, 32))
        self.register_buffer("anchors", torch.zeros(1, 2, places))
        self.register_buffer("strides", torch.ones(1, 1, places))

    @staticmethod
    def _scores(inward: int, inner: int, depthwise: bool) -> nn.Sequential:
        if not depthwise:
            units = [unit(inward, inner, 3), unit(inner, inner, 3)]
        else:
            first, second = unit(inward, inward, 3, groups=inward), unit(inward, inner)
            third, fourth = unit(inner, inner, 3, groups=inner), unit(inner, inner)
            units = [first, second, third, fourth]
        return nn.Sequential(*units, nn.Conv2d(inner, CLASSES, 1))

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        pairs = zip(maps, self.boxes, self.scores, strict=True)
        found = [torch.cat((box(x), score(x)), 1).flatten(2) for x, box, score in pairs]
        boxes, scores = torch.cat(found, 2).split((4 * BINS, CLASSES), 1)
        shares = boxes.reshape(len(boxes), 4, BINS, -1).transpose(1, 2).softmax(1)
        before, after = (shares * self.bins).sum(1).chunk(2, 1)
        corner, other = self.anchors - before, self.anchors + after
        decoded = torch.cat(((corner + other) / 2, other - corner), 1) * self.strides
        return torch.cat((decoded, scores.sigmoid()), 1)


class Detector(nn.Module):
    """The whole network: five halvings of the image, up twice again, down twice, and the head."""

    def __init__(self, family: str, size: str) -> None:
        super().__init__()
        self.scale, self.family = SCALES[family][size], family
        self.deep = size in "mlx"
        new = family == "YOLO11"
        c = self.scale.channels
        wide = (c(256), c(512), c(512), c(1024)) if new else (c(128), c(256), c(512), c(1024))
        counts = (2, 2, 2, 2) if new else (3, 6, 6, 3)
        downs = (c(128), c(256), c(512), c(1024))
        self.stem = unit(3, c(64), 3, 2)
        self.downs, self.stages = nn.ModuleList(), nn.ModuleList()
        last = c(64)
        for place, (down, width, count) in enumerate(zip(downs, wide, counts, strict=True)):
            self.downs.append(unit(last, down, 3, 2))
            share = 0.25 if new and place < 2 else 0.5
            self.stages.append(self._stage(down, width, count, share, place > 1, True))
            last = width
        self.pyramid = Pyramid(last)
        count = self.scale.repeats(2)
        self.attention = AttentionStage(last, count) if new else nn.Identity()
        n = 2 if new else 3
        out = (c(256), c(512), c(1024))
        self.up = nn.Upsample(scale_factor=2)
        self.middle = self._stage(wide[3] + wide[2], out[1], n, 0.5, False, new)
        self.large = self._stage(out[1] + wide[1], out[0], n, 0.5, False, new)
        self.to_middle, self.to_small = unit(out[0], out[0], 3, 2), unit(out[1], out[1], 3, 2)
        self.middle_again = self._stage(out[0] + out[1], out[1], n, 0.5, False, new)
        self.small = self._stage(out[1] + wide[3], out[2], n, 0.5, True, new)
        self.head = Head(list(out), new)

    def _stage(
        self, inward: int, outward: int, count: int, share: float, split: bool, shortcut: bool
    ) -> Stage:
        repeats, inner = self.scale.repeats(count), int(outward * share)
        if self.family == "YOLOv8":
            blocks: list[nn.Module] = [Bottleneck(inner, inner, shortcut) for _ in range(repeats)]
        elif split or self.deep:
            blocks = [Split(inner) for _ in range(repeats)]
        else:
            blocks = [Bottleneck(inner, inner // 2, shortcut) for _ in range(repeats)]
        return Stage(inward, outward, inner, blocks)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, maps = self.stem(images), []
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
            maps.append(x)
        low = self.attention(self.pyramid(x))
        middle = self.middle(torch.cat((self.up(low), maps[2]), 1))
        large = self.large(torch.cat((self.up(middle), maps[1]), 1))
        middle = self.middle_again(torch.cat((self.to_middle(large), middle), 1))
        small = self.small(torch.cat((self.to_small(middle), low), 1))
        return self.head(large, middle, small)


def make(name: str) -> Detector:
    """``YOLO11n`` to ``YOLO11x``, ``YOLOv8n`` to ``YOLOv8x``, for images (b, 3, 640, 640)."""
    return Detector(name[:-1], name[-1]).eval()
