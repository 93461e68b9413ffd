"""The whole model, top to bottom: encode a clip, put its tokens into the prompt, answer.

docs/architecture.md section 1 draws the data flow; docs/architecture.md section 21 follows a clip through it.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import prompts
from .bundle.folder import CARD
from .bundle.official_names import OfficialTensors
from .bundle.save import save_bundle
from .config import FRAMES, WINDOW_SAMPLES, WINDOWS, NanoEmoXConfig
from .errors import CheckpointError, InputError
from .generation.answering import TaskRequest, check_lengths, generate_answers
from .generation.sampler import Sampler
from .generation.tokenizer import Tokenizer
from .media.clip import Clip
from .modules.encoded import AudioStream, Encoded, FaceStream, FusionStream, VisionStream
from .modules.language import LanguageModel
from .modules.parts import (
    AudioPart,
    BranchPart,
    FaceHeadPart,
    FacePart,
    FusionPart,
    LanguagePart,
    VisionPart,
)
from .modules.reference import reference_parts
from .modules.splice import splice_streams, without_placeholders
from .tasks import TASKS, Reply, Task, check_labels, get_task

_ENCODERS = ("vision", "audio", "face")


def reference_language(model: "NanoEmoX") -> LanguageModel:
    """The language model of a reference model: Hugging Face's, which trains, merges adapters and ties its
    head.
    """
    language = model.language
    if not isinstance(language, LanguageModel):
        raise TypeError(f"the reference language model is needed here, got {type(language).__name__}")
    return language


class NanoEmoX(nn.Module):
    """Nano-EmoX: `answer` one task about a clip, `answer_all` six, `encode` a clip, `save` a bundle.

    Built from a configuration it is the reference with random weights, also on the meta device;
    `nanoemox.load` gives one with the weights of a bundle. The reference trains; the fast form is for
    inference.

    Attributes:
        config: sizes of all parts.
        tokenizer: of the bundle, None in a model that was built from a configuration alone.
        templates: the words of the prompt.
        source: folder of the bundle that it was loaded from, or None.
        fast: whether this is the accelerated form.
        quantize: form of the language model's weights: None, "int8" or "int4".

    Source: docs/architecture.md sections 1 to 12.
    """

    vision: VisionPart
    audio: AudioPart
    face: FacePart
    face_head: FaceHeadPart
    video_branch: BranchPart
    audio_branch: BranchPart
    fusion: FusionPart
    language: LanguagePart

    def __init__(self, config: NanoEmoXConfig, parts: dict[str, nn.Module] | None = None):
        """parts: the eight parts by name; left out, the reference parts with random weights."""
        super().__init__()
        self.config = config
        for name, part in (reference_parts(config) if parts is None else parts).items():
            self.add_module(name, part)
        self.tokenizer: Tokenizer | None = None
        self.templates = prompts.Templates()
        self.source: Path | None = None
        self.fast = False
        self.quantize: str | None = None
        self.train(False)

    def train(self, mode: bool = True) -> "NanoEmoX":
        """Set the training mode. The encoders are frozen and stay in eval mode, stochastic depth included."""
        super().train(mode)
        for name in _ENCODERS:
            self.get_submodule(name).eval()
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
        """Encode tensors; either stream may be None.

        Args:
            frames: [B,T,3,H,W], values 0 to 255, any dtype.
            audio: [B,T,samples], 16 kHz, T windows.

        Returns:
            Tokens, gates, attention and features. The fusion needs both streams.
        """
        vision = None if frames is None else self._encode_vision(frames)
        face = None if frames is None else self._encode_face(frames)
        sound = None if audio is None else self._encode_audio(audio)
        visual = None if vision is None else self._project_visual(vision)
        fusion = None if vision is None or sound is None else self._fuse(sound, vision)
        return Encoded.of(vision, visual, sound, face, fusion)

    def _encode_vision(self, frames: Tensor) -> VisionStream:
        features, taps = self.vision(frames)
        return VisionStream(features, taps)

    def _project_visual(self, vision: VisionStream) -> Tensor:
        return self.video_branch(vision.features)

    def _encode_face(self, frames: Tensor) -> FaceStream:
        features = self.face(frames)
        tokens, attention = self.face_head(features)
        return FaceStream(features, tokens, attention)

    def _encode_audio(self, audio: Tensor) -> AudioStream:
        features, taps = self.audio(audio)
        tokens = self.audio_branch(features)
        return AudioStream(features, taps, tokens)

    def _fuse(self, audio: AudioStream, vision: VisionStream) -> FusionStream:
        tokens, gates = self.fusion(audio.features, audio.taps, vision.features, vision.taps)
        return FusionStream(tokens, gates)

    @torch.inference_mode()
    def encode(self, clips: Clip | Sequence[Clip]) -> Encoded:
        """Encode one clip or a batch.

        Args:
            clips: with `frames` uint8 [8,3,224,224] and `audio` float32 [8,32000], either may be None; all
                clips of a batch hold the same streams.

        Returns:
            The streams of B clips, also of one (B = 1).

        Raises:
            InputError: clips with different streams, or arrays of another shape.
        """
        batch = [clips] if isinstance(clips, Clip) else list(clips)
        size = self.config.vision.image_size
        frames = self._stack("frames", [clip.frames for clip in batch], (FRAMES, 3, size, size))
        audio = self._stack("audio", [clip.audio for clip in batch], (WINDOWS, WINDOW_SAMPLES))
        return self.encode_streams(frames, audio)

    def _stack(self, name: str, arrays: list[Any], shape: tuple[int, ...]) -> Tensor | None:
        """One stream of a batch on the model's device, each array of at least `shape`; None where all are
        None.
        """
        tensors = [torch.as_tensor(array) for array in arrays if array is not None]
        if not tensors:
            return None
        if len(tensors) < len(arrays):
            raise InputError(
                f"some clips of the batch have no {name}: encode clips with the same streams together"
            )
        for tensor in tensors:
            if tuple(tensor.shape[: len(shape)]) != shape:
                raise InputError(f"{name} must start with the shape {list(shape)}, got {list(tensor.shape)}")
        return torch.stack(tensors).to(self.device)

    def splice(self, ids: Tensor, encoded: Encoded) -> Tensor:
        """Embed a prompt and put the streams' tokens in the place of their placeholders.

        Args:
            ids: [B,L], placeholders included.
            encoded: streams of B clips.

        Returns:
            [B,L,W] in the dtype of the embedding.

        Raises:
            InputError: the prompt shows a stream that the clip does not have, or the placeholders of a stream
                do not occur exactly as often as it has tokens, one after the other (docs/architecture.md
                section 11).
            CheckpointError: the model has no tokenizer.
        """
        placeholders = self._required_tokenizer().placeholder_ids
        embeds = self.language.embed(without_placeholders(ids, placeholders))
        return splice_streams(embeds, ids, encoded, placeholders, self.token_counts)

    def _required_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CheckpointError("the model has no tokenizer: load it from a bundle with nanoemox.load")
        return self.tokenizer

    def prompt_ids(
        self,
        clip: Clip,
        task: str | Task = "mer",
        *,
        question: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> list[int]:
        """Token ids of the prompt for a clip, bos first (docs/architecture.md section 10)."""
        tokenizer = self._required_tokenizer()
        task = get_task(task) if isinstance(task, str) else task
        modalities = prompts.modality_set(
            frames=clip.frames is not None, audio=clip.audio is not None, subtitle=bool(clip.subtitle)
        )
        if question is None:
            question = task.ask(labels, self.templates.questions.get(task.name))
        segments = prompts.build(
            modalities, subtitle=clip.subtitle, question=question, templates=self.templates
        )
        return [tokenizer.bos_id, *prompts.tokenize(segments, tokenizer, self.token_counts)]

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
            clip: of `nanoemox.read_clip`, or built from arrays; a stream that is None is left out of the
                prompt.
            task: msa, mer, ov-mer, eri, mir or erg.
            question: replaces the task's question; the answer is still read as the task's.
            max_new_tokens: at least 1; default by task, 32 to 512.
            temperature: 0 is greedy; above it, a draw from the `top_k` likeliest tokens within `top_p`.
            top_p: share of the probability that is drawn from, in (0, 1].
            top_k: number of tokens that are drawn from; 0: all.
            seed: of the draws; None: a new one each time.
            stream: called with pieces of the text as they appear.
            labels: replaces the candidates of a task that has them (mer, msa, mir).
            cancelled: called between tokens; once it returns True the answer ends, `finish` is "cancelled".

        Returns:
            Text, labels, reply and chain as the task has them, gates, attention, seconds of each stage.

        Raises:
            UsageError: a task, limit or sampling option that does not exist or is out of range.
            InputError: a clip of other shapes or with nothing in it, a prompt that is too long, or outputs
                that are not finite numbers.
            CheckpointError: the model has no tokenizer.

        Source: docs/architecture.md sections 10 and 12, docs/tasks.md section 3.
        """
        sampler = Sampler(temperature, top_p, seed, top_k)
        request = TaskRequest(get_task(task), question, check_labels(labels), max_new_tokens, sampler)
        (reply,) = self._answer_tasks(clip, [request], stream, cancelled)
        return reply

    def answer_all(
        self,
        clip: Clip,
        *,
        max_new_tokens: int | None = None,
        labels: dict[str, Sequence[str]] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Reply]:
        """Answer all six tasks about one clip, greedily.

        The encoders run once, what the prompts share is read once, and the answers are decoded as one batch.

        Args:
            clip: as for `answer`.
            max_new_tokens: of every answer; default by task.
            labels: candidates by task, in place of the task's own.
            cancelled: as for `answer`; it ends all answers.

        Returns:
            Task name -> reply; `seconds` of a reply run until it was complete.

        Raises:
            As `answer` does.
        """
        candidates = {get_task(name).name: check_labels(names) for name, names in (labels or {}).items()}
        requests = [
            TaskRequest(task, None, candidates.get(task.name), max_new_tokens) for task in TASKS.values()
        ]
        return {reply.task: reply for reply in self._answer_tasks(clip, requests, None, cancelled)}

    @torch.inference_mode()
    def _answer_tasks(
        self,
        clip: Clip,
        tasks: list[TaskRequest],
        stream: Callable[[str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Reply]:
        """Answer several tasks about one clip; `stream` gets the text of the first."""
        limits = [task.limit for task in tasks]
        started = time.perf_counter()
        encoded = self.encode(clip)
        self._synchronize()
        seconds = {"read": clip.read_seconds, "encode": time.perf_counter() - started}

        prompt_ids = [
            self.prompt_ids(clip, task.task, question=task.question, labels=task.labels) for task in tasks
        ]
        check_lengths(prompt_ids, limits, self.config.language.max_positions)
        embeds = [self.splice(torch.tensor([ids], device=self.device), encoded)[0] for ids in prompt_ids]
        tokenizer = self._required_tokenizer()
        results = generate_answers(
            self.language, tokenizer, tasks, prompt_ids, embeds, stream=stream, cancelled=cancelled
        )
        gates, attention = encoded.gates, encoded.face_attention
        return [
            task.reply(
                tokens,
                tokenizer,
                modalities=clip.modalities,
                gates=None if gates is None else gates[0].tolist(),
                face_attention=None if attention is None else attention[0].tolist(),
                seconds=seconds,
            )
            for task, tokens in zip(tasks, results, strict=True)
        ]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def save(self, folder: str | Path) -> None:
        """Write a bundle; `nanoemox.load(folder)` gives identical outputs.

        Args:
            folder: absent, empty, or an older bundle, which is replaced whole.

        Raises:
            CheckpointError: the model has no tokenizer, or the folder holds something else or cannot be
                written.
        """
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
