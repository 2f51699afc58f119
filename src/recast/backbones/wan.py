"""Wan 2.1 and 2.2, `shapes-dit` and `menagerie-dit`: transformers for flow matching.

Wan Team: "Wan: Open and Advanced Large-Scale Video Generative Models" (2025). A model is a folder
or hub id in diffusers' format. It has a WanTransformer3DModel with cross-attention to its text, an
AutoencoderKLWan, which compresses four frames into one latent frame, UMT5, and a flow with a shift.
A clip has 4k + 1 frames. A14B of 2.2 has two transformers, its experts: one for the noisier levels
and one for the others. In place of Wan's VAE and text encoder a folder may have Stable Diffusion's
VAE, which encodes every frame separately, and CLIP.

Sampling is Euler, even if a folder names UniPC. TI2V-5B can read one time for each token; without
an image all these times are equal, so one time is passed. A VACE model also reads structure maps
and masks (`networks.vace`). Owns how the models are loaded and called. Knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5Tokenizer, UMT5EncoderModel

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadModel
from recast.networks import checkpoint_loading, diffusers_pipeline, dit_roles, few_step_lora
from recast.networks import tiny as tiny_networks
from recast.networks.latent_layout import LatentLayout
from recast.networks.model_parts import ModelParts
from recast.networks.pipeline_parts import open_folder, take_parts
from recast.networks.placement import ModelPlacement
from recast.networks.text_encoder import UMT5_XXL, ClipText, T5Text, clean_whitespace_and_html
from recast.networks.vace import VaceControl
from recast.networks.vae import ImageVae, WanVae

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ASSETS = Path(__file__).parents[1] / "assets"
SHAPES_DIT, MENAGERIE_DIT = _ASSETS / "shapes-dit", _ASSETS / "menagerie-dit"
ALIASES = {
    "shapes-dit": str(SHAPES_DIT),
    "shapes-dit@4steps": str(SHAPES_DIT),
    "menagerie-dit": str(MENAGERIE_DIT),
    "menagerie-dit@4steps": str(MENAGERIE_DIT),
    "wan": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "wan2.2-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "wan2.2-a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "vace": "Wan-AI/Wan2.1-VACE-1.3B-diffusers",
    "vace-14b": "Wan-AI/Wan2.1-VACE-14B-diffusers",
}
DESCRIPTIONS = {
    "shapes-dit": "Moving shapes, a small transformer of Wan's kind; ships with Recast",
    "shapes-dit@4steps": "The model shapes-dit with a LoRA, by which it samples in four steps",
    "menagerie-dit": "Animals and vehicles, a small transformer of Wan's kind; ships with Recast",
    "menagerie-dit@4steps": (
        "The model menagerie-dit with a LoRA, by which it samples in four steps"
    ),
    "wan": "Wan 2.1 with 1.3 billion weights: 81 frames of 832x480",
    "wan-14b": "Wan 2.1 with 14 billion weights: 81 frames of 832x480",
    "wan2.2-5b": "Wan 2.2 with 5 billion weights: 121 frames of 1280x704",
    "wan2.2-a14b": "Wan 2.2 with two experts of 14 billion weights: 81 frames of 1280x720",
    "vace": "Wan 2.1 VACE with 1.3 billion weights, which also follows structure maps",
    "vace-14b": "Wan 2.1 VACE with 14 billion weights, which also follows structure maps",
}
PIPELINES = frozenset({"WanPipeline", "WanVACEPipeline"})
_CLASSES: dict[str, type[Any]] = {
    "transformer": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
    "tokenizer": T5Tokenizer,
}
_TEXT_LENGTH = 512
# The numbers of the authors' configs. The folders of 2.1 have a shift of 3, which is meant for
# 480p, so these are the numbers for 480p.
_DEFAULTS = Defaults(frames=81, height=480, width=832, fps=16.0, steps=50, guidance_scale=5.0)
_5B_DEFAULTS = Defaults(frames=121, height=704, width=1280, fps=24.0, steps=50, guidance_scale=5.0)
_A14B_DEFAULTS = Defaults(frames=81, height=720, width=1280, fps=16.0, steps=40, guidance_scale=4.0)


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` for a damaged or other model."""
    settings = few_step_lora.with_lora(source, settings)
    folder = open_folder(source, settings, ALIASES, PIPELINES, gpu_dtype=torch.bfloat16)
    card = Defaults.of_card(folder.card, few_steps=source in few_step_lora.FILES)
    index = checkpoint_loading.read_json(folder.path / checkpoint_loading.INDEX)
    boundary = index.get("boundary_ratio")
    _check_experts((folder.path / "transformer_2").is_dir(), boundary)
    parts = folder.parts(
        _classes(folder.path, two=boundary is not None),
        # The documentation of diffusers advises float32 for Wan's VAE, which is small.
        float32=("vae",),
        boundary_ratio=boundary,
    )
    return Wan(parts, card or _defaults(parts), settings)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded WanPipeline or WanVACEPipeline, as `recast.wrap` does."""
    parts = take_parts(pipeline, _CLASSES | {"transformer_2": WanTransformer3DModel})
    _check_experts(parts.transformer_2 is not None, parts.boundary_ratio)
    return Wan(parts, _defaults(parts), settings)


def sample_with_diffusers(backbone: Wan, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The latents of a WanPipeline or WanVACEPipeline with Euler. WanPipeline knows only Wan's own
    text encoder and VAE; a model with others gives it encoded prompts and no VAE. WanVACEPipeline
    gets encoded prompts too, because its cleaning of texts needs one more library."""
    from diffusers import WanPipeline, WanVACEPipeline

    parts, more = backbone.parts, dict[str, Any]()
    pipeline: type[Any] = WanVACEPipeline
    if backbone.control_net is None:
        pipeline, more = WanPipeline, {"expand_timesteps": False}
    config = parts.scheduler
    scheduler = diffusers_pipeline.even_euler(config.get("flow_shift", config.get("shift", 1.0)))
    options = {**options, "latents": x}
    own_vae = isinstance(parts.vae, AutoencoderKLWan)
    if not own_vae:
        more |= {"vae": None}
        # The size of a clip follows from the noise, and the default passes the pipeline's check.
        del options["height"], options["width"]
    if not own_vae or pipeline is WanVACEPipeline:
        for name in ("prompt", "negative_prompt"):
            options[f"{name}_embeds"] = backbone.encode_text([options.pop(name)]).text
    return diffusers_pipeline.sampled_latents(parts, pipeline, scheduler, options, more)


