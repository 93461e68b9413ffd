"""The part of the model that training runs and shards: branches, face head, fusion and language model, to one loss."""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import NanoEmoX
from ..modules.encoded import Encoded
from ..prompts import MODALITY_SETS
from .stages import group_of

_PARTS = ("video_branch", "audio_branch", "face_head", "fusion", "language")


class Learner(nn.Module):
    """Shares its parts with `model`; the encoders stay outside, so that no wrapper copies or shards them."""

    video_branch: Any
    audio_branch: Any
    face_head: Any
    fusion: Any
    language: Any

    def __init__(self, model: NanoEmoX, groups: Collection[str]):
        super().__init__()
        for name in _PARTS:
            self.add_module(name, getattr(model, name))
        self.model_of = lambda: model  # not a submodule
        self.groups = frozenset(groups)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(group_of(name) in self.groups)
        self.train()

    def train(self, mode: bool = True) -> "Learner":
        """What is frozen is in eval mode, dropout included (architecture section 19, A3)."""
        super().train(mode)
        for part, group in (("video_branch", "video"), ("audio_branch", "audio"), ("fusion", "fusion")):
            getattr(self, part).train(mode and group in self.groups)
        self.face_head.project.train(mode and "face_proj" in self.groups)
        self.face_head.attn.train(mode and "face_attention" in self.groups)
        for name, module in self.language.named_modules():
            if ".lora_dropout" in name:
                module.train(mode and "lora" in self.groups)
        return self

    def forward(
        self, features: dict[str, Tensor], ids: Tensor, labels: Tensor, mask: Tensor, modalities: str
    ) -> Tensor:
        """features name -> [B,T,D], ids, labels, mask [B,L] -> cross-entropy summed over the label tokens, fp32.

        Only the branches that the modality set shows are run, and only the rows that a label asks for are projected
        onto the vocabulary.
        """
        shown, out = set(MODALITY_SETS[modalities].streams), Encoded()
        if "frames" in shown:
            out.visual = self.video_branch(features["visual"])
        if "face" in shown:
            out.face, _ = self.face_head(features["face"])
        if "audio" in shown:
            out.speech = self.audio_branch(features["audio"])
        if "fusion" in shown:
            out.fusion, _ = self.fusion(
                *(features[name] for name in ("audio", "audio_taps", "visual", "visual_taps"))
            )
        embeds = self.model_of().splice(ids, out)
        base: Any = self.language.base
        hidden = base.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        wanted = labels[:, 1:]
        chosen = wanted != -100
        logits = base.lm_head(hidden[:, :-1][chosen])
        return F.cross_entropy(logits.float(), wanted[chosen], reduction="sum")

    def checkpoint_gradients(self) -> None:
        """Keep no activations inside the language model's layers; they are computed again in the backward pass."""
        base = self.language.base
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers makes the embeddings of a model with adapters require gradients, which re-entrant checkpoints
        # need; here they are written into, and what needs a gradient is what is written.
        if hasattr(base, "_require_grads_hook"):
            base.disable_input_require_grads()


def use_liger(model: NanoEmoX) -> None:
    """Liger's norm, rotary and SwiGLU kernels in the language model. Raises UsageError where they are not there."""
    from ..errors import UsageError

    if not torch.cuda.is_available():
        raise UsageError("liger: true needs a CUDA device")
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama, apply_liger_kernel_to_qwen2
    except ImportError as error:
        raise UsageError("liger: true needs the package liger-kernel: pip install liger-kernel") from error
    apply = {"qwen2": apply_liger_kernel_to_qwen2, "llama": apply_liger_kernel_to_llama}
    apply[model.config.language.model_type](
        rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False,
        model=model.language.base,
    )  # fmt: skip
