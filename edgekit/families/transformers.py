"""transformers: a local folder, or a model's id on the Hugging Face hub.

A folder holds ``config.json``, weights (safetensors, sharded or not, or ``.bin`` read with
``weights_only``) and, for images, ``preprocessor_config.json``. Code that comes with a
checkpoint is never run: the class is transformers' own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import checkpoint
from edgekit.errors import EdgekitError
from edgekit.families import Options, probe, processor
from edgekit.model import Input, Model, Preprocess
from edgekit.progress import say

if TYPE_CHECKING:
    import torch

REQUIRES = {"transformers": "transformers"}
#: Tokens in a text model's input, unless the model takes fewer or ``--input`` says otherwise.
TOKENS = 128
#: Outputs of models without a head.
FEATURES = ("last_hidden_state", "pooler_output")


def load(name: str, options: Options) -> Model:
    """A transformers model in float32, whatever its checkpoint's dtype.

    Its input is ``pixel_values`` (1, channels, height, width) or ``input_ids`` (1, tokens), of any
    length where the model is recurrent or streamed (see ``families.causal.seam``);
    its outputs are ``logits`` (and ``pred_...``), else the ``last_hidden_state`` and, if there is
    one, the ``pooler_output``. ``--set`` changes the configuration, such as ``num_labels=10``;
    ``--set attn_implementation=eager`` the attention (sdpa wherever the model has it).

    Raises:
        EdgekitError: no such folder or id, a model that needs its own code, a checkpoint of
            another model (its keys are listed), inputs that must be given, a recurrence or
            attention that edgekit's operators do not have, or a stream of no causal decoder.
    """
    source = f"transformers/{name}"
    # That it runs its plain PyTorch forms, which is what the source is here, it says of each.
    logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    folder, local = _folder(name, options)
    arguments = dict(options.arguments)
    attention = arguments.pop("attn_implementation", None)
    with _quiet():
        config = _config(folder, arguments, source)
        if options.random_weights:
            model, weights = _random(config, attention, source), "random"
        else:
            path = options.checkpoint or folder
            state = checkpoint.load_state(path)
            model = _load(config, state, attention, source, str(path), options.allow_partial)
            weights = "checkpoint" if local or options.checkpoint else "pretrained"
    preprocess = processor.read(folder)
    inputs = options.inputs or (_input(model, preprocess, source, options.mode),)
    result = probe.run(model, inputs, source)
    outputs = _outputs(result)
    made = Model(
        _wrap(model, outputs), inputs, outputs, source, weights, _fitting(preprocess, inputs)
    )
    from edgekit.families.causal import seam

    return seam.attach(made, model, options.mode, attention, options.context)


def _folder(name: str, options: Options) -> tuple[Path, bool]:
    """The folder with the model's files, and whether it is the user's own."""
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path, True
    if path.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise EdgekitError(
            f"transformers/{name} is not a model's folder.",
            f"{path / 'config.json'} does not exist.",
            "Save the model with model.save_pretrained(FOLDER), or give its id on the hub.",
        )
    from huggingface_hub import snapshot_download

    weights = not (options.random_weights or options.checkpoint)
    wanted = ["config.json", processor.FILE] + ["model*.safetensors*"] * weights
    try:
        return Path(snapshot_download(name, allow_patterns=wanted)), False
    except Exception as error:
        raise probe.failed(
            f"{name} is not a local folder and cannot be had from the Hugging Face hub.",
            error,
            "Check the name and the network, or download it and give the folder.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bars and load reports: ours say what matters."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _config(folder: Path, arguments: Mapping[str, Any], source: str) -> Any:
    from transformers import AutoConfig

    try:
        config, unused = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, return_unused_kwargs=True, **arguments
        )
    except Exception as error:
        raise probe.failed(
            f"The configuration of {source} cannot be used.",
            error,
            "Check config.json and the --set arguments. edgekit runs transformers' own models "
            "only, never code from a checkpoint.",
        ) from error
    unused = {key: value for key, value in unused.items() if key in arguments}
    if unused:
        raise EdgekitError(
            f"{source} has no setting {', '.join(sorted(unused))}.",
            f"Its {type(config).__name__} knows: {', '.join(sorted(config.to_dict()))}.",
            "Correct --set.",
        )
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _class(config: Any, source: str) -> Any:
    """The class that made the checkpoint, else the bare model."""
    import transformers

    names = config.architectures or []
    if not names:
        return transformers.AutoModel._model_mapping[type(config)]
    found = getattr(transformers, names[0], None)
    if found is None:
        raise EdgekitError(
            f"transformers has no class {names[0]}, which {source} asks for.",
            "Code that comes with a checkpoint is never run.",
            "Give your own class as package.module:factory with --checkpoint.",
        )
    return found


def _random(config: Any, attention: str | None, source: str) -> torch.nn.Module:
    cls = _class(config, source)
    try:
        model: torch.nn.Module = cls._from_config(config, attn_implementation=attention)
    except Exception as error:
        raise probe.failed(
            f"{source} cannot be made.", error, "Check config.json and the --set arguments."
        ) from error
    return model.float()


def _load(
    config: Any,
    state: dict[str, torch.Tensor],
    attention: str | None,
    source: str,
    path: str,
    allow_partial: bool,
) -> torch.nn.Module:
    """Through transformers' own loader, which knows the keys' older names."""
    import torch

    from edgekit.families.causal import seam

    cls = _class(config, source)
    try:
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            attn_implementation=attention,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise probe.failed(
            f"{source} cannot be loaded from {path}.", error, "Check that they belong together."
        ) from error
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    misshaped = {key: (tuple(a), tuple(b)) for key, a, b in info["mismatched_keys"]}
    if missing or extra or misshaped:
        nothing_fits = len(extra) + len(misshaped) == len(state)
        if not allow_partial:
            seam.check_layers(model, missing, extra, path, source)
        if nothing_fits or not allow_partial:
            raise checkpoint.misfit(path, cls.__name__, missing, extra, misshaped)
        say(f"{path}: {len(missing) + len(misshaped)} tensors stay random (--allow-partial).")
    loaded: torch.nn.Module = model
    return loaded


def _input(model: Any, preprocess: Preprocess | None, source: str, mode: str) -> Input:
    """The model's main input, of the size that its configuration states."""
    from edgekit.families.causal import seam

    config, name = model.config, model.main_input_name
    if name == "input_ids":
        longest = getattr(config, "max_position_embeddings", TOKENS)
        return Input(name, (1, seam.length(model, mode) or min(TOKENS, longest)), "int64")
    size = _image_size(config, preprocess)
    if name == "pixel_values" and size:
        channels = getattr(config, "num_channels", 3)
        return Input(name, (1, channels, *size))
    raise EdgekitError(
        f"The size of {name} of {source} is not known.",
        f"Neither config.json nor {processor.FILE} states it.",
        f"Pass --input {name}:SIZES, batch first (as in pixel_values:1x3x224x224).",
    )


