"""The multi-scale fusion of three gated experts as one op on folded weights.

Source: docs/architecture.md sections 7 and 22.
"""

import torch
from torch import Tensor, nn

from nanoemox_kernels import ExpertFusionWeights, FoldedExpertFusion, expert_fusion, fold_expert_fusion

from ..config import FusionConfig
from .layers.tensor_store import Buffers, TensorStore

# Layers that all experts share, and the tensors of expert {}.
_SHARED = ("audio_proj", "visual_proj", "gate_mlp.0", "gate_mlp.3")
_EXPERT = (
    "cross_attns.{}.in_proj_weight",
    "cross_attns.{}.in_proj_bias",
    "cross_attns.{}.out_proj.weight",
    "cross_attns.{}.out_proj.bias",
    "ffns.{}.0.weight",
    "ffns.{}.0.bias",
    "ffns.{}.1.weight",
    "ffns.{}.1.bias",
    "ffns.{}.4.weight",
    "ffns.{}.4.bias",
)
_LEAVES = ("weight", "bias")


class FastFusion(nn.Module):
    """MultiscaleFusion on its official tensors."""

    def __init__(self, config: FusionConfig, weights: TensorStore, experts: int):
        """
        Args:
            config: sizes of the fusion.
            weights: all official tensors.
            experts: number of experts.
        """
        super().__init__()
        self.tokens, self.heads = config.tokens, config.heads
        fusion = weights.under("multi_multiscale_fusion.")
        tensors = {f"{name}.{leaf}": fusion.take(f"{name}.{leaf}") for name in _SHARED for leaf in _LEAVES}
        for name in _EXPERT:
            of_experts = [fusion.take(name.format(expert)) for expert in range(experts)]
            tensors[name.replace(".{}", "")] = torch.stack(of_experts)
        for leaf in _LEAVES:
            tensors[f"multi_llama_proj.{leaf}"] = weights.take(f"multi_llama_proj.{leaf}")
        fields = {name.replace(".", "_"): tensor for name, tensor in tensors.items()}
        self.folded = Buffers(fold_expert_fusion(ExpertFusionWeights(**fields)))

    def forward(
        self, audio: Tensor, audio_taps: Tensor, visual: Tensor, visual_taps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Fuse the taps of both encoders.

        Args:
            audio, visual: not used.
            audio_taps: [B,Ta,E*Da].
            visual_taps: [B,Tv,E*Dv].

        Returns:
            Tokens [B,n,width] in the dtype of the taps, and gates [B,E] in fp32.
        """
        weights = FoldedExpertFusion(*self.folded.buffers())
        token, gates, _ = expert_fusion(audio_taps, visual_taps, weights, heads=self.heads)
        return token.unsqueeze(1).expand(-1, self.tokens, -1), gates
