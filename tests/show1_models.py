"""Small Show-1 networks, and a folder of them in the layout of the released model."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from recast.backbones.show1 import backbone as show1
from recast.backbones.show1 import network as show1_network
from recast.networks import tiny as tiny_networks
from recast.networks.library_logging import quiet

from .model_folders import write_json

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
# The further numbers of the released configs, for diffusers' own model for images.
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


def network(**changes: Any) -> show1_network.UNet3DConditionModel:
    """A small network with noise in every weight, because new temporal layers end in zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = show1_network.UNet3DConditionModel(**SMALL | changes).eval()
        tiny_networks.add_noise(unet)
    return unet


def save(folder: Path) -> Path:
    """Write the tiny model with all its stages."""
    parts: Any = show1.tiny().parts
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
        write_json(folder / name / "model_index.json", {"_class_name": pipeline})
        write_json(folder / name / "scheduler/scheduler_config.json", parts.scheduler)
        unet.save_pretrained(folder / name / "unet")
        if name.startswith("sr1"):
            noising = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
            write_json(folder / name / "image_noising_scheduler/scheduler_config.json", noising)
    with quiet():
        parts.text_encoder.save_pretrained(folder / "text_encoder")
        parts.tokenizer.save_pretrained(folder / "tokenizer")
    return folder
