"""Stand-in pretraining of the three small encoders, each with heads that are thrown away.

What CLIP, HuBERT and FaceXFormer bring from their own training, these learn from the corpus' people: vision and face
encoder to tell the action units of every frame; the audio encoder what the voice shows. Plain loops over arrays; the
seed decides every number.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

_UNITS = len(faces.NAMES)
_DECAY = 0.05
RATES = {"vision": 1e-3, "face": 1e-3, "audio": 1e-3}
EPOCHS = {"vision": 50, "face": 24, "audio": 8}  # a pass sees two frames of a clip, or one window


def train_encoder(name: str, arrays: Path, out: Path, config: NanoEmoXConfig, seed: int) -> float:
    """Trains "vision", "face" or "audio" into a safetensors file; returns what its heads tell of people unseen: the
    share of right answers (audio), or of the action units' variance."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    parts = read_arrays(arrays)
    learn = {"vision": _Vision, "face": _Face, "audio": _Audio}[name](config, parts)
    accuracy = learn.run(name, np.random.default_rng([seed, len(name)]))
    weights = {key: value.contiguous().clone() for key, value in learn.encoder.state_dict().items()}
    save_file(weights, out)
    return accuracy


def fit(
    parameters: list[nn.Parameter],
    steps: int,
    rate: float,
    loss_of: Callable[[int], Tensor],
    say: Callable[[str], None],
    warm_up: int = 40,
) -> None:
    """AdamW with warm-up and a cosine to zero, gradients of norm 1 at most."""
    decayed, spared = ([p for p in parameters if (p.ndim >= 2) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": _DECAY}, {"params": spared, "weight_decay": 0}]
    )
    began, mean = time.perf_counter(), 0.0
    for step in range(steps):
        now = rate * min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = now
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"step {step + 1} of {steps}: loss {mean:.3f}, {time.perf_counter() - began:.0f} s")


