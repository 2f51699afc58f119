"""The transformers and attentions of a network, described by the paths of their layers.

Owns the two types with which a backbone describes its layers to an adapter. It refuses to know
adapters and models.
"""

from typing import NamedTuple

from torch import nn


class Attention(NamedTuple):
    """One attention of a network: the paths of its linear projections."""

    query: str
    key: str
    value: str
    out: str


class Transformer(NamedTuple):
    """The path of a transformer in a network, and its attentions. Attention of a temporal
    transformer is over frames, and the inputs of its projections are (B·h·w, F, C)."""

    path: str
    attentions: tuple[Attention, ...]

    def linears(self, network: nn.Module) -> list[str]:
        """The paths of all linear layers of the transformer."""
        inside = network.get_submodule(self.path).named_modules(prefix=self.path)
        return [path for path, module in inside if isinstance(module, nn.Linear)]
