"""UNet3D text-to-video models in diffusers' format: ZeroScope, ModelScope and the shipped `shapes`.

A model is a folder or hub id with a UNet3DConditionModel, an AutoencoderKL, a CLIP text encoder and
a DDPM-type scheduler. `LatentUNet` also runs AnimateDiff and Stable Diffusion, whose UNets have
other classes. Owns how the models are loaded and called. Knows no method.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.networks import (
    checkpoint_loading,
    control_net,
    diffusers_pipeline,
    few_step_lora,
    meta_model,
    unet_roles,
)
from recast.networks import tiny as tiny_networks
from recast.networks.feature_hooks import Tap, record
from recast.networks.latent_layout import LatentLayout
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import ModelFolder, PartClasses, open_folder, take_parts
from recast.networks.placement import ModelPlacement
from recast.networks.text_encoder import OPENCLIP_HUGE, ClipText
from recast.networks.vae import STABLE_DIFFUSION_VAE, ImageVae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ASSETS = Path(__file__).parents[1] / "assets"
SHAPES = _ASSETS / "shapes"
ALIASES = {
    "shapes": str(SHAPES),
    "shapes@4steps": str(SHAPES),
    "shapes@frames": str(SHAPES),
    "zeroscope": "cerspense/zeroscope_v2_576w",
    "modelscope": "damo-vilab/text-to-video-ms-1.7b",
}
DESCRIPTIONS = {
    "shapes": "Moving shapes, a small UNet of ZeroScope's kind; ships with Recast",
    "shapes@4steps": "The model shapes with a LoRA, by which it samples in four steps",
    "shapes@frames": "The weights of shapes as an image model: each frame passes through it alone",
    "zeroscope": "ZeroScope v2, the model of the DMT paper: 24 frames of 576x320",
    "modelscope": "ModelScope text-to-video: 16 frames of 256x256",
}
PIPELINES = frozenset({"TextToVideoSDPipeline"})
TAKES_CONTROL_NET = True
_CONTROL_NETS = {"shapes@frames": _ASSETS / "shapes-controlnet"}
"""Alias -> the ControlNet that ships for it, which is used if the settings name no other."""
_CLASSES = {
    "unet": UNet3DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}
# Name of the model's folder -> the numbers for which the model was trained.
_DEFAULTS = {
    "zeroscope_v2_576w": Defaults(
        frames=24, height=320, width=576, fps=8.0, steps=50, guidance_scale=10.0
    ),
    "text-to-video-ms-1.7b": Defaults(
        frames=16, height=256, width=256, fps=8.0, steps=50, guidance_scale=9.0
    ),
}
_CROSS_ATTENTION = re.compile(
    r"up_blocks\.(?P<block>\d+)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2"
)


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    settings = few_step_lora.with_lora(source, settings)
    folder = open_folder(source, settings, ALIASES, PIPELINES)
    defaults = Defaults.of_card(folder.card, few_steps=source in few_step_lora.FILES)
    if settings.control_net is None:
        settings = replace(settings, control_net=_CONTROL_NETS.get(source))
    parts = load_parts(folder, _CLASSES, settings)
    published = _DEFAULTS.get(Path(ALIASES.get(source, source)).name)
    defaults = defaults or published or _guess_defaults(parts)
    return LatentUNet(parts, defaults, settings, by_frame=source.endswith("@frames"))


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded TextToVideoSDPipeline, as `recast.wrap` does."""
    parts = wrap_parts(pipeline, _CLASSES, settings)
    return LatentUNet(parts, _DEFAULTS.get(parts.name) or _guess_defaults(parts), settings)