class _Learn:
    """An encoder with its heads, over batches of clips."""

    batch, warm_up = 16, 40
    encoder: Any
    heads: Any

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        self.config, self.parts = config, parts
        self.sources = ["train"]

    def loss(self, part: Part, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        raise NotImplementedError

    def run(self, name: str, rng: np.random.Generator) -> float:
        whole = [(source, i) for source in self.sources for i in range(len(self.parts[source].plans))]
        steps = EPOCHS[name] * (len(whole) // self.batch)
        order: list[int] = []

        def loss_of(step: int) -> Tensor:
            if len(order) < self.batch:
                order[:] = rng.permutation(len(whole)).tolist()
            drawn = [whole[order.pop()] for _ in range(self.batch)]
            losses = []
            for source in self.sources:
                if mine := np.array([i for held, i in drawn if held == source], dtype=int).tolist():
                    losses.append(
                        self.loss(self.parts[source], np.array(mine), rng) * (len(mine) / self.batch)
                    )
            return torch.stack(losses).sum()

        self.encoder.eval()  # no dropout, no dropped layers: hidden states are read by number
        parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        fit(parameters, steps, RATES[name], loss_of, lambda text: _say(name, text), self.warm_up)
        self.heads.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return self.test(name)

    def test(self, name: str) -> float:
        raise NotImplementedError


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", flush=True)


def _pictures(frames: np.ndarray, rng: np.random.Generator | None) -> Tensor:
    """uint8 [B,T,3,H,W] -> fp32; clips mirrored, shifted, and under other light, unless rng is None."""
    batch = torch.from_numpy(np.array(frames))
    if rng is None:
        return batch.float()
    out = []
    for clip in batch:
        if rng.random() < 0.5:
            clip = clip.flip(-1)
        clip = clip.roll(tuple(rng.integers(-6, 7, 2).tolist()), (-2, -1))
        tint = torch.from_numpy(rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, (1, 3, 1, 1))).float()
        out.append(clip * tint)
    return torch.stack(out).clamp_(0, 255)


class _Frames(_Learn):
    """Action units of single frames: from the features, as they will be read, and from every place of the picture's
    map, which shows a small model where to look."""

    batch, frames, warm_up = 32, 2, 50

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part], widths: list[int], cells: int):
        super().__init__(config, parts)
        self.heads = nn.ModuleDict({
            "features": nn.ModuleList(nn.Sequential(nn.LayerNorm(w), nn.Linear(w, _UNITS)) for w in widths),
            "map": nn.Linear(cells, _UNITS),
        })  # fmt: skip

    def look(self, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """pictures [N,3,H,W] -> features [N,W] of several levels, the last one the encoder's; maps [N,cells]."""
        raise NotImplementedError

    def loss(self, part: Part, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        assert part.frames is not None and part.units is not None
        moments = rng.choice(part.units.shape[1], self.frames, replace=False)
        features, maps = self.look(_pictures(part.frames[chosen][:, moments], rng).flatten(0, 1))
        units = torch.from_numpy(part.units[chosen][:, moments]).flatten(0, 1)
        told = [head(x) for head, x in zip(self.heads["features"], features, strict=True)]
        told += [self.heads["map"](x) for x in maps]
        return 10 * torch.stack([F.mse_loss(x.float(), units) for x in told]).mean()

    def test(self, name: str) -> float:
        """How much of the variance of the action units of people unseen the features tell."""
        part = self.parts["test"]
        assert part.frames is not None and part.units is not None
        told = []
        for low in range(0, len(part.plans), self.batch):
            features, _ = self.look(_pictures(part.frames[low : low + self.batch], None).flatten(0, 1))
            told.append(self.heads["features"][-1](features[-1]).float())
        units = torch.from_numpy(np.array(part.units)).flatten(0, 1)
        missed = ((torch.cat(told) - units) ** 2).mean(0)
        each = 1 - missed / units.var(0, correction=0)
        told_of = ", ".join(
            f"{unit} {share:.2f}" for unit, share in zip(faces.NAMES, each.tolist(), strict=True)
        )
        share = float(1 - missed.sum() / units.var(0, correction=0).sum())
        _say(name, f"explains {share:.3f} of the action units' variance ({told_of})")
        return share


class _Vision(_Frames):
    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        c = config.vision
        super().__init__(
            config,
            parts,
            [c.hidden_size] * (len(c.taps) + 1),
            (c.image_size // c.patch_size) ** 2 * c.hidden_size,
        )
        self.encoder = VisionEncoder(c)

    def look(self, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        c = self.config.vision
        hidden = self.encoder.model(
            self.encoder.preprocess(pictures), output_hidden_states=True
        ).hidden_states
        levels = [hidden[layer] for layer in (*c.taps, c.feature_layer)]
        return [level[:, 0] for level in levels], [levels[0][:, 1:].flatten(1), levels[-1][:, 1:].flatten(1)]


class _Face(_Frames):
    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        size = config.face.feature_size
        super().__init__(config, parts, [size], 49 * size)
        self.encoder = FaceEncoder(config.face)
        for (
            module
        ) in self.encoder.modules():  # a model this narrow would spend most of its steps on leaving 0.02
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)

    def look(self, pictures: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        stages = self.encoder.stages(pictures)
        last = self.encoder.linear_c[-1](stages[-1].movedim(1, -1))
        return [self.encoder.fuse(stages)], [last.flatten(1)]


class _Audio(_Learn):
    """One window of every clip and of every voice alone."""

    modality = "voice"

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        super().__init__(config, parts)
        c = config.audio
        self.sources = ["train", "voices"]
        self.encoder = AudioEncoder(c)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(c.hidden_size), nn.Linear(c.hidden_size, len(EMOTIONS)))
            for _ in range(len(c.taps) + 1)
        )

    def loss(self, part: Part, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        window = rng.integers(part.sound.shape[1])
        sound = torch.from_numpy(part.sound[chosen, window])
        sound = sound.roll(int(rng.integers(-1600, 1601)), -1) + sound.std(1, keepdim=True) * (
            0.1 * torch.from_numpy(rng.random((len(chosen), 1)).astype(np.float32)) * torch.randn(sound.shape)
        )
        features, taps = self.encoder(sound[:, None])
        shown = torch.from_numpy(part.labels("voice")[chosen])
        levels = [features, *taps.chunk(len(self.config.audio.taps), -1)]
        losses = [F.cross_entropy(head(x[:, 0]).float(), shown, label_smoothing=0.05)
                  for head, x in zip(self.heads, levels, strict=True)]  # fmt: skip
        return (losses[0] + sum(losses[1:]) / (len(levels) - 1)) / 2

    def test(self, name: str) -> float:
        """Accuracy on people unseen."""
        part = self.parts["test"]
        said = []
        for low in range(0, len(part.plans), self.batch):
            features, _ = self.encoder(torch.from_numpy(np.array(part.sound[low : low + self.batch])))
            said.append(self.heads[0](features).float().mean(1).argmax(-1))
        truth = torch.from_numpy(part.labels(self.modality))
        right = (torch.cat(said) == truth).float()
        each = ", ".join(f"{word} {right[truth == i].mean():.2f}" for i, word in enumerate(EMOTIONS))
        _say(name, f"accuracy {right.mean():.3f} ({each})")
        return float(right.mean())
