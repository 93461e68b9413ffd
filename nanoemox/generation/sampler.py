"""How the next token is chosen from the logits."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UsageError

_MINIMUM = 1e-30  # of temperature and top_p: in fp32, less would be zero


@dataclass
class Sampler:
    """Chooses the next token: the likeliest one at temperature 0, else a random one.

    It samples on the CPU, so that a seed gives the same tokens on every device.

    Attributes:
        temperature: 0 is greedy; logits are divided by it.
        top_p: sample among the likeliest tokens that together have this probability, in (0, 1].
        seed: a 64-bit integer; None differs from run to run.
        top_k: sample among the `top_k` likeliest tokens; 0 is all.

    Raises:
        UsageError: a value that is out of range.
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
        """logits [B,V] -> ids int64 [B], on the device of the logits."""
        if self.temperature == 0:
            # NumPy where possible: PyTorch's threads would spin for milliseconds beside the decode engine's.
            if logits.device.type == "cpu" and logits.dtype == torch.float32:
                return torch.from_numpy(logits.detach().numpy().argmax(-1))
            return logits.argmax(-1)
        logits = logits.float()
        below_maximum = (logits - logits.amax(-1, keepdim=True)).cpu()
        probabilities = (below_maximum / max(self.temperature, _MINIMUM)).softmax(-1)
        ranked, order = probabilities.sort(-1, descending=True)
        if self.top_k:
            ranked[:, self.top_k :] = 0
            ranked /= ranked.sum(-1, keepdim=True)
        likelier = ranked.cumsum(-1) - ranked  # 0 for the first token, which is therefore always kept
        ranked[likelier >= max(self.top_p, _MINIMUM)] = 0
        ranks = torch.multinomial(ranked, 1, generator=self._random)
        return order.gather(-1, ranks).squeeze(-1).to(logits.device)
