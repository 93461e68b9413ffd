"""Fused ops of Nano-EmoX as functions of tensors.

The import needs PyTorch only: no GPU, no Triton and no compiler.
"""

from ._library import status
from ._tuning import is_tuned, settings
from .ops.activation.op import gelu_, quick_gelu_
from .ops.attn import attn
from .ops.expert_fusion.op import expert_fusion
from .ops.expert_fusion.reference import ExpertFusionWeights, FoldedExpertFusion, fold_expert_fusion
from .ops.expert_gate.op import expert_gate
from .ops.feature_taps.op import Tap, feature_taps_, tap_pool_
from .ops.norm_act.op import conv_norm_act, norm_act
from .ops.temporal_xattn.op import temporal_xattn
from .ops.temporal_xattn.reference import FoldedTemporalXattn, TemporalXattnWeights, fold_temporal_xattn
from .ops.time_conv.op import time_conv
from .ops.window_attn.op import window_attn

__all__ = [
    "ExpertFusionWeights",
    "FoldedExpertFusion",
    "FoldedTemporalXattn",
    "Tap",
    "TemporalXattnWeights",
    "attn",
    "conv_norm_act",
    "expert_fusion",
    "expert_gate",
    "feature_taps_",
    "fold_expert_fusion",
    "fold_temporal_xattn",
    "gelu_",
    "is_tuned",
    "norm_act",
    "quick_gelu_",
    "settings",
    "status",
    "tap_pool_",
    "temporal_xattn",
    "time_conv",
    "window_attn",
]
