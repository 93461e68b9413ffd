"""Official checkpoints and their base models into one bundle (docs/architecture.md sections 15 and 16)."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..build import build_empty
from ..bundle.folder import CARD, CONFIG, WEIGHTS, new_folder
from ..bundle.official_names import shapes
from ..bundle.tensors import audit, write_safetensors
from ..config import NanoEmoXConfig
from ..devices import resolve
from ..errors import CheckpointError, UsageError
from ..generation.tokenizer import Tokenizer, check_vocabulary
from .adapters import beside_adapters, merge_adapters
from .checkpoints import read_checkpoint, read_components
from .component_sizes import component_sizes
from .components import find_components
from .files import Stored, Tensors
from .sizes import infer_config
from .tokenizer_files import write_tokenizer

# Tensors of the fusions "attention" and "qformer"; the others do not use them.
_VARIANTS_ONLY = re.compile(r"multi_(?:audio|video)_embs\..*")


def convert(
    *,
    checkpoint: str | os.PathLike | Sequence[str | os.PathLike],
    components: Mapping[str, str | os.PathLike] | str | os.PathLike,
    out: str | os.PathLike,
    dtype: str | torch.dtype = "bfloat16",
    lora: str = "keep",
    config: NanoEmoXConfig | None = None,
) -> Path:
    """Write a bundle from official phase checkpoints and the base models that they were trained on.

    Args:
        checkpoint: one `.pth` file, or several, of which later ones win (phase 1-1, then 1-2).
        components: {"clip": folder, "hubert": folder, "facexformer": file, "qwen": folder}, or a folder that
            holds the four. The folders are Hugging Face's, with safetensors or `.bin` files.
        out: the bundle: absent, empty, or a bundle, which is replaced.
        dtype: of the stored weights, bfloat16 or float32.
        lora: "keep" the adapters beside the language model, or "merge" them into it, in fp32.
        config: has the sizes that neither the shapes nor the config.json of the files tell (heads, taps); by
            default those of the published model.

    Returns:
        The path of the bundle.

    Raises:
        CheckpointError: a file that cannot be read safely; a name that is unknown, missing or misshapen.
        UsageError: an option that does not exist.

    Source: docs/architecture.md sections 15 and 16.
    """
    stored_dtype = resolve("cpu", dtype)[1]
    if lora not in ("keep", "merge"):
        raise UsageError(f"lora {lora!r} does not exist: use keep or merge")
    checkpoints = [checkpoint] if isinstance(checkpoint, str | os.PathLike) else checkpoint
    files = [Path(file) for file in checkpoints]
    paths = find_components(components, files)
    _refuse_sources(Path(out), [*files, *paths.values()])

    tensors, config = _read(files, paths, config or NanoEmoXConfig())
    expected = shapes(build_empty(config, "the files' sizes"), config)
    complete(tensors, expected)
    present = {name: tensor.shape for name, tensor in tensors.items()}
    sources = " + ".join([*map(str, files), "base models"])
    audit(present, expected, sources, "named as in the official model")
    if lora == "merge":
        tensors = merge_adapters(tensors, config)
        config = replace(config, lora=None)
        expected = shapes(build_empty(config, "the files' sizes"), config)
    with new_folder(out) as folder:
        write_tokenizer(paths["qwen"], folder)
        check_vocabulary(Tokenizer(folder), config, paths["qwen"])
        write_safetensors(folder / WEIGHTS, expected, stored_dtype, lambda name: tensors[name].read())
        config.to_json(folder / CONFIG)
        names = ", ".join(file.name for file in files)
        card = f"# {config.name}\n\nConverted by nanoemox from {names}; adapters: {lora}.\n"
        (folder / CARD).write_text(card)
    return Path(out)


def _read(
    files: list[Path], paths: dict[str, Path], config: NanoEmoXConfig
) -> tuple[Tensors, NanoEmoXConfig]:
    """Every tensor of the files, named as beside adapters, and the configuration that they describe."""
    base = read_components(paths)
    trained: Tensors = {}
    for file in files:
        trained |= read_checkpoint(file)
    config = component_sizes(config, paths)
    config = infer_config(config, {name: tensor.shape for name, tensor in (base | trained).items()})
    if config.fusion.type not in ("attention", "qformer"):
        trained = {name: tensor for name, tensor in trained.items() if not _VARIANTS_ONLY.fullmatch(name)}
    return beside_adapters(base | trained, config), config


def _refuse_sources(out: Path, sources: list[Path]) -> None:
    final = out.resolve()
    for source in sources:
        path = source.resolve()
        if final == path or final in path.parents:
            raise CheckpointError(
                f"{out}: is or holds {path.name}, which is read from; choose another name for the bundle"
            )


def complete(tensors: Tensors, expected: dict[str, tuple[int, ...]]) -> None:
    """Adds HuBERT's mask embedding if a file leaves it out: only its pre-training uses it."""
    name = "acoustic_encoder.model.masked_spec_embed"
    if name not in tensors and name in expected:
        shape = expected[name]
        tensors[name] = Stored(shape, lambda: torch.zeros(shape))
