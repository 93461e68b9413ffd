"""The model that training starts from: frozen weights from files, trainable groups new or from the bundle."""

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
from ..model import NanoEmoX, reference_language
from ..modules.face import FaceHead
from ..modules.fusion import build_fusion
from ..modules.language import with_lora
from ..modules.qformer import build_branch
from ..weights.adapters import beside_adapters
from ..weights.checkpoints import read_components
from ..weights.component_sizes import component_sizes
from ..weights.components import find_components
from ..weights.conversion import complete
from ..weights.files import Tensors
from ..weights.sizes import infer_config
from ..weights.tokenizer_files import write_tokenizer
from .config import ModelOptions
from .stages import ALL, group_of


def sizes(options: ModelOptions) -> NanoEmoXConfig:
    """The configuration of the model for a dry run: that of the bundle if it exists, else of the preset."""
    if options.bundle is not None and (options.bundle == "demo" or Path(options.bundle).is_dir()):
        config = NanoEmoXConfig.from_json(find(options.bundle) / CONFIG)
    else:
        config = NanoEmoXConfig.preset(options.preset)
    return config if config.lora is not None else replace(config, lora=options.lora)


def build_model(options: ModelOptions, made: Path, *, dtype: torch.dtype, seed: int) -> NanoEmoX:
    """Build the model on the CPU, in eval mode; no parameter requires a gradient.

    Args:
        options: where the weights come from.
        made: folder of a bundle made of the base models; it is made if it does not exist.
        dtype: of the frozen weights. Trainable groups are in fp32.
        seed: of new adapters.

    Raises:
        UsageError: neither a bundle nor base models are given.
        CheckpointError: weights are missing or malformed.
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
        language = reference_language(model)
        language.model = with_lora(language.model, options.lora)
        model.config = replace(model.config, lora=options.lora)
        if options.adapters == "keep":
            _new_lora(model, seed)
    if options.adapters == "new":
        renew(model, seed)
    else:
        _to_fp32(model, folder)
    return model.requires_grad_(False).eval()


def base_bundle(options: ModelOptions, out: Path) -> Path:
    """Write the four base models as a bundle in bfloat16; its adapters are zeros until `renew`."""
    paths = find_components(options.components or "", [])
    base_tensors = read_components(paths)
    config = component_sizes(replace(NanoEmoXConfig.preset(options.preset), lora=options.lora), paths)
    inferred = infer_config(config, {name: shape for name, (shape, _) in base_tensors.items()})
    config = replace(inferred, lora=options.lora, fusion=config.fusion, qformer=config.qformer)
    empty = build_empty(config, "the base models' sizes")
    expected = shapes(empty, config)
    tensors: Tensors = beside_adapters(base_tensors, config)
    complete(tensors, expected)
    adapters = {target.name for target in targets(empty, config) if group_of(target.parts[0])}
    actual = {name: shape for name, (shape, _) in tensors.items()}
    audit(actual, {name: shape for name, shape in expected.items() if name not in adapters}, "base models")
    with new_folder(out) as folder:
        write_tokenizer(paths["qwen"], folder)
        check_vocabulary(Tokenizer(folder), config, paths["qwen"])

        def produce(name: str) -> Tensor:
            return torch.zeros(expected[name]) if name in adapters else tensors[name][1]()

        write_safetensors(folder / WEIGHTS, expected, torch.bfloat16, produce)
        config.to_json(folder / CONFIG)
        card = f"# {config.name}\n\nThe base models in one bundle; the adapters are untrained.\n"
        (folder / CARD).write_text(card)
    return out


def renew(model: NanoEmoX, seed: int) -> None:
    """Give every trainable group its official initialisation, in fp32 (docs/architecture.md section 9)."""
    config, width = model.config, model.config.language.hidden_size
    visual, audio = config.vision.hidden_size, config.audio.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.video_branch = build_branch(config.video_branch, config.qformer, visual, width)
        model.audio_branch = build_branch(config.audio_branch, config.qformer, audio, width)
        taps = len(config.vision.taps)
        model.fusion = build_fusion(config.fusion, config.qformer, taps, audio, visual, width)
        model.face_head = FaceHead(config.face, width)
    _new_lora(model, seed)


def _new_lora(model: NanoEmoX, seed: int) -> None:
    """Initialise LoRA as peft does: A by Kaiming, B with zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for name, parameter in model.named_parameters():
            if group_of(name) == "lora":
                parameter.data = torch.zeros(parameter.shape)
                if ".lora_A." in name:
                    nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def _to_fp32(model: NanoEmoX, folder: Path) -> None:
    """Make the trainable groups fp32, with the values of the folder, not rounded to the frozen dtype."""
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
    """Official name -> parameter name in the model, of every tensor in the groups."""
    names = {}
    for target in targets(model, model.config):
        if group_of(target.parts[0]) in groups:
            (parameter,) = target.parts  # only tensors of Swin have several parts, and they are in no group
            names[target.name] = parameter
    return names
