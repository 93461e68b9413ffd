"""The language model: Hugging Face's Qwen2 or Llama, with peft's LoRA until the adapters are merged.

Source: docs/architecture.md section 9.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ..config import LanguageConfig, LoRAConfig

KINDS: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def hugging_face_config(config: LanguageConfig) -> Any:
    """The same sizes in Hugging Face's words."""
    return KINDS[config.model_type][0](
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


class LanguageModel(nn.Module):
    """Hugging Face's language model behind the calls of `LanguagePart`:

    `embed`, `start`, `step`, `keep`, `end`.
    """

    def __init__(self, model: Any):
        """model:

        Hugging Face's Qwen2 or Llama for causal language modelling, or the same with peft's adapters.
        """
        super().__init__()
        self.model: Any = model

    @classmethod
    def from_config(cls, config: LanguageConfig, lora: LoRAConfig | None = None) -> "LanguageModel":
        """A model with random weights, its head tied where the configuration says so."""
        base = KINDS[config.model_type][1](hugging_face_config(config))
        language = cls(base if lora is None else with_lora(base, lora))
        language.tie()
        return language

    @property
    def base(self) -> Any:
        """The Hugging Face model under the adapters."""
        return self.model if not hasattr(self.model, "peft_config") else self.model.get_base_model()

    def tie(self) -> None:
        """Share the embedding with the output head, where the configuration says so."""
        if self.base.config.tie_word_embeddings:
            self.base.lm_head.weight = self.base.model.embed_tokens.weight

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> [...,hidden_size]."""
        return self.base.model.embed_tokens(ids)

    def start(
        self, prompts: Sequence[Tensor] | Tensor, shared: Tensor | None = None
    ) -> tuple[Tensor, list[Any]]:
        """Read prompts.

        Args:
            prompts: embedded, [L,hidden_size] each.
            shared: [P,hidden_size], what stands before every prompt, or None.

        Returns:
            Logits of the last positions [B,vocab], and the state for `step`: one cache for all prompts if
            they have the same length, else one a prompt.
        """
        rows = [prompt if shared is None else torch.cat([shared, prompt]) for prompt in prompts]
        same_length = len({len(row) for row in rows}) == 1
        batches = [torch.stack(rows)] if same_length else [row[None] for row in rows]
        logits, caches = [], []
        for embeds in batches:
            cache = DynamicCache(config=self.base.config)
            out = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits.append(out.logits[:, -1])
            caches.append(cache)
        return torch.cat(logits), caches

    def step(self, ids: Tensor, state: list[Any]) -> Tensor:
        """One more token of each sequence: ids [B] -> logits [B,vocab]."""
        logits = []
        for batch, cache in zip(ids.chunk(len(state)), state, strict=True):
            embeds = self.embed(batch[:, None])
            out = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
            logits.append(out.logits[:, -1])
        return torch.cat(logits)

    def keep(self, state: list[Any], rows: list[int]) -> None:
        """Go on with some of the sequences."""
        if len(state) == 1:
            state[0].batch_select_indices(torch.tensor(rows, device=self.base.device))
        else:
            state[:] = [state[row] for row in rows]

    def end(self, state: list[Any]) -> None:
        """The sequences are done."""
        state.clear()

    def forward(self, embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """All positions at once: embeds [B,L,hidden_size] -> logits [B,L,vocab]."""
        return self.model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).logits


def with_lora(base: nn.Module, lora: LoRAConfig) -> nn.Module:
    """The model with new adapters on the linear layers that `lora` names."""
    from peft import LoraConfig, get_peft_model  # slow to import, and a merged model has no use for it

    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="none",
    )
    with warnings.catch_warnings():
        # peft reads an attribute that transformers is renaming.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base, adapters, autocast_adapter_dtype=False)


def merge_lora(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A, in fp32, returned in the dtype of W. weight [out,in], a [rank,in], b [out,rank]."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale).to(weight.dtype)


def attention_sizes(config: Any) -> tuple[int, int, int]:
    """heads, kv_heads, head_size of Hugging Face's configuration."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, config.num_key_value_heads or heads, size