def _classes(path: Path, *, two: bool) -> dict[str, type[Any]]:
    """The class of each part of a folder, with `two` transformers or one."""
    config = checkpoint_loading.read_json(path / "transformer" / "config.json")
    is_vace = config.get("_class_name") == WanVACETransformer3DModel.__name__
    kind = WanVACETransformer3DModel if is_vace else WanTransformer3DModel
    # The network that denoises is the first.
    classes = {"transformer": kind, **({"transformer_2": kind} if two else {})}
    classes |= {name: kind for name, kind in _CLASSES.items() if name not in classes}
    vae = checkpoint_loading.read_json(path / "vae" / "config.json")
    if vae.get("_class_name") == "AutoencoderKL":
        classes["vae"] = AutoencoderKL
    text = checkpoint_loading.read_json(path / "text_encoder" / "config.json")
    if text.get("model_type") == "clip_text_model":
        classes |= {"text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
    return classes


def _defaults(parts: ModelParts) -> Defaults:
    """The numbers for which a model was trained. They do not depend on the name of its folder: only
    A14B has two experts, and only TI2V-5B has latents with 48 channels."""
    if parts.transformer_2 is not None:
        return _A14B_DEFAULTS
    wide = parts.transformer.config.in_channels == _5B["in_channels"]
    return _5B_DEFAULTS if wide else _DEFAULTS


@final
class Wan(Backbone):
    """A Wan model. Create it with `load`, `wrap` or `tiny`.

    If the model has two experts, `network` holds both: "high" for the noisier levels, and "low".
    """

    def __init__(self, parts: ModelParts, defaults: Defaults, settings: Settings) -> None:
        self.parts, self._config = parts, parts.transformer.config
        network, prefixes = parts.transformer, [""]
        if parts.transformer_2 is not None:
            network = nn.ModuleDict({"high": parts.transformer, "low": parts.transformer_2})
            prefixes = ["high.", "low."]
        self._placement = ModelPlacement(parts.networks, parts.device, settings)
        self._vae, self._text = self._build_vae(settings), self._build_text_encoder()
        is_vace = isinstance(parts.transformer, WanVACETransformer3DModel)
        self._grid = dit_roles.TokenGrid()
        blocks, heads = {"blocks": self._config.num_layers}, self._config.num_attention_heads
        ropes = (f"{prefix}rope" for prefix in prefixes)
        factor, (_, *patch) = self._vae.spatial_factor, self._config.patch_size
        super().__init__(
            settings,
            name=parts.name,
            network=network,
            component="transformer",
            schedule=from_diffusers(parts.scheduler),
            defaults=defaults,
            layout=LatentLayout(
                channels=self._config.in_channels,
                spatial_factor=factor,
                multiples=(factor * patch[0], factor * patch[1]),
                frames_per_latent=self._vae.frames_per_latent,
            ),
            device=parts.device,
            roles={
                **dit_roles.roles(blocks, heads, self._grid, experts=prefixes),
                "positions": dit_roles.rotary(self._grid, *ropes),
            },
            fingerprint=(fingerprint := checkpoint_loading.fingerprint(network)),
            word_attention=Wan._attention,
            control_net=fingerprint if is_vace else None,
            reads_mask=is_vace,
        )
        self._vace = VaceControl(self._vae, self.layout) if is_vace else None

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        return self._vae.encode(video)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        # The transformer also attends to the padding, whose states are zero.
        states = self._text.encode(prompts).states
        return Conditioning(text=states.to(self.parts.transformer.dtype))

    def check_prompt(self, prompt: str) -> list[str]:
        return self._text.check(prompt)

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        x, more = x.to(self.device), {}
        if self._vace is not None:
            given = (conditioning.structure, conditioning.structure_scale, conditioning.kept)
            more = self._vace.arguments(self._expert(t), x, *given)
        transformer = self._placement.activate(self._expert(t))
        f, h, w = (
            side // patch for side, patch in zip(x.shape[2:], self._config.patch_size, strict=True)
        )
        self._grid.shape = (f, h, w)
        with self._placement.checkpointing(transformer.blocks):
            out = transformer(
                x.to(transformer.dtype),
                t.to(self.device, non_blocking=True).expand(len(x)),
                conditioning.text,
                return_dict=False,
                **more,
            )[0]
        return out.float()

    def _attention(self, x: Tensor, t: Tensor, prompt: str) -> Tensor:
        return dit_roles.word_attention(
            self._expert(self.schedule.network_time(t)),
            "blocks",
            self._grid,
            partial(self.denoiser(self.encode_text([prompt])), x, t),
            heads=self._config.num_attention_heads,
            token_spans=self._text.token_spans(prompt),
        )

    def _expert(self, t: Tensor) -> WanTransformer3DModel:
        """The transformer for time t, which has the unit of the network."""
        boundary = self.parts.boundary_ratio
        levels = float(self.parts.scheduler.get("num_train_timesteps", 1000))
        if boundary is None or float(t) >= boundary * levels:
            return self.parts.transformer
        return self.parts.transformer_2

    def _build_vae(self, settings: Settings) -> WanVae | ImageVae:
        vae, tiling = self.parts.vae, settings.vae_tiling
        if isinstance(vae, AutoencoderKL):
            return ImageVae(vae, self._placement, tiling=tiling, slicing=settings.vae_slicing)
        return WanVae(vae, self._placement, tiling=tiling)

    def _build_text_encoder(self) -> T5Text | ClipText:
        if isinstance(self.parts.text_encoder, CLIPTextModel):
            return ClipText(self.parts, self._placement)
        return T5Text(
            self.parts,
            self._placement,
            length=_TEXT_LENGTH,
            attend_to_padding=False,
            zero_padding=True,
            clean=clean_whitespace_and_html,
        )


def _check_experts(two: bool, boundary: float | None) -> None:
    if two != (boundary is not None):
        raise BadModel(
            "two transformers need a boundary_ratio, the noise level below which the second is "
            "used, and a single transformer must have none; this model has "
            f"{'a' if two else 'no'} transformer_2, and its boundary_ratio is {boundary}"
        )


# Data: the published models and a tiny model.


_SCHEDULER = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def _published(
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any] = MappingProxyType({}),
    boundary: float | None = None,
) -> dict[str, Mapping[str, Any]]:
    return {
        checkpoint_loading.INDEX: {"_class_name": "WanPipeline", "boundary_ratio": boundary},
        "scheduler/scheduler_config.json": _SCHEDULER,
        "transformer/config.json": {**_KIND, **transformer},
        **({"transformer_2/config.json": {**_KIND, **transformer}} if boundary else {}),
        "vae/config.json": {"_class_name": "AutoencoderKLWan", **vae},
        "text_encoder/config.json": UMT5_XXL,
    }


