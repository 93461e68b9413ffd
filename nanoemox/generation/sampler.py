"""How the next token is chosen from the logits."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UsageError

_LEAST = 1e-30  # of temperature and top_p: less is nothing in fp32, and divides by nothing


@dataclass
class Sampler:
    """Greedy at temperature 0, else a draw from the `top_k` likeliest tokens (0: all), cut where they make up `top_p`.

    It draws on the CPU: a seed means the same on every device.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    _random: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"seed must be a 64-bit integer, got {self.seed}")
        self._random = torch.Generator()
        if self.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(self.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [B,V] -> ids [B]."""
        if self.temperature == 0:
            # NumPy, where it can: PyTorch's threads would go on spinning for milliseconds beside the decode engine's.
            if logits.device.type == "cpu" and logits.dtype == torch.float32:
                return torch.from_numpy(logits.detach().numpy().argmax(-1))
            return logits.argmax(-1)
        logits = logits.float()
        chances = ((logits - logits.amax(-1, keepdim=True)).cpu() / max(self.temperature, _LEAST)).softmax(-1)
        ranked, order = chances.sort(-1, descending=True)
        if self.top_k:
            ranked[:, self.top_k :] = 0
            ranked /= ranked.sum(-1, keepdim=True)
        ranked[ranked.cumsum(-1) - ranked >= max(self.top_p, _LEAST)] = 0  # the first token is always kept
        drawn = torch.multinomial(ranked, 1, generator=self._random)
        return order.gather(-1, drawn).squeeze(-1).to(logits.device)
