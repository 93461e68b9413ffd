"""Stand-in pretraining of the three small encoders, each with heads that are discarded afterwards.

The vision and the face encoder learn the action units of every frame, the audio encoder the emotion of the
voice; they take the place of CLIP, FaceXFormer and HuBERT. The seed decides every number.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...config import NanoEmoXConfig
from ...data.synthetic import faces
from ...modules.audio import AudioEncoder
from ...modules.face import FaceEncoder
from ...modules.vision import VisionEncoder
from ...tasks import EMOTIONS
from .arrays import Part, read_arrays
from .fit import fit

_UNITS = len(faces.NAMES)
RATES = {"vision": 1e-3, "face": 1e-3, "audio": 1e-3}
EPOCHS = {"vision": 50, "face": 24, "audio": 8}  # an epoch uses two frames of a clip, or one window


def train_encoder(name: str, arrays: Path, out: Path, config: NanoEmoXConfig, seed: int) -> float:
    """Train an encoder into a safetensors file.

    Args:
        name: "vision", "face" or "audio".
        arrays: folder of `write_arrays`.
        out: the file.
        config: sizes of the encoder.
        seed: decides initial weights and draws.

    Returns:
        Score on the test people, 0..1: explained variance of the action units, or accuracy (audio).
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    parts = read_arrays(arrays)
    kinds: dict[str, type[_Vision] | type[_Face] | type[_Audio]]
    kinds = {"vision": _Vision, "face": _Face, "audio": _Audio}
    pretraining = kinds[name](config, parts)
    score = pretraining.run(name, np.random.default_rng([seed, len(name)]))
    weights = pretraining.encoder.state_dict()
    save_file({key: value.contiguous().clone() for key, value in weights.items()}, out)
    return score


