"""Show-1 in pixel space: the keyframe model, and its cascade where that is there too.

`showlab/show-1-base` in its released layout: a UNet3DConditionModel of Show-1's own, a T5 text
encoder and a scheduler; no VAE, pixels are the latents. The stages after the keyframes lie in the
same folder as `interpolation`, `sr1` and `sr1_image`, each as released (the last is DeepFloyd's
IF-II-L, which Show-1 takes for the first frame). Owns how the parts are loaded, cast, kept in
memory and tapped. Not here: Show-1's last, latent super-resolution.

Established from the released code and from copies of show-1-base's configs: the network's layers
and names (the size of its file, 6.91 GB, is that of these weights), the channels of every stage,
steps and guidance, T5 with 77 tokens of the lower-cased prompt, noise prediction on a cosine
schedule. Not established: the networks' configs of interpolation and sr1, which are read from the
folder and never seen. Nothing has been run with the released weights. The released sampler,
DPM-Solver++ with dynamic thresholding, is not the library's: methods sample keyframes by DDIM and
without thresholding, the cascade by DDIM with it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from recast.backbones.base import Backbone, Defaults, Settings, check_multiple
from recast.backbones.show1.cascade import BETWEEN, NUMBERS, Cascade, Name, Stage
from recast.backbones.show1.network import UNet3DConditionModel, check_config
from recast.diffusion.noise_schedule import Schedule
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall, BadModel
from recast.events import Event, job
from recast.networks import checkpoint_loading, placement, unet_roles
from recast.networks import tiny as tiny_networks

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ALIASES = {"show1": "showlab/show-1-base", "show1-cascade": "showlab/show-1-base"}
PIPELINES = frozenset({"TextToVideoIFPipeline"})
STAND_IN = "shapes"
_STAGE_PIPELINES: Mapping[Name, frozenset[str]] = {
    "interpolation": frozenset({"TextToVideoIFInterpPipeline"}),
    "sr1": frozenset({"TextToVideoIFSuperResolutionPipeline_Cond"}),
    "sr1_image": frozenset({"IFSuperResolutionPipeline"}),
}
# DeepFloyd's model is not among them: it is given only to those who have accepted its licence.
_STAGE_IDS: Mapping[Name, str] = {
    "interpolation": "showlab/show-1-interpolation",
    "sr1": "showlab/show-1-sr1",
}
_PARTS = ("unet", "scheduler", "text_encoder", "tokenizer")
_STAGE_PARTS = ("unet", "scheduler", "image_noising_scheduler")
_TOKENS = 77
"""DeepFloyd-IF's text encoder was trained with so many, and Show-1 follows it."""

_DEFAULTS = Defaults(frames=8, height=40, width=64, fps=2.0, steps=75, guidance_scale=9.0)
# show-1-base's, as far as it says how noise is added and read.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The networks and tables that make up a model."""

    unet: nn.Module
    text_encoder: T5EncoderModel
    tokenizer: T5Tokenizer
    scheduler: Mapping[str, Any]
    stages: Mapping[Name, Stage] = field(default_factory=dict)


def load(source: str, settings: Settings) -> Backbone:
    """Load from an alias, a folder or a hub id. Raises `BadModel` with what is wrong with it."""
    model = checkpoint_loading.opened(source, settings, ALIASES, PIPELINES, parts=_PARTS)
    scheduler = _scheduler(model.folder / "scheduler")
    check_config(checkpoint_loading.json_of(model.folder / "unet" / "config.json"), 3)
    stages = _stage_folders(source, model.folder)
    for stage, path in stages.items():
        _check_stage(stage, path)
    tokenizer = model.tokenizer(T5Tokenizer)
    parts = Parts(
        unet=model.network(UNet3DConditionModel, "unet"),
        text_encoder=model.text_network(T5EncoderModel),
        tokenizer=tokenizer,
        scheduler=scheduler,
        stages={stage: _stage(stage, path, model.dtype) for stage, path in stages.items()},
    )
    return Show1(model.name, parts, model.card.defaults or _DEFAULTS, settings, model.device)


def wrap(pipeline: DiffusionPipeline, settings: Settings) -> Backbone:
    """Use the networks of a loaded TextToVideoIFPipeline, where and as they are.

    The settings' device and dtype do not apply. The networks are frozen: no gradients, no dropout.
    """
    parts = Parts(
        unet=pipeline.unet,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler.config,
    )
    check_config(pipeline.unet.config, 3)
    name = checkpoint_loading.wrapped_name(pipeline)
    return Show1(name, parts, _DEFAULTS, settings, pipeline.unet.device)


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
        # Fresh temporal layers end in zeros; without noise in them the frames would not mix.
        for parameter in unet.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    parts = Parts(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=_SCHEDULER)
    defaults = Defaults(frames=4, height=16, width=16, fps=2.0, steps=2, guidance_scale=3.0)
    settings = Settings(device="cpu", dtype="float32")
    return Show1("tiny-show1", parts, defaults, settings, torch.device("cpu"))


