"""Environments of token tasks: embeddings, a head tied to them, and seeds in between, as ``torch.nn`` modules."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.modules import ActiveSlot, Environment, Residual, Role
from bench.workload import NetworkSpec


class Embedding(nn.Module):
    """Token plus position."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.ParameterList([torch.empty(length, width)])  # a child, because it comes after the tokens'

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> [B, T, D]."""
        return self.token(tokens) + self.position[0]


class TiedHead(nn.Module):
    """Layer norm, then scores by the embedding."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> logits [B, T, V]."""
        return self.scores(self.norm(x))


class CausalAttention(nn.Module):
    """Scaled dot-product attention of each position to itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(mixed.transpose(1, 2).flatten(2))


class TokenNorm(nn.Module):
    """x + tanh(scale) * (norm(x) - x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale = nn.ParameterList([torch.zeros(1)])  # a child, because it comes after the norm's parameters

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D]."""
        return torch.lerp(x, self.norm(x), torch.tanh(self.scale[0]))


def token_seed(name: str, width: int) -> nn.Module:
    """A blueprint at a site of ``width`` channels."""
    norm = nn.LayerNorm(width, elementwise_affine=False)
    match name:
        case "norm":
            return TokenNorm(width)
        case "lora" | "lora_large":
            rank = 8 if name == "lora" else 32
            return Residual(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))
        case "attention":
            return Residual(norm, CausalAttention(width, next(h for h in (4, 2, 1) if width % h == 0)))
        case "mlp_small" | "mlp":
            hidden = (2 if name == "mlp_small" else 4) * width
            return Residual(norm, nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
    raise ValueError(f"token_seed: blueprint {name!r} has no rendering here")


class TokenEnvironment(Environment):
    """A transformer without blocks of its own, and its active seeds behind the embeddings."""

    def make_host(self, structure: NetworkSpec) -> list[nn.Module]:
        """Embedding and head."""
        if len(structure.channels) > 1:
            raise ValueError(f"{structure.name}: a host of {len(structure.channels) - 1} blocks; expected embeddings")
        vocabulary, width = structure.num_classes, structure.channels[0]
        return [Embedding(vocabulary, structure.input_shape[0], width), TiedHead(vocabulary, width)]

    def make_slot(self, structure: NetworkSpec, slot: int, name: str, role: Role, as_leaf: bool) -> ActiveSlot:
        """A slot with a seed of a blueprint."""
        del as_leaf
        return ActiveSlot(token_seed(name, structure.channels[structure.slots[slot]]), role, False)

    def share(self) -> None:
        """The head scores by the embedding itself."""
        embedding, head = self.host
        head.scores.weight = embedding.token.weight

    def losses(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """The mean cross-entropy of a minibatch over all positions."""
        return [F.cross_entropy(self(inputs).flatten(0, 1), targets.flatten())]