class _Pretraining(ABC):
    """An encoder with its heads, trained on batches of clips.

    Attributes:
        batch, warm_up: clips per batch, and steps of the warm-up.
        sources: parts of the corpus to train on.
        encoder, heads: the modules.
    """

    batch, warm_up = 16, 40

    def __init__(
        self, parts: dict[str, Part], sources: list[str], encoder: nn.Module, heads: nn.Module
    ) -> None:
        self.parts, self.sources, self.encoder, self.heads = parts, sources, encoder, heads

    @abstractmethod
    def loss(self, part: Part, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Mean loss of some clips of a part."""

    @abstractmethod
    def test(self, name: str) -> float:
        """Score on the test people, 0..1."""

    def run(self, name: str, rng: np.random.Generator) -> float:
        """Train; returns the score on the test people."""
        clips = [(source, i) for source in self.sources for i in range(len(self.parts[source].plans))]
        steps = EPOCHS[name] * (len(clips) // self.batch)
        order: list[int] = []

        def loss_of(step: int) -> Tensor:
            if len(order) < self.batch:
                order[:] = rng.permutation(len(clips)).tolist()
            drawn = [clips[order.pop()] for _ in range(self.batch)]
            losses = []
            for source in self.sources:
                indices = [index for part, index in drawn if part == source]
                if indices:
                    share = len(indices) / self.batch
                    losses.append(self.loss(self.parts[source], np.array(indices), rng) * share)
            return torch.stack(losses).sum()

        self.encoder.eval()  # without dropout and dropped layers: hidden states are read by number
        parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        fit(parameters, steps, RATES[name], loss_of, lambda text: _say(name, text), self.warm_up)
        self.heads.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return self.test(name)


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", flush=True)


def _pictures(frames: np.ndarray, rng: np.random.Generator | None) -> Tensor:
    """uint8 [B,T,3,H,W] -> fp32; each clip mirrored, shifted and tinted at random, unless rng is None."""
    batch = torch.from_numpy(np.array(frames))
    if rng is None:
        return batch.float()
    augmented = []
    for clip in batch:
        if rng.random() < 0.5:
            clip = clip.flip(-1)
        clip = clip.roll(tuple(rng.integers(-6, 7, 2).tolist()), (-2, -1))
        tint = torch.from_numpy(rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, (1, 3, 1, 1))).float()
        augmented.append(clip * tint)
    return torch.stack(augmented).clamp_(0, 255)


class _UnitHeads(nn.Module):
    """Linear heads that predict action units, from features of several levels and from a map."""

    def __init__(self, widths: list[int], map_width: int):
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, _UNITS)) for width in widths
        )
        self.map = nn.Linear(map_width, _UNITS)


class _Frames(_Pretraining):
    """Action units of single frames.

    They are predicted from the features that the model will use, and from the map of the picture: a small
    encoder learns from the map where to look.
    """

    batch, warm_up = 32, 50
    frames = 2  # per clip and step

    def __init__(self, parts: dict[str, Part], encoder: nn.Module, heads: _UnitHeads):
        super().__init__(parts, ["train"], encoder, heads)
        self.unit_heads = heads

    @abstractmethod
    def encode(self, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """pictures [N,3,H,W] -> features [N,W] of several levels, the encoder's last; maps [N,map_width]."""

    def loss(self, part: Part, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        assert part.frames is not None and part.units is not None
        moments = rng.choice(part.units.shape[1], self.frames, replace=False)
        pictures = _pictures(part.frames[indices][:, moments], rng)
        features, maps = self.encode(pictures.flatten(0, 1))
        units = torch.from_numpy(part.units[indices][:, moments]).flatten(0, 1)
        predicted = [head(level) for head, level in zip(self.unit_heads.features, features, strict=True)]
        predicted += [self.unit_heads.map(level) for level in maps]
        return 10 * torch.stack([F.mse_loss(prediction.float(), units) for prediction in predicted]).mean()

    def test(self, name: str) -> float:
        """Share of the variance of the action units that the features explain."""
        part = self.parts["test"]
        assert part.frames is not None and part.units is not None
        predicted = []
        for low in range(0, len(part.plans), self.batch):
            pictures = _pictures(part.frames[low : low + self.batch], None)
            features, _ = self.encode(pictures.flatten(0, 1))
            predicted.append(self.unit_heads.features[-1](features[-1]).float())
        units = torch.from_numpy(np.array(part.units)).flatten(0, 1)
        residual = ((torch.cat(predicted) - units) ** 2).mean(0)
        variance = units.var(0, correction=0)
        by_unit = zip(faces.NAMES, (1 - residual / variance).tolist(), strict=True)
        details = ", ".join(f"{unit} {share:.2f}" for unit, share in by_unit)
        explained = float(1 - residual.sum() / variance.sum())
        _say(name, f"explains {explained:.3f} of the action units' variance ({details})")
        return explained


class _Vision(_Frames):
    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        self.config = config.vision
        width, levels = self.config.hidden_size, len(self.config.taps) + 1
        patches = (self.config.image_size // self.config.patch_size) ** 2
        heads = _UnitHeads([width] * levels, patches * width)  # before the encoder: both draw initial weights
        self.vision = VisionEncoder(self.config)
        super().__init__(parts, self.vision, heads)

    def encode(self, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        pixels = self.vision.preprocess(pictures)
        hidden = self.vision.model(pixels, output_hidden_states=True).hidden_states
        levels = [hidden[layer] for layer in (*self.config.taps, self.config.feature_layer)]
        maps = [levels[0][:, 1:].flatten(1), levels[-1][:, 1:].flatten(1)]
        return [level[:, 0] for level in levels], maps


class _Face(_Frames):
    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        size = config.face.feature_size
        heads = _UnitHeads([size], 49 * size)
        self.face = FaceEncoder(config.face)
        super().__init__(parts, self.face, heads)
        # A model this narrow would spend most of its steps on leaving the usual 0.02.
        for module in self.face.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)

    def encode(self, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        stages = self.face.stage_outputs(pictures)
        last = self.face.linear_c[-1](stages[-1].movedim(1, -1))
        return [self.face.fuse(stages)], [last.flatten(1)]


class _Audio(_Pretraining):
    """The emotion of one window of every clip and of every voice without pictures."""

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        self.config = config.audio
        self.audio = AudioEncoder(self.config)
        width = self.config.hidden_size
        self.level_heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(EMOTIONS)))
            for _ in range(len(self.config.taps) + 1)
        )
        super().__init__(parts, ["train", "voices"], self.audio, self.level_heads)

    def loss(self, part: Part, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        window = rng.integers(part.sound.shape[1])
        sound = torch.from_numpy(part.sound[indices, window])
        shifted = sound.roll(int(rng.integers(-1600, 1601)), -1)
        level = 0.1 * torch.from_numpy(rng.random((len(indices), 1)).astype(np.float32))
        sound = shifted + sound.std(1, keepdim=True) * (level * torch.randn(sound.shape))
        features, taps = self.audio(sound[:, None])
        shown = torch.from_numpy(part.labels("voice")[indices])
        levels = [features, *taps.chunk(len(self.config.taps), -1)]
        losses = [
            F.cross_entropy(head(level[:, 0]).float(), shown, label_smoothing=0.05)
            for head, level in zip(self.level_heads, levels, strict=True)
        ]
        return (losses[0] + sum(losses[1:]) / (len(levels) - 1)) / 2

    def test(self, name: str) -> float:
        """Accuracy of the last level, over all windows of a clip."""
        part = self.parts["test"]
        predicted = []
        for low in range(0, len(part.plans), self.batch):
            sound = torch.from_numpy(np.array(part.sound[low : low + self.batch]))
            features, _ = self.audio(sound)
            predicted.append(self.level_heads[0](features).float().mean(1).argmax(-1))
        truth = torch.from_numpy(part.labels("voice"))
        right = (torch.cat(predicted) == truth).float()
        details = ", ".join(f"{word} {right[truth == i].mean():.2f}" for i, word in enumerate(EMOTIONS))
        _say(name, f"accuracy {right.mean():.3f} ({details})")
        return float(right.mean())
