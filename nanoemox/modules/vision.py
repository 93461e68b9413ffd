"""CLIP's vision tower: CLS rows of one layer as features and of three layers as taps.

Source: docs/architecture.md section 2.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from ..config import VisionConfig


class VisionEncoder(nn.Module):
    """Hugging Face's CLIPVisionModel, of which hidden states are read and no pooled output."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.model = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.mlp_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act=config.activation,
                layer_norm_eps=config.layer_norm_eps,
            )
        )

    def preprocess(self, frames: Tensor) -> Tensor:
        """frames [N,3,H,W] in 0..255, truncated to whole grey levels -> normalised pixel values, fp32."""
        mean, std = (
            torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (self.config.mean, self.config.std)
        )
        return (frames.to(torch.uint8).float() / 255 - mean) / std

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B,T,3,H,W] in 0..255 -> features [B,T,D], taps [B,T,L*D]."""
        B, T = frames.shape[:2]
        size = self.config.image_size
        if frames.shape[2:] != (3, size, size):
            raise ValueError(f"want frames [B, T, 3, {size}, {size}], got {list(frames.shape)}")
        pixels = self.preprocess(frames.flatten(0, 1)).to(self.model.dtype)
        hidden = self.model(pixels, output_hidden_states=True).hidden_states
        taps = torch.cat([hidden[layer][:, 0] for layer in self.config.taps], dim=-1)
        return hidden[self.config.feature_layer][:, 0].unflatten(0, (B, T)), taps.unflatten(0, (B, T))
