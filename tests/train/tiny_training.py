"""A model of a few thousand parameters, data sets of made-up samples, and a config over them. CPU, fp32."""

import hashlib
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nanoemox.config import (
    AudioConfig,
    BranchConfig,
    FaceConfig,
    FusionConfig,
    LanguageConfig,
    LoRAConfig,
    NanoEmoXConfig,
    QFormerConfig,
    VisionConfig,
)
from nanoemox.data.record import Sample
from nanoemox.errors import MediaError
from nanoemox.media import Clip
from nanoemox.train.config import config_from

FULL = "multiface_audio_face_frame_text"
KINDS = {
    "emotion_recognition": "mer",
    "intent_recognition": "mir",
    "description": "eri",
    "ovlabel": "ov-mer",
    "empathic_response_with_coe": "erg",
}
WORDS = ("happy", "sad", "angry", "afraid", "calm", "proud")


def tiny(dropout: float = 0.1) -> NanoEmoXConfig:
    """Frames of 32x32, windows of 800 samples."""
    return NanoEmoXConfig(
        name="tiny",
        vision=VisionConfig(
            hidden_size=16,
            layers=3,
            heads=2,
            mlp_size=32,
            patch_size=16,
            image_size=32,
            taps=(1, 2),
            feature_layer=2,
        ),
        audio=AudioConfig(
            hidden_size=16,
            layers=2,
            heads=2,
            mlp_size=32,
            conv_dim=(8,) * 7,
            position_kernel=8,
            position_groups=2,
            taps=(1, 2),
            feature_layers=(1, 2),
        ),
        face=FaceConfig(
            embed_dim=8,
            depths=(1, 1, 1, 1),
            heads=(1, 1, 2, 2),
            window_size=1,
            feature_size=16,
            projector_size=16,
            dropout=dropout,
        ),
        qformer=QFormerConfig(hidden_size=32, heads=2, mlp_size=32, dropout=dropout),
        video_branch=BranchConfig(tokens=4),
        audio_branch=BranchConfig(tokens=4, positions=8),
        fusion=FusionConfig(hidden_size=16, heads=2, dropout=dropout),
        language=LanguageConfig(
            vocab_size=1024,
            hidden_size=32,
            layers=2,
            heads=2,
            kv_heads=1,
            head_dim=16,
            mlp_size=48,
            max_positions=2048,
        ),
        lora=LoRAConfig(rank=2, alpha=4, dropout=dropout),
    )


@dataclass
class FakeSet:
    """`clips` files in a folder; the label follows from the number, pictures and sound from the file."""

    name: str
    folder: Path
    kinds: tuple[str, ...]
    clips: int = 12
    bad: set[int] = field(default_factory=set)  # files that the reader cannot read
    long: set[int] = field(default_factory=set)  # samples of too many tokens

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        for i in range(self.clips):
            file = self.file(i)
            if not file.exists():
                file.write_text("broken" if i in self.bad else f"{self.name} {i}")

    def file(self, index: int) -> Path:
        return self.folder / f"{self.name}_{index}.mp4"

    def __len__(self):
        return self.clips

    def task_of(self, kind: str) -> str:
        return KINDS[kind]

    def sample(self, index: int, kind: str, rng: random.Random) -> Sample:
        ask = rng.choice(["What does the person feel?", "Name the feeling."])
        answer = f"The person is {WORDS[index % len(WORDS)]}." * (200 if index in self.long else 1)
        words = "It is what it is." if index % 2 else ""
        return Sample(
            f"{self.name}_{index}", self.name, KINDS[kind], ask, answer, words, video=self.file(index)
        )


class Reader:
    """Arrays that follow from the file's text. Counts what it reads."""

    def __init__(self):
        self.read = 0

    def __call__(self, sample: Sample, modalities: str) -> Clip:
        self.read += 1
        text = Path(sample.video).read_text()
        if text == "broken":
            raise MediaError(f"{sample.video}: not a media file")
        rng = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))
        frames = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
        return Clip(frames=frames, audio=rng.standard_normal((8, 800)).astype(np.float32))


SETS = {
    "M3ED": ("emotion_recognition",),
    "CREMA_D": ("emotion_recognition",),
    "CAER": ("emotion_recognition",),
    "MIntRec": ("intent_recognition",),
    "MIntRec2": ("intent_recognition",),
    "MERCaptionPlus": ("description", "ovlabel"),
    "MERRFine": ("description", "ovlabel"),
    "AvaMERG": ("empathic_response_with_coe", "emotion_recognition"),
}


def datasets(folder: Path, **changes) -> dict[str, FakeSet]:
    return {
        name: FakeSet(name, folder / "media", kinds, **changes.get(name, {})) for name, kinds in SETS.items()
    }


def stages(steps: int = 3, epochs: int = 2) -> dict:
    rates = {
        "init_lr": 3e-3,
        "min_lr": 1e-4,
        "warmup_lr": 1e-5,
        "warmup_steps": 2,
        "epochs": epochs,
        "steps": steps,
    }
    adapters = ["audio", "video", "face_proj", "face_attention", "fusion"]
    return {
        "1-1": {"data": ["M3ED", "CREMA_D"], "modalities": "audio_text", "train": ["audio"], **rates},
        "1-2": {
            "data": ["CAER"],
            "modalities": "face_frame",
            "train": ["video", "face_proj", "face_attention"],
            **rates,
        },
        "2": {
            "data": ["MIntRec", "MIntRec2"],
            "modalities": FULL,
            "train": adapters,
            "init": ["1-1", "1-2"],
            **rates,
        },
        "3": {
            "data": ["MERCaptionPlus", "MERRFine", "MIntRec", "MIntRec2", "AvaMERG"],
            "modalities": FULL,
            "train": [*adapters, "lora"],
            "init": ["2"],
            "profile": "dataset_exact",
            **rates,
        },
    }


def config(folder: Path, bundle: Path, *, steps: int = 3, epochs: int = 2, **changes):
    values = {
        "out": str(folder / "out"),
        "model": {"bundle": str(bundle)},
        "device": "cpu",
        "batch": 2,
        "workers": 2,
        "checkpoint_every": 2,
        "datasets": {name: {"format": "manifest", "size": 12} for name in SETS},
        "stages": stages(steps, epochs),
    }
    return replace(config_from(values), **changes)
