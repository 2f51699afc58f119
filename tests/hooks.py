"""Traces that a context manager could leave on a network."""

from torch import nn


def hook_count(network: nn.Module) -> int:
    """The number of forward hooks and forward pre-hooks in a network."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()
    )


def replaced_forwards(network: nn.Module) -> list[str]:
    """The layers whose `forward` is set on the instance and so hides that of their class."""
    return [name for name, module in network.named_modules() if "forward" in module.__dict__]
