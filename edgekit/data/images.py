"""Images in a folder, made into a model's input as the model's configuration says.

In this order, as timm and transformers do it with PIL:

1. open, and turn as EXIF says (cameras store photos sideways);
2. convert to RGB, or to grey for models with one channel;
3. resize: the shorter edge to a length (the other one in proportion, rounded down), or both;
4. cut the centre out, padding with black where the image is smaller;
5. divide by 255, subtract the mean and divide by the deviation of each channel, in float32;
6. channels first.

Equal to timm's evaluation transform within 1e-6, but for step 1, which timm leaves out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.data import FORMS, Dataset, check, digest
from edgekit.errors import EdgekitError
from edgekit.model import Input, Preprocess
from edgekit.progress import say

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from edgekit.data import Sample

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def open_folder(folder: Path, inputs: tuple[Input, ...], preprocess: Preprocess | None) -> Dataset:
    """The images of a folder, flat or one folder a class; each is read when asked for.

    Raises:
        EdgekitError: no images, an empty class, a mix of both layouts, a model that takes no
            image, or one that does not say how images are prepared.
    """
    files, labels = _list(folder)
    if preprocess is None:
        raise EdgekitError(
            f"The images in {folder} cannot be used.",
            "The model does not say how images are prepared (a transformers folder says it in "
            "preprocessor_config.json, a timm folder in config.json).",
            "Add that file, or give prepared arrays as .npz.",
        )
    made = (preprocess.channels, *preprocess.size)
    if len(inputs) != 1 or inputs[0].sample_shape != made or inputs[0].dtype != "float32":
        wanted = ", ".join(f"{i.name} {i.sample_shape} {i.dtype}" for i in inputs)
        raise EdgekitError(
            f"The images in {folder} cannot be fed to this model.",
            f"Images become one array {made} float32; the model takes {wanted}.",
            "Give arrays by input name as .npz.",
        )
    name = inputs[0].name

    def read(index: int) -> Sample:
        where = f"{files[index]} (index {index})"
        return check({name: load_image(files[index], preprocess, where)}, inputs, where)

    return Dataset(str(folder), _fingerprint(folder, files), labels, len(files), read)


def load_image(
    path: Path, preprocess: Preprocess, where: str | None = None
) -> np.ndarray[Any, Any]:
    """One image file as float32 (channels, height, width); this file's top says how.

    Args:
        where: what errors call the image, instead of its path.

    Raises:
        EdgekitError: the file is empty or cannot be read, or has more than 8 bits a channel.
    """
    import numpy as np

    size, resize = preprocess.size, preprocess.resize
    image = _open(path, "L" if preprocess.channels == 1 else "RGB", where or str(path))
    image = _crop(_resize(image, resize, preprocess.interpolation), size)
    pixels = np.asarray(image, dtype=np.float32).reshape(*size, preprocess.channels) / 255
    mean, std = (np.array(v, dtype=np.float32) for v in (preprocess.mean, preprocess.std))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def _list(folder: Path) -> tuple[list[Path], tuple[int, ...] | None]:
    """The image files in order, and their labels if they lie in class folders."""
    flat = _images(folder)
    children = [c for c in folder.iterdir() if c.is_dir() and not c.name.startswith(".")]
    classes = {child.name: _images(child) for child in sorted(children)}
    filled = [name for name, files in classes.items() if files]
    if not flat and not filled:
        raise EdgekitError(
            f"Folder {folder} holds no images.",
            f"It has {sum(1 for _ in folder.iterdir())} entries; images end in "
            f"{', '.join(sorted(SUFFIXES))}.",
            FORMS,
        )
    if flat and filled:
        raise EdgekitError(
            f"Folder {folder} mixes two layouts.",
            f"{len(flat)} images lie in it and others in {filled[0]}/.",
            "Put all images in it, or each in the folder of its class.",
        )
    if flat:
        return flat, None
    if len(filled) < len(classes):
        empty = next(name for name in classes if name not in filled)
        raise EdgekitError(
            f"Class folder {folder / empty} holds no images.",
            "Labels are the places of the sorted class folders, so an empty one counts.",
            "Fill it or remove it.",
        )
    labels = _labels(list(classes))
    pairs = [(file, labels[name]) for name, files in classes.items() for file in files]
    return [file for file, _ in pairs], tuple(label for _, label in pairs)


def _images(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if images and len(images) < len(files):
        say(f"{folder}: {len(files) - len(images)} files are not images and are left out.")
    return images


def _labels(classes: list[str]) -> dict[str, int]:
    if all(name.isascii() and name.isdigit() for name in classes):
        return {name: int(name) for name in classes}
    return {name: place for place, name in enumerate(classes)}


def _fingerprint(folder: Path, files: list[Path]) -> str:
    """Of names, sizes and dates: reading every photo would take as long as using it."""
    facts = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    return digest(*(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts))


def _open(path: Path, mode: str, where: str) -> Image.Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            deep = file.mode in ("I", "F") or file.mode.startswith("I;")
            if not deep:
                return ImageOps.exif_transpose(file).convert(mode)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        empty = path.is_file() and path.stat().st_size == 0
        raise EdgekitError(
            f"Image {where} {'is empty' if empty else 'cannot be read'}.",
            f"PIL says: {error}.",
            "Repair or remove it.",
        ) from error
    raise EdgekitError(
        f"Image {where} has more than 8 bits a channel.",
        "Its range is not stated, so it cannot be scaled to [0, 1].",
        "Convert it to 8 bits, or give arrays as .npz.",
    )


def _resize(image: Image.Image, to: int | tuple[int, int], interpolation: str) -> Image.Image:
    from PIL import Image

    methods = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    if interpolation not in methods:
        raise EdgekitError(
            f"Unknown interpolation {interpolation!r}.", f"edgekit has {', '.join(methods)}.", ""
        )
    if isinstance(to, tuple):
        width, height = to[1], to[0]
    else:
        short = min(image.size)
        width, height = (to * edge // short for edge in image.size)
    return image.resize((width, height), methods[interpolation])


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
