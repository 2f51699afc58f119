"""The LoRAs that ship with Recast, with which a shipped model samples in four steps.

`worlds/training/few_steps.py` trains them. This module only says which models have one.
"""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from recast.networks.settings import LoRAFile, NetworkSettings

_ASSETS = Path(__file__).parents[1] / "assets"
FILES = {
    "shapes@4steps": _ASSETS / "shapes-4steps" / "pytorch_lora_weights.safetensors",
    "shapes-dit@4steps": _ASSETS / "shapes-dit-4steps" / "pytorch_lora_weights.safetensors",
    "menagerie-dit@4steps": _ASSETS / "menagerie-dit-4steps" / "pytorch_lora_weights.safetensors",
}
"""The name of a model with its LoRA -> the file of the LoRA."""
STEPS = 4
GUIDANCE_SCALE = 1.0
"""The LoRAs learned what a guidance scale adds. 1 means none."""
_Settings = TypeVar("_Settings", bound=NetworkSettings)


def with_lora(source: str, settings: _Settings) -> _Settings:
    """The settings of a model under this name: its LoRA, if one ships for it, and then the user's
    own."""
    if source not in FILES:
        return settings
    return replace(settings, lora=(LoRAFile(str(FILES[source])), *settings.lora))