def _image_size(config: Any, preprocess: Preprocess | None) -> tuple[int, int] | None:
    """What its processor makes; else what its configuration says.

    The two differ in models of any size: DINOv2 has positions for 518 and is fed 224.
    """
    if preprocess:
        return preprocess.size
    size = getattr(config, "image_size", None)
    return (size, size) if isinstance(size, int) else tuple(size) if size else None


def _fitting(preprocess: Preprocess | None, inputs: tuple[Input, ...]) -> Preprocess | None:
    """The preprocessing, unless the user chose inputs that it does not make."""
    if preprocess is None or len(inputs) != 1:
        return None
    made = (preprocess.channels, *preprocess.size)
    if inputs[0].sample_shape == made:
        return preprocess
    say(f"{processor.FILE} makes images of {made}, not {inputs[0].sample_shape}: it is not used.")
    return None


def _outputs(result: Mapping[str, Any]) -> tuple[str, ...]:
    import torch

    names = [name for name, value in result.items() if isinstance(value, torch.Tensor)]
    head = [name for name in names if name == "logits" or name.startswith("pred_")]
    return tuple(head or [name for name in names if name in FEATURES] or names)


def _wrap(model: torch.nn.Module, outputs: tuple[str, ...]) -> torch.nn.Module:
    """The model, returning a plain tuple of the named outputs; it stays at ``.model``."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            pixel_values: torch.Tensor | None = None,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            input_values: torch.Tensor | None = None,
            input_features: torch.Tensor | None = None,
        ) -> tuple[torch.Tensor, ...]:
            given = {
                "pixel_values": pixel_values,
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "input_values": input_values,
                "input_features": input_features,
            }
            result = self.model(**{k: v for k, v in given.items() if v is not None})
            return tuple(result[name] for name in outputs)

    return Plain().eval()
