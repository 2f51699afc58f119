"""`TrainedMethod`: train an adapter on clips, and sample with it.

Owns the algorithm that the trained methods share. Knows no layer and no paper: a method chooses the
adapter that it trains, and its settings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion import initial_noise
from recast.diffusion.noise_schedule import Denoised
from recast.diffusion.training import adamw_class
from recast.errors import BadMotion
from recast.events import Event, Job, Note, job
from recast.feature_guidance.pass_counts import inversion_passes, sampling_passes
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.trace import record_inversion
from recast.finetuning.mixing import Mixer
from recast.finetuning.objectives import WITHOUT_SPATIAL, TrainingObjective
from recast.finetuning.parameters import adapter_tensors, learned_parameters
from recast.finetuning.training_config import TrainingConfig
from recast.finetuning.training_loop import train_with_checkpoints
from recast.motions.method import SAMPLING_SETTINGS, MotionMethod, Sampling
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses
from recast.networks.adapters import Adapter, LoRA, check_no_adapters, weighted_sum

T = TypeVar("T", bound=TrainingConfig)


class SpatialLoRA(NamedTuple):
    """The settings of the LoRA that learns the appearance during training and is then discarded."""

    rank: int
    lr: float


class TrainedMethod(MotionMethod[T], Generic[T]):
    """A method that trains an adapter on noised clips, and samples with it."""

    takes_clips = True
    stretches = True
    transformer_role: ClassVar[str]
    """The role of the transformers that the adapter changes."""
    transfer_settings: ClassVar[frozenset[str]] = frozenset(
        SAMPLING_SETTINGS
        | {"initial_noise", "noise_share", "low_pass_factor", "strength", "checkpoint_every"}
    )
    """Settings that do not change what is learned."""
    tensor_scales: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Name of a setting, other than `strength`, that scales tensors -> the prefix of the names of
    these tensors."""

    @abstractmethod
    def initial_parameters(
        self, backbone: Backbone, run_network: Callable[[], object], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The tensors at the start of training, which do not change the output of the network.
        `run_network` runs the network once on the clip, to find the shapes of layers. Raises
        `BadCall` or `UnknownName` for a model without suitable layers."""

    @abstractmethod
    def adapter(self, backbone: Backbone, tensors: Mapping[str, Tensor], learning: bool) -> Adapter:
        """The adapter that applies the tensors to the network, during learning or during a
        transfer. Raises `BadMotion` for tensors that do not fit the network."""

    def spatial_lora(self) -> SpatialLoRA | None:
        """The settings of the spatial LoRA; None if the objective has none."""
        return None

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.transformer_role,)

    @final
    def cache_key_settings(self) -> Mapping[str, Any]:
        names = [field.name for field in fields(self.config)]
        return self.settings_as_json(n for n in names if n not in self.transfer_settings)

    @final
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Job[Motion]:
        """Invert the first clip, and train on all clips, video (N, 3, F, H, W). The motion holds
        the inverted noise as "noise", (C, F, h, w), the trained parameters in float16, and the
        losses in its metadata."""
        return self._learn(None, backbone, video, prompt, sampling)

    @final
    def resume_learning(
        self,
        checkpoint: Motion,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Job[Motion]:
        return self._learn(checkpoint, backbone, video, prompt, sampling)

    @job
    def _learn(
        self,
        checkpoint: Motion | None,
        backbone: Backbone,
        video: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Generator[Event, None, Motion]:
        check_no_adapters(backbone.network)
        optimizer_class = adamw_class(self.config.eight_bit)
        spatial = self.spatial_lora()
        latents = backbone.encode(video)
        if checkpoint is None:
            if spatial and "spatial_transformers" not in backbone.transformers:
                yield Note(
                    text=f"{backbone.name} has no spatial attention, so no LoRA learns the "
                    "appearance"
                )
            state = yield from self._initial_state(backbone, latents[:1], prompt, sampling)
        else:
            state = checkpoint
        objective = self._objective(backbone, latents, prompt, state)
        spatial_lr = spatial.lr if spatial else self.config.lr
        motion = yield from train_with_checkpoints(objective, spatial_lr, optimizer_class, state)
        return motion

    def _initial_state(
        self, backbone: Backbone, x0: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """A motion that holds only the inverted noise of latents x0 (1, C, F, h, w). The prompt of
        the inversion is empty."""
        trace = yield from record_inversion(
            backbone,
            x0,
            "",
            sampling.steps,
            guided_steps=0,
            inversion_steps=self.config.inversion_steps,
        )
        times = [_noisiest_time(backbone, trace.noise.shape, sampling)]
        return self.build_motion(backbone, {"noise": trace.noise}, prompt, sampling, times)

    def _objective(
        self, backbone: Backbone, latents: Tensor, prompt: str, state: Motion
    ) -> TrainingObjective:
        """The objective with new adapters, or with the adapters of a checkpoint."""
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        generator = torch.Generator().manual_seed(self.config.training_seed)
        temporal, spatial = adapter_tensors(state)
        if not temporal:

            def run_network() -> None:
                with torch.no_grad():
                    plain(latents[:1], backbone.schedule.sized(latents.shape).grid(1)[0])

            temporal = self.initial_parameters(backbone, run_network, generator)
            spatial = self._initial_spatial(backbone, generator)
        return TrainingObjective(
            config=self.config,
            backbone=backbone,
            latents=latents,
            plain=plain,
            temporal=self.adapter(backbone, temporal, learning=True),
            spatial=LoRA(backbone.network, spatial, backbone.device, backbone.component)
            if spatial
            else None,
        )

    def _initial_spatial(self, backbone: Backbone, generator: torch.Generator) -> dict[str, Tensor]:
        lora = self.spatial_lora()
        if lora is None:
            return {}
        transformers = backbone.transformers.get("spatial_transformers", ())
        paths = [
            path for transformer in transformers for path in transformer.linears(backbone.network)
        ]
        return LoRA.initial(backbone.network, paths, lora.rank, backbone.component, generator)

    @final
    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample with the adapter, whose parameters are scaled by `strength`."""
        motion.check_compatible(backbone, self.name)
        tensors = learned_parameters(motion)
        if self.config.strength != 1:
            tensors = weighted_sum([tensors], [self.config.strength])
        adapter = self.adapter(backbone, tensors, learning=False)
        x, note = self._initial_latents(backbone, motion, sampling)
        if note:
            yield Note(text=note)
        cfg_denoise = backbone.cfg_denoiser(
            prompt, sampling.negative_prompt, sampling.guidance_scale
        )

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            with adapter.applied(x.shape[2]):
                return cfg_denoise(x, t)

        latents = yield from sample_with_events(backbone, denoise, x, sampling)
        return latents

    def passes(
        self, backbone: Backbone, shape: Sequence[int], sampling: Sampling
    ) -> RunPasses | None:
        config, frames = self.config, shape[2]
        clip = Passes(full=config.iterations, full_backward=config.iterations)
        frame = Passes()
        if self.spatial_lora() and "spatial_transformers" in backbone.transformers:
            frame = (1 - WITHOUT_SPATIAL) / frames * clip
        inversion = inversion_passes(backbone, shape, sampling, config.inversion_steps)
        return RunPasses(
            inversion + clip + frame,
            sampling_passes(backbone, shape, sampling, sampling.negative_prompt),
        )

    def _initial_latents(
        self, backbone: Backbone, motion: Motion, sampling: Sampling
    ) -> tuple[Tensor, str]:
        """The initial noise of a sample, and a note for the user, which may be empty. Raises
        `BadMotion` if the inverted noise is needed but has another number of frames of latents or
        another time."""
        config, generator = self.config, torch.Generator().manual_seed(sampling.seed)
        inverted = motion.tensors["noise"][None].to(backbone.device)
        learned_frames = inverted.shape[2]
        frames = int(motion.metadata.get("frames", learned_frames))
        learned_time = next(iter(motion.metadata.get("times", ())), None)
        time = _noisiest_time(backbone, inverted.shape, sampling)
        note = ""
        if config.initial_noise != "random" and (frames, time) != (learned_frames, learned_time):
            raise BadMotion(
                f"the inverted noise of the clip has {learned_frames} frames at noise level "
                f"{learned_time}, but the sample needs {frames} frames at noise level {time}; use "
                "the same `frames` and `steps`, or `initial_noise=random`"
            )
        if frames != learned_frames:
            inverted = inverted.new_zeros(*inverted.shape[:2], frames, *inverted.shape[3:])
            note = f"the motion was learned on {learned_frames} frames and is used for {frames}"
        x = initial_noise.initial(
            config.initial_noise,
            inverted,
            generator,
            factor=config.low_pass_factor,
            share=config.noise_share,
        )
        return x, note

    @final
    def mix(self, motions: Sequence[Motion], weights: Sequence[float]) -> Motion:
        return Mixer(
            method=self.name,
            config=self.config,
            tensor_scales=self.tensor_scales,
            common_settings=self.transfer_settings
            - {"checkpoint_every", "strength", *SAMPLING_SETTINGS, *self.tensor_scales},
        ).mix(motions, weights)


def _noisiest_time(backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> float:
    """The time of the noisiest level, for latents of shape (…, F, H, W)."""
    return float(backbone.schedule.sized(shape).grid(sampling.steps)[0])
