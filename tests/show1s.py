"""Small Show-1 networks and a folder of them as released, for the tests of `show1`."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from recast.backbones.base import Settings
from recast.backbones.show1 import backbone as show1
from recast.backbones.show1 import network as show1_network
from recast.backbones.show1.backbone import Show1
from recast.networks.library_logging import quiet

CPU = Settings(device="cpu", dtype="float32")
SMALL = {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "encoder_hid_dim": 16,
    "addition_embed_type_num_heads": 4,
    "time_embedding_act_fn": "gelu",
}
# What the released configs say beside, in diffusers' own model for images.
IMAGE = {
    "out_channels": 6,
    "act_fn": "gelu",
    "down_block_types": ("ResnetDownsampleBlock2D",) + 3 * ("SimpleCrossAttnDownBlock2D",),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": 3 * ("SimpleCrossAttnUpBlock2D",) + ("ResnetUpsampleBlock2D",),
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "resnet_time_scale_shift": "scale_shift",
}
LARGE = {
    "block_out_channels": (320, 640, 960, 1280),
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": 4096,
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(**changes: Any) -> show1_network.UNet3DConditionModel:
    """A small one with noise in every weight: fresh temporal layers end in zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = show1_network.UNet3DConditionModel(**SMALL | changes).eval()
        for weight in made.parameters():
            weight.data.add_(0.02 * torch.randn_like(weight))
    return made


def tiny() -> Show1:
    made = show1.tiny()
    assert isinstance(made, Show1)
    return made


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change(path: Path, **changes: Any) -> None:
    write(path, json.loads(path.read_text()) | changes)


def save(folder: Path) -> Path:
    """The tiny model with all stages, laid out as released."""
    parts = tiny()._parts
    image = UNet2DConditionModel(
        **SMALL | IMAGE | {"in_channels": 6, "class_embed_type": "timestep"}
    )
    stages = {
        ".": ("TextToVideoIFPipeline", parts.unet),
        "interpolation": ("TextToVideoIFInterpPipeline", network(in_channels=7)),
        "sr1": (
            "TextToVideoIFSuperResolutionPipeline_Cond",
            network(in_channels=6, class_embed_type="timestep"),
        ),
        "sr1_image": ("IFSuperResolutionPipeline", image),
    }
    for name, (pipeline, unet) in stages.items():
        write(folder / name / "model_index.json", {"_class_name": pipeline})
        write(folder / name / "scheduler/scheduler_config.json", show1._SCHEDULER)
        unet.save_pretrained(folder / name / "unet")
        if name.startswith("sr1"):
            noising = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
            write(folder / name / "image_noising_scheduler/scheduler_config.json", noising)
    with quiet():
        parts.text_encoder.save_pretrained(folder / "text_encoder")
        parts.tokenizer.save_pretrained(folder / "tokenizer")
    return folder
