"""The transformers and attentions of a network, by the paths of their layers.

Owns the names with which a backbone tells an adapter where the layers are. It refuses to know
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
    """A module of a network and the attentions in it. The attentions of a temporal transformer are
    over frames, and their projections take (B·h·w, F, C)."""

    path: str
    attentions: tuple[Attention, ...]

    def linears(self, network: nn.Module) -> list[str]:
        """The paths of all its linear layers."""
        inside = network.get_submodule(self.path).named_modules(prefix=self.path)
        return [path for path, module in inside if isinstance(module, nn.Linear)]
