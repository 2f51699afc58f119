"""Show-1 in pixel space: the keyframe model, and the stages of its cascade that are available.

A model is a folder in the layout of `showlab/show-1-base`: Show-1's own UNet3DConditionModel, a T5
text encoder and a scheduler. There is no VAE: the latents are the pixels. The same folder may hold
the stages that follow the keyframes as `interpolation`, `sr1` and `sr1_image`, each in its released
layout. `sr1_image` is DeepFloyd's IF-II-L, which Show-1 uses for the first frame. Show-1's last
stage, super-resolution in latent space, is not implemented. Owns how the parts are loaded and how
the network is called. Knows no method.

The released code and copies of show-1-base's configs confirm the layers and names of the network
(its file of 6.91 GB has the size of these weights), the channels of every stage, steps and guidance
scales, T5 with 77 tokens of the lower-case prompt, and noise prediction on a cosine schedule. Not
confirmed are the configs of the networks of interpolation and sr1, which we have never seen; they
are read from the folder. Nothing has been run with the released weights. The released sampler is
DPM-Solver++ with dynamic thresholding. Here methods sample keyframes by DDIM without thresholding,
and the cascade samples by DDIM with thresholding.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.backbones.show1.cascade import (
    INTERPOLATION_FACTOR,
    STAGE_SETTINGS,
    Cascade,
    Stage,
    StageName,
)
from recast.backbones.show1.network import UNet3DConditionModel, check_config
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.events import Event, job
from recast.networks import checkpoint_loading, unet_roles
from recast.networks import tiny as tiny_networks
from recast.networks.latent_layout import LatentLayout
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import open_folder, read_scheduler, take_parts
from recast.networks.placement import ModelPlacement
from recast.networks.text_encoder import T5Text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {"show1": "showlab/show-1-base", "show1-cascade": "showlab/show-1-base"}
DESCRIPTIONS = {
    "show1": "Show-1 in pixel space, its first network alone: 8 frames of 64x40",
    "show1-cascade": "Show-1 with the networks that add frames and pixels",
}
PIPELINES = frozenset({"TextToVideoIFPipeline"})
_STAGE_PIPELINES: Mapping[StageName, frozenset[str]] = {
    "interpolation": frozenset({"TextToVideoIFInterpPipeline"}),
    "sr1": frozenset({"TextToVideoIFSuperResolutionPipeline_Cond"}),
    "sr1_image": frozenset({"IFSuperResolutionPipeline"}),
}
# DeepFloyd's model is not listed, because its licence must be accepted before a download.
_STAGE_IDS: Mapping[StageName, str] = {
    "interpolation": "showlab/show-1-interpolation",
    "sr1": "showlab/show-1-sr1",
}
_CLASSES = {
    "unet": UNet3DConditionModel,
    "text_encoder": T5EncoderModel,
    "tokenizer": T5Tokenizer,
}
_STAGE_PARTS = ("unet", "scheduler", "image_noising_scheduler")
_TEXT_LENGTH = 77
"""The number of text tokens, which Show-1 takes over from DeepFloyd-IF."""

_DEFAULTS = Defaults(frames=8, height=40, width=64, fps=2.0, steps=75, guidance_scale=9.0)
# The values in the scheduler's config of show-1-base that determine how noise is added and
# predicted.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "lambda_min_clipped": -5.1,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    folder = open_folder(source, settings, ALIASES, PIPELINES, download=("scheduler", *_CLASSES))
    defaults = Defaults.of_card(folder.card) or _DEFAULTS
    check_config(checkpoint_loading.read_json(folder.path / "unet" / "config.json"), 3)
    paths = _stage_folders(source, folder.path)
    for name, path in paths.items():
        _check_stage(name, path)
    parts = folder.parts(_CLASSES)
    stages = {name: _stage(name, path, folder.dtype) for name, path in paths.items()}
    return Show1(parts, defaults, settings, stages)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded TextToVideoIFPipeline, as `recast.wrap` does."""
    check_config(pipeline.unet.config, 3)
    return Show1(take_parts(pipeline, _CLASSES), _DEFAULTS, settings)


