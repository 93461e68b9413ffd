"""The trained part of the model: branches, face head, fusion and language model, and the loss."""

from collections.abc import Collection
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..model import NanoEmoX, reference_language
from ..modules.encoded import Encoded
from ..modules.face import FaceHead
from ..modules.language import LanguageModel
from ..prompts import MODALITY_SETS
from .collate import IGNORED
from .stages import group_of


class Learner(nn.Module):
    """The modules that training runs, and that accelerate wraps or shards.

    The modules are those of the model itself. The encoders are not among them, so that no wrapper replicates
    or shards them.

    Args:
        model: a reference model. Its parameters require a gradient if their group is trained.
        groups: trainable groups, keys of stages.GROUPS.
    """

    def __init__(self, model: NanoEmoX, groups: Collection[str]):
        super().__init__()
        self.video_branch: nn.Module = model.get_submodule("video_branch")
        self.audio_branch: nn.Module = model.get_submodule("audio_branch")
        self.face_head: FaceHead = cast(FaceHead, model.face_head)
        self.fusion: nn.Module = model.get_submodule("fusion")
        self.language: LanguageModel = reference_language(model)
        self._splice = model.splice  # a method, so that the model does not become a submodule
        self.groups = frozenset(groups)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(group_of(name) in self.groups)
        self.train()

    def train(self, mode: bool = True) -> "Learner":
        """Set training mode; frozen groups stay in eval mode (docs/training.md section 1)."""
        super().train(mode)
        self.video_branch.train(mode and "video" in self.groups)
        self.audio_branch.train(mode and "audio" in self.groups)
        self.fusion.train(mode and "fusion" in self.groups)
        self.face_head.project.train(mode and "face_proj" in self.groups)
        self.face_head.attn.train(mode and "face_attention" in self.groups)
        for name, module in self.language.named_modules():
            if ".lora_dropout" in name:
                module.train(mode and "lora" in self.groups)
        return self

    def forward(
        self, features: dict[str, Tensor], ids: Tensor, labels: Tensor, mask: Tensor, modalities: str
    ) -> Tensor:
        """Cross-entropy, summed over the label tokens (docs/architecture.md section 11).

        Only the branches that the modality set uses are run, and only positions with a label are projected
        onto the vocabulary.

        Args:
            features: name -> [B,T,D], as `Features.encode` names them.
            ids, labels, mask: [B,L], as `collate` returns them.
            modalities: a key of MODALITY_SETS.

        Returns:
            Scalar, fp32.
        """
        streams, encoded = set(MODALITY_SETS[modalities].streams), Encoded()
        if "frames" in streams:
            encoded.visual = self.video_branch(features["visual"])
        if "face" in streams:
            encoded.face, _ = self.face_head(features["face"])
        if "audio" in streams:
            encoded.speech = self.audio_branch(features["audio"])
        if "fusion" in streams:
            inputs = [features[name] for name in ("audio", "audio_taps", "visual", "visual_taps")]
            encoded.fusion, _ = self.fusion(*inputs)
        embeds = self._splice(ids, encoded)
        base: Any = self.language.base  # of Hugging Face or peft
        hidden = base.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        has_label = targets != IGNORED
        logits = base.lm_head(hidden[:, :-1][has_label])
        return F.cross_entropy(logits.float(), targets[has_label], reduction="sum")

    def checkpoint_gradients(self) -> None:
        """Recompute the activations inside the layers of the language model in the backward pass."""
        base: Any = self.language.base
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers makes the embeddings of a model with adapters require a gradient, for re-entrant
        # checkpoints. Here tokens of the streams are written into the embeddings, which that would forbid.
        if hasattr(base, "_require_grads_hook"):
            base.disable_input_require_grads()


def use_liger(model: NanoEmoX) -> None:
    """Use Liger's norm, rotary and SwiGLU kernels in the language model.

    Raises UsageError without CUDA, or if liger-kernel is not installed.
    """
    if not torch.cuda.is_available():
        raise UsageError("liger: true needs a CUDA device")
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama, apply_liger_kernel_to_qwen2
    except ImportError as error:
        raise UsageError("liger: true needs the package liger-kernel: pip install liger-kernel") from error
    apply = {"qwen2": apply_liger_kernel_to_qwen2, "llama": apply_liger_kernel_to_llama}
    apply[model.config.language.model_type](
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=reference_language(model).base,
    )
