"""Show-1 in pixel space: the keyframe model, and its cascade where that is there too.

`showlab/show-1-base` in its released layout: a UNet3DConditionModel of Show-1's own, a T5 text
encoder and a scheduler; no VAE, pixels are the latents. The stages after the keyframes lie in the
same folder as `interpolation`, `sr1` and `sr1_image`, each as released (the last is DeepFloyd's
IF-II-L, which Show-1 uses for the first frame). Owns how the parts are loaded and how the network
is called. Show-1's last stage, the super-resolution in latent space, is not here.

Established from the released code and from copies of show-1-base's configs: the layers and names of
the network (its file of 6.91 GB has the size of these weights), the channels of every stage, steps
and guidance, T5 with 77 tokens of the lower-case prompt, and noise prediction on a cosine schedule.
Not established: the configs of the networks of interpolation and sr1, which are read from the
folder and which we have never seen. Nothing has been run with the released weights. The released
sampler, DPM-Solver++ with dynamic thresholding, is not the library's: methods sample keyframes by
DDIM without thresholding, and the cascade samples by DDIM with thresholding.
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
from recast.backbones.show1.cascade import BETWEEN, NUMBERS, Cascade, Name, Stage
from recast.backbones.show1.network import UNet3DConditionModel, check_config
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.events import Event, job
from recast.networks import checkpoint_loading, unet_roles
from recast.networks import tiny as tiny_networks
from recast.networks.latent_layout import LatentLayout
from recast.networks.pipeline_parts import (
    ModelParts,
    open_folder,
    read_scheduler,
    take_parts,
)
from recast.networks.placement import ModelPlacement
from recast.networks.text_encoder import T5Text

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {"show1": "showlab/show-1-base", "show1-cascade": "showlab/show-1-base"}
PIPELINES = frozenset({"TextToVideoIFPipeline"})
_STAGE_PIPELINES: Mapping[Name, frozenset[str]] = {
    "interpolation": frozenset({"TextToVideoIFInterpPipeline"}),
    "sr1": frozenset({"TextToVideoIFSuperResolutionPipeline_Cond"}),
    "sr1_image": frozenset({"IFSuperResolutionPipeline"}),
}
# Without DeepFloyd's model, which may be downloaded only by those who have accepted its licence.
_STAGE_IDS: Mapping[Name, str] = {
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
"""The number of tokens with which DeepFloyd-IF was trained, whom Show-1 follows."""

_DEFAULTS = Defaults(frames=8, height=40, width=64, fps=2.0, steps=75, guidance_scale=9.0)
# The config of show-1-base, as far as it says how noise is added and predicted.
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
    """A random model of the same classes with all four levels, for tests on a CPU."""
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
    """See the module. Construct it with `load`, `wrap` or `tiny`."""

    def __init__(
        self,
        parts: ModelParts,
        defaults: Defaults,
        settings: Settings,
        stages: Mapping[Name, Stage] = MappingProxyType({}),
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
        levels = len(list(unet.get_submodule("down_blocks").children()))
        super().__init__(
            settings,
            name=parts.name,
            network=unet,
            schedule=from_diffusers(parts.scheduler),
            defaults=defaults,
            # Pixels are the latents, and every level of the UNet but the last halves them.
            layout=LatentLayout(channels=3, multiples=(2 ** (levels - 1),) * 2),
            device=parts.device,
            roles=unet_roles.roles(unet),
            transformers=unet_roles.transformers(unet),
            fingerprint=checkpoint_loading.fingerprint(unet),
            frame_multiplier=BETWEEN if "interpolation" in stages else 1,
            cascade=Show1._run_cascade if stages else None,
        )

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        return video.to(device=self.device, dtype=torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        """The keyframes themselves; `finish` takes them through the cascade."""
        return latents.clamp(-1, 1)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        states = self._text.encode(prompts).states
        return Conditioning(text=states.to(_dtype(self.network)))

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        # The other half of the channels is the variance with which DDPM would sample.
        return self._call(self.network, x, t, conditioning, None)[:, : x.shape[1]]

    @job
    def _run_cascade(
        self, keyframes: Tensor, prompt: str, seed: int
    ) -> Generator[Event, None, Tensor]:
        """The keyframes through the stages that were loaded, under the prompt alone."""
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
        """The raw output of a network of the model; `level` (B,) is the noise level of the frames
        that a super-resolution enlarges."""
        self._placement.activate(network)
        with self._placement.checkpointing(unet_roles.layers(network)):
            out = network(
                x.to(self.device, _dtype(network)),
                t.to(self.device),
                encoder_hidden_states=conditioning.text,
                class_labels=None if level is None else level.to(self.device),
                return_dict=False,
            )[0]
        return out.float()


class OneImage(nn.Module):
    """DeepFloyd's network for images, called as if it were one for clips of a single frame."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, *args: Any, **named: Any) -> tuple[Tensor]:
        """(B, C, 1, H, W) to the same shape."""
        return (self.unet(sample[:, :, 0], *args, **named)[0][:, :, None],)


def _clean(prompt: str) -> str:
    return prompt.lower().strip()


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _stage_folders(source: str, folder: Path) -> dict[Name, Path]:
    """The stages in the folder of the keyframe model or, for the alias of the cascade, all stages
    that can be downloaded."""
    if source == "show1-cascade":
        find = checkpoint_loading.find_folder
        return {name: find(hub, _STAGE_PARTS) for name, hub in _STAGE_IDS.items()}
    there = {name: folder / name for name in get_args(Name) if (folder / name).is_dir()}
    if "sr1_image" in there and "sr1" not in there:
        raise BadModel(f"{folder} has sr1_image, for the first frame of sr1, and no sr1")
    return there


def _check_stage(name: Name, folder: Path) -> None:
    checkpoint_loading.check_index(folder, _STAGE_PIPELINES[name])
    read_scheduler(folder / "scheduler")
    if NUMBERS[name].level is not None:
        read_scheduler(folder / "image_noising_scheduler")
    if name != "sr1_image":
        config = checkpoint_loading.read_json(folder / "unet" / "config.json")
        check_config(config, NUMBERS[name].channels)


def _stage(name: Name, folder: Path, dtype: torch.dtype) -> Stage:
    noisy = NUMBERS[name].level is not None
    path = folder / "unet"
    return Stage(
        numbers=NUMBERS[name],
        unet=OneImage(checkpoint_loading.network(UNet2DConditionModel, path, dtype))
        if name == "sr1_image"
        else checkpoint_loading.network(UNet3DConditionModel, path, dtype),
        scheduler=read_scheduler(folder / "scheduler"),
        noising=read_scheduler(folder / "image_noising_scheduler") if noisy else None,
    )
