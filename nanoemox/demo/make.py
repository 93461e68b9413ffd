"""Makes the embedded bundle from nothing: `python -m nanoemox.demo.make [FOLDER]`.

Tokenizer, seeded weights and the sample clip are the project's own; nothing is downloaded.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import av
import numpy as np
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from ..bundle import CARD, CONFIG, WEIGHTS, build_empty, shapes, write_safetensors
from ..config import NanoEmoXConfig
from ..generate import STOP
from ..prompts import Templates
from ..tasks import EMOTIONS, MINTREC2_INTENTS, POLARITIES, TASKS
from ..tokenizer import PLACEHOLDERS
from ..weights import random_tensor

SEED = 0
CLIP = "sample.mp4"
_CARD = """# nanoemox demo

A small configuration of the Nano-EmoX architecture (the same classes, fewer and narrower layers) with a tokenizer and a
sample clip, all made by this project. **Its weights are seeded random numbers: it has been trained on nothing, and what
it says means nothing.** It shows that the whole path works, from a media file to an answer, without downloads.

Not for any use on people. Files are rebuilt by `python -m nanoemox.demo.make`. License: MIT.
"""


def corpus() -> list[str]:
    """Sentences in the words that prompts and answers of the six tasks are made of."""
    people = ["the person", "the speaker", "the woman", "the man", "he", "she", "they", "I", "you"]
    feelings = [
        *EMOTIONS, *POLARITIES, "anxious", "ashamed", "calm", "confused", "contempt", "content", "curious",
        "disappointed",
        "embarrassed", "excited", "frustrated", "grateful", "guilty", "hopeful", "hurt", "jealous", "joyful", "lonely",
        "nervous", "overwhelmed", "proud", "relieved", "serious", "tense", "tired", "upset", "worried",
    ]  # fmt: skip
    evidence = [
        "raises the inner brows", "lowers the brows", "presses the lips together", "smiles with the eyes",
        "opens the mouth",
        "wrinkles the nose", "pulls the lip corners down", "looks away", "speaks slowly in a low voice",
        "the pitch rises",
        "speaks fast and loud", "the voice trembles", "pauses between the words", "sighs", "laughs",
        "stays flat and even",
    ]  # fmt: skip
    events = [
        "missed the train", "lost the job", "passed the exam", "had an argument with a friend", "got a present",
        "moved away",
        "waited for the doctor", "heard good news", "broke a cup", "won the game", "forgot a birthday",
        "was left alone",
    ]  # fmt: skip
    replies = [
        "That sounds hard. I am here for you.", "I am sorry to hear that.", "Congratulations, you earned it!",
        "What would help you most right now?", "It makes sense that you feel this way.", "Take your time.",
    ]  # fmt: skip
    lines = [f"{p} feels {f} because {p} {e}." for p, f, e in itertools.product(people, feelings, events)]
    lines += [f"the face shows that {p} is {f}: {p} {e}, and the voice {e}." for p, f, e in
              itertools.product(people[:4], feelings, evidence)]  # fmt: skip
    lines += [
        f"<think>First, the event is that the speaker {event}.\nSecond, the emotion of the speaker is {feeling}.\n"
        f"Third, the cause of the emotion is that the speaker {event}.\nFourth, the goal of the response is to comfort "
        f"or encourage the speaker.</think>\n {reply}"
        for event, feeling, reply in itertools.product(events, feelings, replies)
    ]
    lines += [f"The intent of the person is to {intent}." for intent in MINTREC2_INTENTS] * 20
    return lines + [*Templates().pieces.values(), *(task.ask() for task in TASKS.values())] * 100


def make_tokenizer(folder: Path, size: int) -> None:
    """Byte-level BPE, so that any text has ids; `###` is one token wherever it stands."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", *PLACEHOLDERS.values()]
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=size - 1, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer.add_tokens([AddedToken(STOP, special=False, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1) + "\n")


def draw_face(t: float, size: int = 192) -> np.ndarray:
    """uint8 [size,size,3]: a drawn face whose smile grows and whose brows rise, blinking now and then. t in 0..1."""
    y, x = np.mgrid[0:size, 0:size] / size * 2 - 1
    image = np.empty((size, size, 3))
    image[:] = (70 + 60 * (y[..., None] + 1) / 2) * np.array([0.7, 0.9, 1.1])

    def paint(where: np.ndarray, colour: tuple[int, int, int]) -> None:
        image[where] = colour

    x = x - 0.04 * math.sin(6 * t)
    paint((x / 0.62) ** 2 + (y / 0.78) ** 2 < 1, (224, 180, 150))
    paint(((x / 0.66) ** 2 + ((y + 0.1) / 0.8) ** 2 < 1) & (y < -0.5 + 0.15 * np.cos(4 * x)), (70, 45, 30))
    opening = 0.02 if 0.45 < t % 0.5 < 0.48 else 0.09
    for side in (-0.25, 0.25):
        paint(((x - side) / 0.13) ** 2 + ((y + 0.15) / opening) ** 2 < 1, (250, 250, 250))
        paint(((x - side) / 0.05) ** 2 + ((y + 0.15) / min(opening, 0.06)) ** 2 < 1, (60, 40, 30))
        paint((abs(x - side) < 0.15) & (abs(y + 0.36 + 0.06 * t - 0.8 * (x - side) ** 2) < 0.025), (70, 45, 30))
    paint((abs(x) < 0.05 + 0.1 * (y + 0.1)) & (y > -0.1) & (y < 0.14), (205, 155, 125))
    talk = 0.05 * abs(math.sin(25 * t))
    lips = 0.36 - 0.28 * t * (x / 0.3) ** 2
    paint((abs(x) < 0.3) & (abs(y - lips) < 0.025 + talk * (1 - (x / 0.3) ** 2)), (170, 60, 70))
    return image.clip(0, 255).astype(np.uint8)


def make_clip(path: Path, seconds: float = 3.0, pace: int = 12, rate: int = 16_000) -> None:
    """A drawn face with a hummed voice whose pitch rises: MPEG-4 with AAC."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(160 + 60 * t / seconds + 4 * np.sin(2 * np.pi * 5 * t)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 8))
    syllables = np.clip(np.sin(2 * np.pi * 3 * t) + 0.4, 0, 1)
    wave = (0.2 * voice * syllables).astype(np.float32)[None]
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=pace)
        video.width = video.height = 192
        video.pix_fmt, video.bit_rate = "yuv420p", 300_000
        audio = container.add_stream("aac", rate=rate, layout="mono")
        count = int(seconds * pace)
        for i in range(count):
            container.mux(video.encode(av.VideoFrame.from_ndarray(draw_face(i / count), format="rgb24")))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


def make(folder: Path) -> None:
    config = NanoEmoXConfig.preset("demo")
    make_tokenizer(folder, config.language.vocab_size)
    wanted = shapes(build_empty(config, config.name), config)
    write_safetensors(folder / WEIGHTS, wanted, torch.bfloat16, lambda name: random_tensor(name, wanted[name], SEED))
    config.to_json(folder / CONFIG)
    (folder / CARD).write_text(_CARD)
    make_clip(folder / CLIP)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
