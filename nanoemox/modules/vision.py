"""CLIP's vision tower: class rows of hidden states as features and taps.

Source: docs/architecture.md section 2.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from ..config import VisionConfig


class VisionEncoder(nn.Module):
    """Hugging Face's CLIPVisionModel, of which row 0 of a few hidden states is read.

    features: hidden state `config.feature_layer`; taps: the hidden states `config.taps`, concatenated.
    """

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
            torch.tensor(values, device=frames.device).view(3, 1, 1)
            for values in (self.config.mean, self.config.std)
        )
        return (frames.to(torch.uint8).float() / 255 - mean) / std

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B,T,3,H,W] in 0..255 -> features [B,T,D], taps [B,T,L*D], in the dtype of the weights."""
        B, T = frames.shape[:2]
        size = self.config.image_size
        if frames.shape[2:] != (3, size, size):
            raise ValueError(f"want frames [B, T, 3, {size}, {size}], got {list(frames.shape)}")
        pixels = self.preprocess(frames.flatten(0, 1)).to(self.model.dtype)
        hidden_states = self.model(pixels, output_hidden_states=True).hidden_states
        features = hidden_states[self.config.feature_layer][:, 0]
        taps = torch.cat([hidden_states[number][:, 0] for number in self.config.taps], dim=-1)
        return features.unflatten(0, (B, T)), taps.unflatten(0, (B, T))
