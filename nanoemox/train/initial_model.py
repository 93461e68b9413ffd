"""The model that training starts from: frozen weights from files, trainable groups new or as the bundle has them."""

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..build import build_empty
from ..bundle.find import find
from ..bundle.folder import CARD, CONFIG, WEIGHTS, new_folder
from ..bundle.official_names import shapes, targets
from ..bundle.tensors import audit, index, write_safetensors
from ..config import NanoEmoXConfig
from ..errors import UsageError
from ..generation.tokenizer import Tokenizer, check_vocabulary
from ..loading import load
from ..model import NanoEmoX
from ..modules.face import FaceHead
from ..modules.fusion import build_fusion
from ..modules.language import with_lora
from ..modules.qformer import build_branch
from ..weights.checkpoints import Tensors, find_components, read_components
from ..weights.conversion import beside_adapters, complete, write_tokenizer
from ..weights.sizes import component_sizes, infer_config
from .config import ModelOptions
from .stages import ALL, group_of


def sizes(options: ModelOptions) -> NanoEmoXConfig:
    """The model's configuration for a dry run: the bundle's if it is there, else the preset's."""
    if options.bundle is not None and (options.bundle == "demo" or Path(options.bundle).is_dir()):
        config = NanoEmoXConfig.from_json(find(options.bundle) / CONFIG)
    else:
        config = NanoEmoXConfig.preset(options.preset)
    return config if config.lora is not None else replace(config, lora=options.lora)


def build_model(options: ModelOptions, made: Path, *, dtype: torch.dtype, seed: int) -> NanoEmoX:
    """On the CPU, nothing requires a gradient; what is in no trainable group is in `dtype`, the groups in fp32.

    Args:
        made: where a bundle of the base models is written, or found from an earlier start.

    Raises:
        CheckpointError, UsageError: no weights to start from, or not in a form that is accepted.
    """
    if options.bundle is not None:
        folder = find(options.bundle)
    elif options.components is not None:
        if options.adapters == "keep":
            raise UsageError("model.adapters: keep needs a bundle; base models hold none")
        folder = made if (made / CONFIG).is_file() else base_bundle(options, made)
    else:
        raise UsageError("model: give bundle or components; a preset alone is for --dry-run")
    model = load(folder, fast=False, device="cpu", dtype=dtype)
    if model.config.lora is None:
        model.language.model = with_lora(model.language.model, options.lora)
        model.config = replace(model.config, lora=options.lora)
        if options.adapters == "keep":
            _new_lora(model, seed)
    if options.adapters == "new":
        renew(model, seed)
    else:
        _widen(model, folder)
    return model.requires_grad_(False).eval()


def base_bundle(options: ModelOptions, out: Path) -> Path:
    """The four base models as a bundle in bfloat16; its adapters are zeros until `renew` gives them values."""
    paths = find_components(options.components or "", [])
    found = read_components(paths)
    config = component_sizes(replace(NanoEmoXConfig.preset(options.preset), lora=options.lora), paths)
    inferred = infer_config(config, {name: shape for name, (shape, _) in found.items()})
    config = replace(inferred, lora=options.lora, fusion=config.fusion, qformer=config.qformer)
    empty = build_empty(config, "the base models' sizes")
    wanted = shapes(empty, config)
    tensors: Tensors = beside_adapters(found, config)
    complete(tensors, wanted)
    adapters = {target.name for target in targets(empty, config) if group_of(target.parts[0])}
    have = {name: shape for name, (shape, _) in tensors.items()}
    audit(have, {name: shape for name, shape in wanted.items() if name not in adapters}, "base models")
    with new_folder(out) as folder:
        write_tokenizer(paths["qwen"], folder)
        check_vocabulary(Tokenizer(folder), config, paths["qwen"])

        def produce(name: str) -> Tensor:
            return torch.zeros(wanted[name]) if name in adapters else tensors[name][1]()

        write_safetensors(folder / WEIGHTS, wanted, torch.bfloat16, produce)
        config.to_json(folder / CONFIG)
        (folder / CARD).write_text(
            f"# {config.name}\n\nBase models under one roof; the adapters are untrained.\n"
        )
    return out


def renew(model: NanoEmoX, seed: int) -> None:
    """Official initialisation of every trainable group, in fp32, by the seed (architecture section 9)."""
    c, width = model.config, model.config.language.hidden_size
    visual, audio = c.vision.hidden_size, c.audio.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.video_branch = build_branch(c.video_branch, c.qformer, visual, width)
        model.audio_branch = build_branch(c.audio_branch, c.qformer, audio, width)
        model.fusion = build_fusion(c.fusion, c.qformer, len(c.vision.taps), audio, visual, width)
        model.face_head = FaceHead(c.face, width)
    _new_lora(model, seed)


def _new_lora(model: NanoEmoX, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for name, parameter in model.named_parameters():
            if group_of(name) == "lora":
                parameter.data = torch.zeros(parameter.shape)
                if ".lora_A." in name:
                    nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def _widen(model: NanoEmoX, folder: Path) -> None:
    """The trainable groups in fp32, as the folder holds them: unrounded, and in memory of their own."""
    files = {name: entry.file for name, entry in index(sorted(folder.glob("*.safetensors"))).items()}
    parameters = dict(model.named_parameters())
    for name, key in trainable_names(model).items():
        parameter = parameters[key]
        if name in files:
            with safe_open(files[name], "pt") as file:
                parameter.data = file.get_tensor(name).float().clone()
        else:
            parameter.data = parameter.data.float().clone()


def trainable_names(model: NanoEmoX, groups: Collection[str] = ALL) -> dict[str, str]:
    """Official name -> parameter of the model, of every tensor in the groups."""
    out = {}
    for target in targets(model, model.config):
        if group_of(target.parts[0]) in groups:
            (out[target.name],) = (
                target.parts
            )  # only Swin's tensors have several parts, and they are in no group
    return out