@final
class Show1(Backbone):
    """See the module. Construct it with `load`, `wrap` or `tiny`."""

    def __init__(
        self,
        name: str,
        parts: Parts,
        defaults: Defaults,
        settings: Settings,
        device: torch.device,
    ) -> None:
        checkpoint_loading.check_vocabulary(parts.tokenizer, parts.text_encoder)
        self.name, self.defaults, self.device = name, defaults, device
        self.network: nn.Module = parts.unet
        self.schedule: Schedule = from_diffusers(parts.scheduler)
        self.frame_multiplier = BETWEEN if "interpolation" in parts.stages else 1
        self._parts, self._settings = parts, settings
        stages = [stage.unet for stage in parts.stages.values()]
        self._placement = placement.ModelPlacement(
            [parts.unet, parts.text_encoder, *stages], device, settings
        )
        self._factor = 2 ** (len(list(parts.unet.get_submodule("down_blocks").children())) - 1)
        self.roles = unet_roles.roles(parts.unet)
        self.transformers = unet_roles.transformers(parts.unet)
        self.fingerprint = checkpoint_loading.fingerprint(parts.unet)

    def encode(self, video: Tensor) -> Tensor:
        self.latent_shape(*video.shape[2:])
        return video.to(device=self.device, dtype=torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        """The keyframes themselves; `finish` makes more of them."""
        return latents.clamp(-1, 1)

    @job
    def finish(self, latents: Tensor, prompt: str, seed: int) -> Generator[Event, None, Tensor]:
        """The keyframes through the stages that were loaded, under the prompt alone."""
        video = self.decode(latents)
        if self._parts.stages:
            cascade = Cascade(
                stages=self._parts.stages,
                pair=self.encode_text(["", prompt]),
                seed=seed,
                call=self._counted,
            )
            video = yield from cascade.finished(video)
        return video

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        texts = [_text(prompt) for prompt in prompts]
        for text in texts:
            self._check_length(text)
        tokens = self._parts.tokenizer(
            texts, padding="max_length", max_length=_TOKENS, return_tensors="pt"
        )
        encoder = self._placement.activate(self._parts.text_encoder)
        out = encoder(
            tokens.input_ids.to(self.device), attention_mask=tokens.attention_mask.to(self.device)
        )
        return out.last_hidden_state.to(_dtype(self.network))

    def predict(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        # The other half of the channels is the variance that DDPM's steps would draw with.
        return self._called(self.network, x, t, text, None)[:, : x.shape[1]]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        if frames < 1:
            raise BadCall(f"{frames} frames; at least 1, and {self.defaults.frames} suits best")
        check_multiple("height", height, self._factor)
        check_multiple("width", width, self._factor)
        return (1, 3, frames, height, width)

    def check_prompt(self, prompt: str) -> list[str]:
        self._check_length(_text(prompt))
        return []

    def _check_length(self, text: str) -> None:
        checkpoint_loading.check_length(self._parts.tokenizer, text, _TOKENS - 1, self.name)

    def _counted(
        self, network: nn.Module, x: Tensor, t: Tensor, text: Tensor, level: Tensor | None
    ) -> Tensor:
        self.nfe += len(x)
        return self._called(network, x, t, text, level)

    def _called(
        self, network: nn.Module, x: Tensor, t: Tensor, text: Tensor, level: Tensor | None
    ) -> Tensor:
        self._placement.activate(network)
        with ExitStack() as stack:
            if self._settings.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(placement.checkpointed(unet_roles.layers(network)))
            out = network(
                x.to(self.device, _dtype(network)),
                t.to(self.device),
                encoder_hidden_states=text,
                class_labels=None if level is None else level.to(self.device),
                return_dict=False,
            )[0]
        return out.float()


class OneImage(nn.Module):
    """DeepFloyd's network for images, called as one for clips of a single frame."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, *args: Any, **named: Any) -> tuple[Tensor]:
        """(B, C, 1, H, W) to the same."""
        return (self.unet(sample[:, :, 0], *args, **named)[0][:, :, None],)


def _text(prompt: str) -> str:
    return prompt.lower().strip()


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _scheduler(folder: Path) -> dict[str, Any]:
    scheduler = checkpoint_loading.json_of(folder / "scheduler_config.json")
    from_diffusers(scheduler)
    return scheduler


def _stage_folders(source: str, folder: Path) -> dict[Name, Path]:
    """The stages beside the keyframe model, or all that the alias of the cascade names."""
    if source == "show1-cascade":
        return {n: checkpoint_loading.folder(hub, _STAGE_PARTS) for n, hub in _STAGE_IDS.items()}
    found = {name: folder / name for name in get_args(Name) if (folder / name).is_dir()}
    if "sr1_image" in found and "sr1" not in found:
        raise BadModel(f"{folder} has sr1_image, for the first frame of sr1, and no sr1")
    return found


def _check_stage(name: Name, folder: Path) -> None:
    checkpoint_loading.check_index(folder, _STAGE_PIPELINES[name])
    _scheduler(folder / "scheduler")
    if NUMBERS[name].level is not None:
        _scheduler(folder / "image_noising_scheduler")
    if name != "sr1_image":
        check_config(
            checkpoint_loading.json_of(folder / "unet" / "config.json"), NUMBERS[name].channels
        )


def _stage(name: Name, folder: Path, dtype: torch.dtype) -> Stage:
    noisy = NUMBERS[name].level is not None
    path = folder / "unet"
    return Stage(
        numbers=NUMBERS[name],
        unet=OneImage(checkpoint_loading.network(UNet2DConditionModel, path, dtype))
        if name == "sr1_image"
        else checkpoint_loading.network(UNet3DConditionModel, path, dtype),
        scheduler=_scheduler(folder / "scheduler"),
        noising=_scheduler(folder / "image_noising_scheduler") if noisy else None,
    )
