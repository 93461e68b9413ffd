"""The multi-scale fusion of three gated experts as one op on folded weights."""

import torch
from torch import Tensor, nn

from nanoemox_kernels import ExpertFusionWeights, FoldedExpertFusion, expert_fusion, fold_expert_fusion

from ..config import FusionConfig
from .layers.tensor_store import Buffers, TensorStore

_SHARED = ("audio_proj", "visual_proj", "gate_mlp.0", "gate_mlp.3")
_EXPERT = (
    "cross_attns.{}.in_proj_weight", "cross_attns.{}.in_proj_bias", "cross_attns.{}.out_proj.weight",
    "cross_attns.{}.out_proj.bias", "ffns.{}.0.weight", "ffns.{}.0.bias", "ffns.{}.1.weight", "ffns.{}.1.bias",
    "ffns.{}.4.weight", "ffns.{}.4.bias",
)  # fmt: skip


class FastFusion(nn.Module):
    """MultiscaleFusion on its official tensors."""

    def __init__(self, config: FusionConfig, weights: TensorStore, experts: int):
        super().__init__()
        self.tokens, self.heads = config.tokens, config.heads
        fusion = weights.under("multi_multiscale_fusion.")
        raw = {
            f"{name}.{leaf}": fusion.take(f"{name}.{leaf}") for name in _SHARED for leaf in ("weight", "bias")
        }
        for name in _EXPERT:
            raw[name.replace(".{}", "")] = torch.stack([fusion.take(name.format(e)) for e in range(experts)])
        raw |= {
            f"multi_llama_proj.{leaf}": weights.take(f"multi_llama_proj.{leaf}")
            for leaf in ("weight", "bias")
        }
        official = ExpertFusionWeights(**{name.replace(".", "_"): tensor for name, tensor in raw.items()})
        self.folded = Buffers(fold_expert_fusion(official))

    def forward(
        self, audio: Tensor, audio_taps: Tensor, visual: Tensor, visual_taps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Taps [B,Ta,E*Da] and [B,Tv,E*Dv] -> tokens [B,n,width], gates [B,E] in fp32."""
        weights = FoldedExpertFusion(*self.folded.buffers())
        token, gates, _ = expert_fusion(audio_taps, visual_taps, weights, heads=self.heads)
        return token.unsqueeze(1).expand(-1, self.tokens, -1), gates