def sample_with_diffusers(backbone: LatentUNet, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The latents of a TextToVideoSDPipeline with DDIM. diffusers still has this pipeline, but no
    longer maintains it."""
    from diffusers import DDIMScheduler, TextToVideoSDPipeline

    parts = backbone.parts
    scheduler = DDIMScheduler.from_config({**parts.scheduler, "clip_sample": False})
    options = {**options, "latents": x.to(parts.unet.dtype)}
    return diffusers_pipeline.sampled_latents(parts, TextToVideoSDPipeline, scheduler, options)


def load_parts(folder: ModelFolder, classes: PartClasses, settings: Settings) -> ModelParts:
    """The parts of a model folder, with the ControlNet of the settings or of the folder."""
    path = control_net.find(settings.control_net, folder.path)
    if path is None:
        return folder.parts(classes)
    classes = {**classes, control_net.PART: ControlNetModel}
    return folder.parts(classes, elsewhere={control_net.PART: path})


def wrap_parts(pipeline: DiffusionPipeline, classes: PartClasses, settings: Settings) -> ModelParts:
    """The parts of a loaded pipeline, with the ControlNet of the settings or of the pipeline.
    Raises `BadModel` for several ControlNets."""
    parts = take_parts(pipeline, classes)
    network = getattr(pipeline, control_net.PART, None)
    if settings.control_net is not None:
        network = control_net.load_beside(settings.control_net, parts.unet, parts.vae)
    if network is not None and not isinstance(network, ControlNetModel):
        raise BadModel(f"the pipeline holds a {type(network).__name__}; give a single ControlNet")
    return replace(parts, controlnet=network)


def _guess_defaults(parts: ModelParts) -> Defaults:
    factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    side = int(parts.unet.config.sample_size or 32) * factor
    return Defaults(frames=16, height=side, width=side, fps=8.0, steps=50, guidance_scale=9.0)


@final
class LatentUNet(Backbone):
    """A UNet3D, AnimateDiff or Stable Diffusion model. Create it with `load`, `wrap` or `tiny`.

    With `by_frame`, each frame passes through the network alone, as through an image model. This is
    always so for Stable Diffusion, which is one.
    """

    def __init__(
        self, parts: ModelParts, defaults: Defaults, settings: Settings, *, by_frame: bool = False
    ) -> None:
        unet = parts.unet
        self._image_network = isinstance(unet, UNet2DConditionModel)
        self._by_frame = by_frame or self._image_network
        self.parts = parts
        self._placement = ModelPlacement(parts.networks, parts.device, settings)
        self._vae = ImageVae(
            parts.vae,
            self._placement,
            tiling=settings.vae_tiling,
            slicing=settings.vae_slicing,
        )
        self._text = ClipText(parts, self._placement)
        self._cross_attentions = _cross_attentions(unet)
        if meta_model.target_device(parts.device).type == "cpu":
            _use_plain_temporal_attention(unet)
        transformers = unet_roles.transformers(unet)
        super().__init__(
            settings,
            name=parts.name,
            network=unet,
            schedule=from_diffusers(parts.scheduler),
            defaults=defaults,
            layout=LatentLayout(
                channels=unet.config.in_channels,
                spatial_factor=self._vae.spatial_factor,
                # The length of AnimateDiff's table of temporal positions.
                max_frames=unet.config.get("motion_max_seq_length"),
            ),
            device=parts.device,
            roles=_without_time(unet_roles.roles(unet)) if by_frame else unet_roles.roles(unet),
            transformers=_without_time(transformers) if by_frame else transformers,
            fingerprint=checkpoint_loading.fingerprint(unet) + ("@frames" if by_frame else ""),
            word_attention=LatentUNet._attention if self._cross_attentions else None,
            token_spans=self._text.token_spans,
            control_net=(
                None
                if parts.controlnet is None
                else checkpoint_loading.fingerprint(parts.controlnet)
            ),
        )

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])  # the VAE would crop an unsuitable size silently
        return self._vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        return Conditioning(text=self._text.encode(prompts).states.to(self.parts.unet.dtype))

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        unet, text, frames = self.parts.unet, conditioning.text, x.shape[2]
        residuals = self._residuals(x, t, conditioning)
        self._placement.activate(unet)
        # AnimateDiff's UNet and one that sees single frames need a copy of the text for each frame.
        if self._by_frame or isinstance(unet, UNetMotionModel):
            text = text.repeat_interleave(frames, 0)
        if self._by_frame:
            x = rearrange(x, "b c f h w -> (b f) c h w")
            x = x if self._image_network else x[:, :, None]
        dtype = next(unet.parameters()).dtype  # `unet.dtype` walks through every module
        with self._placement.checkpointing(unet_roles.layers(unet)):
            out = unet(
                x.to(self.device, dtype),
                t.to(self.device, non_blocking=True),
                encoder_hidden_states=text,
                return_dict=False,
                **residuals,
            )[0]
        if self._by_frame:
            images = out if self._image_network else out[:, :, 0]
            out = rearrange(images, "(b f) c h w -> b c f h w", f=frames)
        return out.float()

    def _residuals(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """What the ControlNet adds to the UNet, as its arguments; empty without maps. The
        ControlNet sees each frame alone, as its authors trained it."""
        network, structure = self.parts.controlnet, conditioning.structure
        if network is None or structure is None:
            return {}
        self.layout.check_maps(structure.shape[2:], x.shape[2:])
        self._placement.activate(network)
        text = conditioning.text.repeat_interleave(x.shape[2], 0)
        images = rearrange(x, "b c f h w -> (b f) c h w")
        images = images.to(self.device, next(network.parameters()).dtype)
        maps = structure.to(self.device)
        return control_net.residuals(
            network,
            images,
            t.to(self.device, non_blocking=True),
            text,
            maps,
            conditioning.structure_scale,
        )

    @torch.no_grad()
    def _attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        """The mean over all heads of the cross-attentions of the last up block that has any. Its
        attention maps have the size of the latents."""
        unet, frames = self.parts.unet, x.shape[2]
        paths = self._cross_attentions
        taps = [
            Tap(f"{path}.{side}", unet_roles.tokens) for path in paths for side in ("to_q", "to_k")
        ]
        with record(unet, taps, frames, stop=True) as features:
            self.denoiser(self.encode_text([prompt]))(x, t)
        maps: list[Tensor] = []
        for path in paths:
            sizes = {"a": unet.get_submodule(path).heads}
            queries, keys = (
                rearrange(features[f"{path}.{side}"].float(), "1 f n 1 (a c) -> f a n c", **sizes)
                for side in ("to_q", "to_k")
            )
            maps.append((queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1).mean(1))
        tokens = rearrange(torch.stack(maps).mean(0), "f (h w) n -> f h w n", w=x.shape[-1])
        spans = self._text.token_spans(prompt)
        return torch.stack([tokens[..., span].mean(-1) for span in spans], -1)


def _without_time(roles: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The roles of layers within a frame."""
    return {role: layers for role, layers in roles.items() if "temporal" not in role}


def _cross_attentions(unet: nn.Module) -> list[str]:
    """The paths of the cross-attentions in the last up block that has any."""
    matches = [
        match for name, _ in unet.named_modules() if (match := _CROSS_ATTENTION.fullmatch(name))
    ]
    return [match[0] for match in matches if match["block"] == matches[-1]["block"]]


def _use_plain_temporal_attention(unet: UNet3DConditionModel | UNetMotionModel) -> None:
    """Replace the fused kernel of temporal attention on a CPU, where it takes 1.4 times as long for
    many sequences of a few frames (measured).

    A kernel that is not diffusers' default is left unchanged.
    """
    processors = dict(unet.attn_processors)
    for name, processor in processors.items():
        temporal = any(layers in name for layers in ("temp", "transformer_in", "motion_modules"))
        if temporal and type(processor) is AttnProcessor2_0:
            processors[name] = AttnProcessor()
    unet.set_attn_processor(processors)


# Data: the published models and a tiny model.


# The config of ZeroScope and ModelScope.
_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
# The values of both published configs that differ from the defaults of the classes. They suffice to
# predict the memory of a run before the model is downloaded.
_PUBLISHED = {
    checkpoint_loading.INDEX: {"_class_name": "TextToVideoSDPipeline"},
    "scheduler/scheduler_config.json": _SCHEDULER,
    "unet/config.json": {
        "_class_name": "UNet3DConditionModel",
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": 64,
    },
    "vae/config.json": STABLE_DIFFUSION_VAE,
    "text_encoder/config.json": OPENCLIP_HUGE,
}
PUBLISHED = dict.fromkeys(("zeroscope", "modelscope"), _PUBLISHED)


def tiny() -> Backbone:
    """A random model of the same classes with all four resolutions, for tests on a CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet3DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
            up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
            block_out_channels=(16, 16, 16, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        )
        vae = tiny_networks.image_vae(4)
        text_encoder, tokenizer = tiny_networks.clip_text(16)
        tiny_networks.add_noise(unet)
    parts = ModelParts(
        name="tiny-unet3d",
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=4, height=16, width=16, fps=8.0, steps=2, guidance_scale=3.0)
    return LatentUNet(parts, defaults, Settings(device="cpu"))
