"""Stand-in pretraining of the three small encoders, each with heads that are thrown away.

What CLIP, HuBERT and FaceXFormer bring from their own training, these learn from the corpus' people: vision and face
encoder to tell the action units of every frame, and, vision with the order of the frames, what the face shows; the
audio encoder what the voice shows. Plain loops over arrays; the seed decides every number.
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

from ..config import NanoEmoXConfig
from ..data.synthetic import faces
from ..encoders.audio import AudioEncoder
from ..encoders.face import FaceEncoder
from ..encoders.vision import VisionEncoder
from ..tasks import EMOTIONS
from .arrays import Part, read_arrays

_UNITS = len(faces.NAMES)
_DECAY, _WARM_UP = 0.05, 40
RATES = {"vision": 1e-3, "face": 3e-3, "audio": 1e-3}
EPOCHS = {"vision": 6, "face": 5, "audio": 8}


def train_encoder(name: str, arrays: Path, out: Path, config: NanoEmoXConfig, seed: int, threads: int = 1) -> float:
    """Trains "vision", "face" or "audio" into a safetensors file; returns its heads' accuracy on people unseen."""
    torch.set_num_threads(threads)
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
) -> None:
    """AdamW with warm-up and a cosine to zero, gradients of norm 1 at most."""
    decayed, spared = ([p for p in parameters if (p.ndim >= 2) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": _DECAY}, {"params": spared, "weight_decay": 0}])
    began, mean = time.perf_counter(), 0.0
    for step in range(steps):
        now = rate * min(1, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
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

    batch = 16
    encoder: Any
    heads: Any

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        self.config, self.parts = config, parts
        self.sources = ["train"]

    def loss(self, part: Part, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        raise NotImplementedError

    def predict(self, part: Part, chosen: np.ndarray) -> Tensor:
        """Logits of what is shown [B,7]."""
        raise NotImplementedError

    modality = "face"

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
                    losses.append(self.loss(self.parts[source], np.array(mine), rng) * (len(mine) / self.batch))
            return torch.stack(losses).sum()

        self.encoder.eval()  # no dropout, no dropped layers: hidden states are read by number
        fit([*self.encoder.parameters(), *self.heads.parameters()], steps, RATES[name], loss_of, lambda t: _say(name, t))
        self.heads.eval()
        part = self.parts["test"]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            said = [
                self.predict(part, np.arange(low, min(low + self.batch, len(part.plans)))).argmax(-1)
                for low in range(0, len(part.plans), self.batch)
            ]
        told, truth = torch.cat(said), torch.from_numpy(part.labels(self.modality))
        right = (told == truth).float()
        each = ", ".join(f"{word} {right[truth == i].mean():.2f}" for i, word in enumerate(EMOTIONS))
        _say(name, f"accuracy on people unseen {right.mean():.3f} ({each})")
        return float(right.mean())


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", flush=True)


def _pictures(frames: np.ndarray, rng: np.random.Generator | None) -> Tensor:
    """uint8 [B,T,3,H,W] -> fp32; clips mirrored, shifted, and under other light, unless rng is None."""
    batch = torch.from_numpy(np.ascontiguousarray(frames))
    if rng is None:
        return batch.float()
    out = []
    for clip in batch:
        if rng.random() < 0.5:
            clip = clip.flip(-1)
        clip = clip.roll(tuple(rng.integers(-12, 13, 2).tolist()), (-2, -1))
        tint = torch.from_numpy(rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, (1, 3, 1, 1))).float()
        out.append(clip * tint)
    return torch.stack(out).clamp_(0, 255)


class _Vision(_Learn):
    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        super().__init__(config, parts)
        c = config.vision
        self.encoder = VisionEncoder(c)
        self.heads = nn.ModuleDict({
            "units": nn.ModuleList(nn.Linear(c.hidden_size, _UNITS) for _ in range(len(c.taps) + 1)),
            "shown": nn.Sequential(
                nn.LayerNorm(c.hidden_size), nn.Linear(c.hidden_size, 24), nn.Flatten(), nn.GELU(), nn.Dropout(0.2),
                nn.Linear(8 * 24, len(EMOTIONS)),
            ),
        })  # fmt: skip

    def loss(self, part: Part, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        assert part.frames is not None and part.units is not None
        features, taps = self.encoder(_pictures(part.frames[chosen], rng))
        units = torch.from_numpy(part.units[chosen])
        levels = [*taps.chunk(len(self.config.vision.taps), -1), features]
        told = sum(F.mse_loss(head(x).float(), units) for head, x in zip(self.heads["units"], levels, strict=True))
        shown = torch.from_numpy(part.labels("face")[chosen])
        return 10 * told / len(levels) + F.cross_entropy(self.heads["shown"](features).float(), shown)

    def predict(self, part: Part, chosen: np.ndarray) -> Tensor:
        assert part.frames is not None
        return self.heads["shown"](self.encoder(_pictures(part.frames[chosen], None))[0])


class _Face(_Learn):
    """A few frames of every clip, without their order: surprise and fear remain one."""

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, Part]):
        super().__init__(config, parts)
        size = config.face.feature_size
        self.encoder = FaceEncoder(config.face)
        for module in self.encoder.modules():  # the usual 0.02 would take a model this narrow most of its steps to leave
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        self.heads = nn.ModuleDict({
            "units": nn.Sequential(nn.LayerNorm(size), nn.Linear(size, _UNITS)),
            "shown": nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 64), nn.GELU(), nn.Linear(64, len(EMOTIONS))),
        })  # fmt: skip

    def loss(self, part: Part, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        assert part.frames is not None and part.units is not None
        moments = np.sort(rng.choice(8, 3, replace=False))
        features = self.encoder(_pictures(part.frames[chosen][:, moments], rng))
        units = torch.from_numpy(part.units[chosen][:, moments])
        shown = torch.from_numpy(part.labels("face")[chosen])
        told = F.mse_loss(self.heads["units"](features).float(), units)
        return 10 * told + F.cross_entropy(self.heads["shown"](features).amax(1).float(), shown)

    def predict(self, part: Part, chosen: np.ndarray) -> Tensor:
        assert part.frames is not None
        return self.heads["shown"](self.encoder(_pictures(part.frames[chosen], None))).amax(1)


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

    def predict(self, part: Part, chosen: np.ndarray) -> Tensor:
        features, _ = self.encoder(torch.from_numpy(part.sound[chosen]))
        return self.heads[0](features).float().mean(1)
