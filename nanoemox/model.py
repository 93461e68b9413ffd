"""The whole model, top to bottom: encode a clip, lay its tokens into the prompt, answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import prompts
from .bundle.folder import CARD
from .bundle.official_names import OfficialTensors
from .bundle.save import save_bundle
from .config import FRAMES, WINDOW_SAMPLES, WINDOWS, NanoEmoXConfig
from .errors import CheckpointError, UsageError
from .generation.generate import Request, generate
from .generation.sampler import Sampler
from .generation.stop import StopRule, TextStream, postprocess
from .generation.tokenizer import Tokenizer
from .media.clip import Clip
from .modules.audio import AudioEncoder
from .modules.encoded import Encoded
from .modules.face import FaceEncoder, FaceHead
from .modules.fusion import build_fusion
from .modules.language import LanguageModel
from .modules.qformer import build_branch
from .modules.vision import VisionEncoder
from .tasks import TASKS, Reply, Task, check_labels, get_task

_ENCODERS = ("vision", "audio", "face")


def reference_parts(config: NanoEmoXConfig) -> dict[str, nn.Module]:
    """The plain PyTorch parts. Another implementation offers the same names with the same calls."""
    width, visual, audio = config.language.hidden_size, config.vision.hidden_size, config.audio.hidden_size
    return {
        "vision": VisionEncoder(config.vision),
        "audio": AudioEncoder(config.audio),
        "face": FaceEncoder(config.face),
        "face_head": FaceHead(config.face, width),
        "video_branch": build_branch(config.video_branch, config.qformer, visual, width),
        "audio_branch": build_branch(config.audio_branch, config.qformer, audio, width),
        "fusion": build_fusion(config.fusion, config.qformer, len(config.vision.taps), audio, visual, width),
        "language": LanguageModel(config.language, config.lora),
    }


class NanoEmoX(nn.Module):
    """Nano-EmoX. Built from a configuration it is the reference with random weights; `nanoemox.load` fills it."""

    vision: Any
    audio: Any
    face: Any
    face_head: Any
    video_branch: Any
    audio_branch: Any
    fusion: Any
    language: Any

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, nn.Module] | None = None):
        super().__init__()
        self.config = config
        for name, part in (reference_parts(config) if parts is None else parts).items():
            self.add_module(name, part)
        self.tokenizer: Tokenizer | None = None
        self.templates = prompts.Templates()
        self.source: Path | None = None  # the bundle that filled it
        self.fast = False
        self.quantize: str | None = None
        self.train(False)

    def train(self, mode: bool = True) -> "NanoEmoX":
        """The encoders are frozen and stay in eval mode, stochastic depth and layer drop included."""
        super().train(mode)
        for name in _ENCODERS:
            getattr(self, name).eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def token_counts(self) -> dict[str, int]:
        """Placeholder tokens of each stream in a prompt."""
        return {
            "frames": self.config.video_branch.tokens,
            "audio": self.config.audio_branch.tokens,
            "face": self.config.face.queries,
            "fusion": self.config.fusion.tokens,
            "image": 1,
        }

    def encode_streams(self, frames: Tensor | None, audio: Tensor | None) -> Encoded:
        """frames [B,T,3,H,W] in 0..255 and audio [B,T,samples] at 16 kHz, either may be None."""
        out = Encoded()

        def watch_and_listen() -> None:
            seen = [] if frames is None else [partial(self._watch, frames, out)]
            heard = [] if audio is None else [partial(self._listen, audio, out)]
            self._run([*seen, *heard])
            shown = [partial(self._show, out)] if seen else []
            self._run([*shown, partial(self._fuse, out)] if seen and heard else shown)

        looked = [] if frames is None else [partial(self._look, frames, out)]
        self._run([*looked, watch_and_listen])  # the last, for it runs jobs of its own
        return out

    def _watch(self, frames: Tensor, out: Encoded) -> None:
        out.features["visual"], out.features["visual_taps"] = self.vision(frames)

    def _show(self, out: Encoded) -> None:
        out.visual = self.video_branch(out.features["visual"])

    def _look(self, frames: Tensor, out: Encoded) -> None:
        out.features["face"] = self.face(frames)
        out.face, out.face_attention = self.face_head(out.features["face"])

    def _listen(self, audio: Tensor, out: Encoded) -> None:
        out.features["audio"], out.features["audio_taps"] = self.audio(audio)
        out.speech = self.audio_branch(out.features["audio"])

    def _fuse(self, out: Encoded) -> None:
        read = out.features
        out.fusion, out.gates = self.fusion(
            read["audio"], read["audio_taps"], read["visual"], read["visual_taps"]
        )

    def _run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Jobs that do not wait for each other; any but the first may run jobs of its own."""
        for job in jobs:
            job()

    @torch.inference_mode()
    def encode(self, clips: Clip | Sequence[Clip]) -> Encoded:
        """Encode one clip or a batch. All clips of a batch must hold the same streams (ValueError otherwise)."""
        batch, size = [clips] if isinstance(clips, Clip) else list(clips), self.config.vision.image_size
        return self.encode_streams(
            self._stack("frames", [clip.frames for clip in batch], (FRAMES, 3, size, size)),
            self._stack("audio", [clip.audio for clip in batch], (WINDOWS, WINDOW_SAMPLES)),
        )

    def _stack(self, name: str, arrays: list[Any], leading: tuple[int, ...]) -> Tensor | None:
        present = [torch.as_tensor(array) for array in arrays if array is not None]
        if not present:
            return None
        if len(present) < len(arrays):
            raise ValueError(
                f"some clips of the batch have no {name}: encode clips with the same streams together"
            )
        for tensor in present:
            if tuple(tensor.shape[: len(leading)]) != leading:
                raise ValueError(
                    f"{name} must start with the shape {list(leading)}, got {list(tensor.shape)}"
                )
        return torch.stack(present).to(self.device)

    def splice(self, ids: Tensor, encoded: Encoded) -> Tensor:
        """ids [B,L] with placeholders -> embeddings [B,L,W] with the streams' tokens in their place.

        Raises ValueError where a placeholder does not occur exactly its count and consecutively (section 11).
        """
        if self.tokenizer is None:
            raise CheckpointError("the model has no tokenizer: load it from a bundle with nanoemox.load")
        placeholders = self.tokenizer.placeholder_ids
        text = ids.clone()
        for token in placeholders.values():
            text[ids == token] = 0
        embeds = self.language.embed(text)
        for kind, token in placeholders.items():
            here = ids == token
            if not here.any():
                continue
            tokens, count = encoded.stream(kind), self.token_counts[kind]
            if tokens is None:
                raise ValueError(f"the prompt shows {kind}, but the clip has none")
            for row in range(ids.shape[0]):
                found = here[row].nonzero().flatten()
                if len(found) == 0:
                    continue
                if len(found) != count or int(found[-1] - found[0]) != count - 1:
                    raise ValueError(
                        f"row {row}: want {count} consecutive {kind} placeholders, got {len(found)}"
                    )
                embeds[row, int(found[0]) : int(found[0]) + count] = tokens[row].to(embeds.dtype)
        return embeds

    def prompt_ids(
        self,
        clip: Clip,
        task: str | Task = "mer",
        *,
        question: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> list[int]:
        """Token ids of the prompt, bos first."""
        if self.tokenizer is None:
            raise CheckpointError("the model has no tokenizer: load it from a bundle with nanoemox.load")
        task = get_task(task) if isinstance(task, str) else task
        name = prompts.modality_set(
            frames=clip.frames is not None, audio=clip.audio is not None, subtitle=bool(clip.subtitle)
        )
        asked = (
            question if question is not None else task.ask(labels, self.templates.questions.get(task.name))
        )
        segments = prompts.build(name, subtitle=clip.subtitle, question=asked, templates=self.templates)
        return [self.tokenizer.bos_id, *prompts.tokenize(segments, self.tokenizer, self.token_counts)]

    def answer(
        self,
        clip: Clip,
        task: str = "mer",
        question: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stream: Callable[[str], None] | None = None,
        labels: Sequence[str] | None = None,
        *,
        top_k: int = 0,
        cancelled: Callable[[], bool] | None = None,
    ) -> Reply:
        """Answer one task about one clip.

        Args:
            task: msa, mer, ov-mer, eri, mir or erg.
            question: replaces the task's question; the answer is still read as the task's.
            max_new_tokens: default by task, 32 to 512.
            temperature: 0 is greedy; above it, a draw among the `top_k` likeliest (0: all) within `top_p`, with `seed`.
            stream: called with pieces of the text as they appear.
            labels: replaces the candidates of a task that has them.
            cancelled: asked between tokens; once it says True the answer ends there, `finish` "cancelled".
        """
        sampler = Sampler(temperature, top_p, seed, top_k)
        job = _Job(get_task(task), question, check_labels(labels), max_new_tokens, sampler)
        (reply,) = self._answer(clip, [job], stream, cancelled)
        return reply

    def answer_all(
        self,
        clip: Clip,
        *,
        max_new_tokens: int | None = None,
        labels: dict[str, Sequence[str]] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Reply]:
        """All six tasks, greedy. `labels` replaces candidates by task.

        The encoders run once, what the prompts share is read once, and the answers are decoded side by side; `seconds`
        of a reply run until it was complete.
        """
        candidates = {get_task(name).name: check_labels(given) for name, given in (labels or {}).items()}
        jobs = [
            _Job(task, None, candidates.get(task.name), max_new_tokens, Sampler()) for task in TASKS.values()
        ]
        return {reply.task: reply for reply in self._answer(clip, jobs, None, cancelled)}

    @torch.inference_mode()
    def _answer(
        self,
        clip: Clip,
        jobs: "list[_Job]",
        stream: Callable[[str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Reply]:
        """Answer several tasks about one clip; `stream` is fed with the first."""
        limits = [job.limit() for job in jobs]
        started = time.perf_counter()
        encoded = self.encode(clip)
        self._synchronize()
        seconds = time.perf_counter() - started
        prompts_ = [self.prompt_ids(clip, job.task, question=job.question, labels=job.labels) for job in jobs]
        room = self.config.language.max_positions
        for ids, limit in zip(prompts_, limits, strict=True):
            if len(ids) + limit > room:
                raise ValueError(
                    f"the prompt has {len(ids)} tokens and {limit} more are wanted, but the language model holds "
                    f"{room}: shorten the subtitle or the question, or ask for fewer tokens"
                )
        embeds = [self.splice(torch.tensor([ids], device=self.device), encoded)[0] for ids in prompts_]
        tokenizer = cast(Tokenizer, self.tokenizer)  # splice asked for it
        shared = _shared(prompts_) if len(jobs) > 1 else 0
        stop, feed = StopRule(tokenizer), TextStream(tokenizer, stream) if stream else None
        requests = [
            Request(embed[shared:], limit, stop, job.sampler)
            for embed, limit, job in zip(embeds, limits, jobs, strict=True)
        ]
        if feed:
            requests[0].watch = feed.push
        results = generate(
            self.language, requests, shared=embeds[0][:shared] if shared else None, cancelled=cancelled
        )
        gates, attention = encoded.gates, encoded.face_attention
        replies = []
        for job, result in zip(jobs, results, strict=True):
            text = postprocess(tokenizer.decode(result.ids), tokenizer.bos, tokenizer.eos)
            parsed = job.task.parse(text, job.labels or job.task.labels)
            replies.append(
                Reply(
                    task=job.task.name,
                    text=text,
                    labels=parsed.labels,
                    reply=parsed.reply,
                    chain=parsed.chain,
                    tokens=len(result.ids),
                    finish=result.finish,
                    modalities=clip.modalities,
                    gates=None if gates is None else gates[0].tolist(),
                    face_attention=None if attention is None else attention[0].tolist(),
                    seconds={"read": clip.read_seconds, "encode": seconds, **result.seconds},
                )
            )
        return replies

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def save(self, folder: str | Path) -> None:
        """Write a bundle; `nanoemox.load(folder)` gives identical outputs. A bundle that is there is replaced whole."""
        if self.tokenizer is None:
            raise CheckpointError(
                "a bundle needs a tokenizer: set model.tokenizer, or start from a loaded bundle"
            )
        card = None if self.source is None else self.source / CARD
        save_bundle(
            folder,
            self.config,
            OfficialTensors(self, self.config),
            self.tokenizer,
            self.templates,
            card=card.read_text() if card is not None and card.is_file() else None,
        )


@dataclass
class _Job:
    task: Task
    question: str | None
    labels: list[str] | None
    max_new_tokens: int | None
    sampler: Sampler

    def limit(self) -> int:
        limit = self.task.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        if limit < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {limit}")
        return limit


def _shared(prompts_: list[list[int]]) -> int:
    """How many ids all prompts begin with; at least one of each is left."""
    alike = 0
    for ids in zip(*(ids[:-1] for ids in prompts_), strict=False):
        if len(set(ids)) > 1:
            break
        alike += 1
    return alike