def tiny() -> Backbone:
    """A random model of the same classes with all four resolutions, for tests on a CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet3DConditionModel(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=32,
            encoder_hid_dim=16,
            addition_embed_type_num_heads=4,
            time_embedding_act_fn="gelu",
        )
        text_encoder, tokenizer = tiny_networks.t5(16)
        tiny_networks.add_noise(unet)
    parts = ModelParts(
        name="tiny-show1",
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=4, height=16, width=16, fps=2.0, steps=2, guidance_scale=3.0)
    return Show1(parts, defaults, Settings(device="cpu"))


@final
class Show1(Backbone):
    """A Show-1 model. Create it with `load`, `wrap` or `tiny`."""

    def __init__(
        self,
        parts: ModelParts,
        defaults: Defaults,
        settings: Settings,
        stages: Mapping[StageName, Stage] = MappingProxyType({}),
    ) -> None:
        unet = parts.unet
        self.parts, self._stages = parts, stages
        networks = [*parts.networks, *(stage.unet for stage in stages.values())]
        self._placement = ModelPlacement(networks, parts.device, settings)
        self._text = T5Text(
            parts,
            self._placement,
            length=_TEXT_LENGTH,
            attend_to_padding=False,
            zero_padding=False,
            clean=_clean,
        )
        resolutions = len(list(unet.get_submodule("down_blocks").children()))
        super().__init__(
            settings,
            name=parts.name,
            network=unet,
            schedule=from_diffusers(parts.scheduler),
            defaults=defaults,
            # The latents are the pixels, and every down block except the last halves the size.
            layout=LatentLayout(channels=3, multiples=(2 ** (resolutions - 1),) * 2),
            device=parts.device,
            roles=unet_roles.roles(unet),
            transformers=unet_roles.transformers(unet),
            fingerprint=checkpoint_loading.fingerprint(unet),
            frame_multiplier=INTERPOLATION_FACTOR if "interpolation" in stages else 1,
            cascade=Show1._run_cascade if stages else None,
        )

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        return video.to(device=self.device, dtype=torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        """The keyframes, which are the latents. `finish` runs the cascade on them."""
        return latents.clamp(-1, 1)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        states = self._text.encode(prompts).states
        return Conditioning(text=states.to(_dtype(self.network)))

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        # The second half of the output channels is the variance for DDPM sampling.
        return self._call(self.network, x, t, conditioning, None)[:, : x.shape[1]]

    @job
    def _run_cascade(
        self, keyframes: Tensor, prompt: str, seed: int
    ) -> Generator[Event, None, Tensor]:
        """Run the loaded stages on keyframes (1, 3, F, H, W). The negative prompt is empty."""
        cascade = Cascade(
            stages=self._stages,
            conditioning=self.encode_text(["", prompt]),
            seed=seed,
            call=self._call_and_count,
        )
        return (yield from cascade.run(keyframes))

    def _call_and_count(
        self,
        network: nn.Module,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        level: Tensor | None,
    ) -> Tensor:
        self.nfe += len(x)
        return self._call(network, x, t, conditioning, level)

    def _call(
        self,
        network: nn.Module,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        level: Tensor | None,
    ) -> Tensor:
        """The raw output of one of the networks. `level` (B,) is the noise level of the input
        frames of a super-resolution stage; None for the other stages."""
        self._placement.activate(network)
        with self._placement.checkpointing(unet_roles.layers(network)):
            out = network(
                x.to(self.device, _dtype(network)),
                t.to(self.device, non_blocking=True),
                encoder_hidden_states=conditioning.text,
                class_labels=None if level is None else level.to(self.device),
                return_dict=False,
            )[0]
        return out.float()


class SingleFrameUNet(nn.Module):
    """DeepFloyd's network for images, with the interface of a network for clips of one frame."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, *args: Any, **named: Any) -> tuple[Tensor]:
        """The output (B, C', 1, H, W) for a sample (B, C, 1, H, W)."""
        return (self.unet(sample[:, :, 0], *args, **named)[0][:, :, None],)


def _clean(prompt: str) -> str:
    return prompt.lower().strip()


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _stage_folders(source: str, folder: Path) -> dict[StageName, Path]:
    """The folders of the stages: those inside the folder of the keyframe model or, for the alias of
    the cascade, of all stages that can be downloaded. Raises `BadModel`."""
    if source == "show1-cascade":
        find = checkpoint_loading.find_folder
        return {name: find(hub, _STAGE_PARTS) for name, hub in _STAGE_IDS.items()}
    folders = {name: folder / name for name in get_args(StageName) if (folder / name).is_dir()}
    if "sr1_image" in folders and "sr1" not in folders:
        raise BadModel(f"{folder} has sr1_image, which enlarges the first frame of sr1, but no sr1")
    return folders


def _check_stage(name: StageName, folder: Path) -> None:
    checkpoint_loading.check_index(folder, _STAGE_PIPELINES[name])
    read_scheduler(folder / "scheduler")
    if STAGE_SETTINGS[name].level is not None:
        read_scheduler(folder / "image_noising_scheduler")
    if name != "sr1_image":
        config = checkpoint_loading.read_json(folder / "unet" / "config.json")
        check_config(config, STAGE_SETTINGS[name].channels)


def _stage(name: StageName, folder: Path, dtype: torch.dtype) -> Stage:
    noisy = STAGE_SETTINGS[name].level is not None
    path = folder / "unet"
    return Stage(
        settings=STAGE_SETTINGS[name],
        unet=SingleFrameUNet(checkpoint_loading.network(UNet2DConditionModel, path, dtype))
        if name == "sr1_image"
        else checkpoint_loading.network(UNet3DConditionModel, path, dtype),
        scheduler=read_scheduler(folder / "scheduler"),
        noising=read_scheduler(folder / "image_noising_scheduler") if noisy else None,
    )
