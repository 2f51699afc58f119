"""ControlNet: a network beside a UNet that reads a structure map of each frame.

Zhang, Rao, Agrawala: "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023. Its
outputs are added to the skip connections and to the middle block of the UNet. Owns how a ControlNet
is found and checked, and how its outputs are computed. It refuses to know what a map shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel
from einops import repeat
from torch import Tensor

from recast.errors import BadModel
from recast.networks import checkpoint_loading

PART = "controlnet"
"""The name of the part in diffusers' pipelines, and of its folder."""
_FILES = ("config.json", "*.safetensors", "*.bin")
_SHARED = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
"""The entries of the config that a ControlNet must share with the UNet."""
_PARTNERS = ("unet", "vae")


def find(source: Path | None, model: Path) -> Path | None:
    """The folder of the ControlNet for a model folder: that of `source`, which is a folder or a hub
    id, or else the one in the model's folder; None if there is neither.

    Only configs are read. Raises `BadModel` if there is no such folder, or if the ControlNet was
    made for another UNet or VAE.
    """
    if source is None:
        return model / PART if (model / PART / "config.json").is_file() else None
    path = checkpoint_loading.find_folder(source.as_posix(), _FILES)
    unet, vae = (checkpoint_loading.read_json(model / part / "config.json") for part in _PARTNERS)
    check(checkpoint_loading.read_json(path / "config.json"), unet, vae, str(source))
    return path


def check(
    config: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any], name: str
) -> None:
    """Raise `BadModel` unless the config of a ControlNet fits those of a UNet and of a VAE. `name`
    is what the message calls the ControlNet."""
    if config.get("_class_name", "ControlNetModel") != "ControlNetModel":
        raise BadModel(f"`control_net`: {name} is a {config['_class_name']}, not a ControlNetModel")
    if config.get("global_pool_conditions"):
        raise BadModel(f"`control_net`: {name} reads no structure, but the style of a whole image")
    own, other = (_with_defaults(one) for one in (config, unet))
    for entry in _SHARED:
        if own[entry] != other[entry]:
            raise BadModel(
                f"`control_net`: {name} has {entry} {own[entry]}, and the UNet of this model has "
                f"{other[entry]}; choose a ControlNet that was trained beside this model"
            )
    factor = 2 ** (len(config.get("conditioning_embedding_out_channels") or range(4)) - 1)
    latents = 2 ** (len(vae.get("block_out_channels") or range(4)) - 1)
    if factor != latents:
        raise BadModel(
            f"`control_net`: {name} reads maps of {factor} times the size of the latents, and the "
            f"VAE of this model needs {latents} times"
        )


def load_beside(source: Path, unet: Any, vae: Any) -> ControlNetModel:
    """Load the ControlNet of a folder or hub id for a loaded UNet and VAE, with the UNet's device
    and precision. Raises `BadModel` as `find` does, and for damaged weights."""
    path = checkpoint_loading.find_folder(source.as_posix(), _FILES)
    config = checkpoint_loading.read_json(path / "config.json")
    check(config, unet.config, vae.config, str(source))
    return checkpoint_loading.network(ControlNetModel, path, unet.dtype).to(unet.device)


def residuals(
    network: ControlNetModel,
    images: Tensor,
    t: Tensor,
    text: Tensor,
    structure: Tensor,
    scale: float,
) -> dict[str, Any]:
    """The arguments of the UNet with the outputs of a ControlNet, times `scale`.

    Images are x_t (B·F, C, h, w) with one text (B·F, N, C') each, and `structure` is
    (1, 3, F, H, W) or (B, 3, F, H, W) in [0, 1].
    """
    copies = len(images) // (len(structure) * structure.shape[2])
    maps = repeat(structure, "b c f h w -> (copies b f) c h w", copies=copies)
    down, middle = network(
        images,
        t,
        encoder_hidden_states=text,
        controlnet_cond=maps.to(images),
        conditioning_scale=scale,
        return_dict=False,
    )
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The shared entries of a config, with the defaults of Stable Diffusion's classes."""
    default = {
        "in_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 1280,
    }
    values = {entry: config.get(entry, default[entry]) for entry in _SHARED}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