# The values of the published configs that differ from the defaults of the classes. They suffice to
# predict the memory of a run before the model is downloaded.
_KIND = {"_class_name": "WanTransformer3DModel", "text_dim": 4096}
_5B = {
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
    "in_channels": 48,
    "out_channels": 48,
}
_5B_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "latents_mean": [0.0] * 48,  # placeholders: only the number of values matters here
    "latents_std": [1.0] * 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_VACE = {"_class_name": "WanVACETransformer3DModel"}
PUBLISHED = {
    "wan": _published(_SMALL),
    "wan-14b": _published({}),
    "wan2.2-5b": _published(_5B, _5B_VAE),
    "wan2.2-a14b": _published({}, boundary=0.875),
    "vace": _published({**_SMALL, **_VACE, "vace_layers": [*range(0, 30, 2)]}),
    "vace-14b": _published({**_VACE, "vace_layers": [*range(0, 40, 5)]}),
}


def tiny() -> Backbone:
    """A random model of the same classes as Wan 2.1, for tests on a CPU."""
    return tiny_of()


def tiny_of(
    *, experts: bool = False, wide: bool = False, stable: bool = False, vace: bool = False
) -> Wan:
    """A small random model: like Wan 2.1; with `experts` like A14B, which has two; with `wide` like
    TI2V-5B, whose VAE has more channels; with `stable` it has the VAE and the text encoder of
    Stable Diffusion; with `vace` it reads structure maps."""
    channels = 6 if wide else 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        high, low = (_tiny_transformer(channels, vace=vace) for _ in range(2))
        pixels = {"in_channels": 12, "out_channels": 12, "patch_size": 2} if wide else {}
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=channels,
            num_res_blocks=1,
            latents_mean=[0.1 * channel for channel in range(channels)],
            latents_std=[1.0 + 0.1 * channel for channel in range(channels)],
            is_residual=wide,
            scale_factor_spatial=16 if wide else 8,
            **pixels,
        )
        text_encoder, tokenizer = tiny_networks.umt5(16)
        if stable:
            vae = tiny_networks.image_vae(channels)
            text_encoder, tokenizer = tiny_networks.clip_text(16)
    parts = ModelParts(
        name="tiny-wan",
        transformer=high,
        transformer_2=low if experts else None,
        boundary_ratio=0.875 if experts else None,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=_SCHEDULER,
    )
    defaults = Defaults(frames=9, height=32, width=48, fps=16.0, steps=2, guidance_scale=3.0)
    if stable:
        defaults = Defaults(frames=4, height=16, width=24, fps=8.0, steps=2, guidance_scale=3.0)
    elif wide:
        defaults = Defaults(frames=9, height=64, width=96, fps=24.0, steps=2, guidance_scale=3.0)
    return Wan(parts, defaults, Settings(device="cpu"))


def _tiny_transformer(channels: int, *, vace: bool) -> Any:
    kind, more = WanTransformer3DModel, dict[str, Any]()
    if vace:  # a mask of eight by eight pixels for each position
        kind, more = WanVACETransformer3DModel, {"vace_layers": [0, 2]}
        more["vace_in_channels"] = 2 * channels + 64
    network = kind(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        **more,
    )
    if vace:
        tiny_networks.add_noise(network)  # the outputs of the branch are zero at first
    return network
