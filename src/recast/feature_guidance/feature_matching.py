"""`FeatureMatchingMethod`: match the features of a sample to features of the inverted source.

Owns the algorithm that DMT and MOFT share: `learn` inverts the clip and records reduced features at
the guided levels; `transfer` starts from an initial noise and optimises x_t at the guided levels
until its features match. Knows no paper: a method defines the reduction of features, the distance
between them and the initial noise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, final

import torch
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoiser
from recast.diffusion.optimize import LossScale, Minimizer, minimize
from recast.diffusion.sampling import Restart
from recast.events import Event, job
from recast.feature_guidance.latent_guidance import (
    Change,
    InnerOptimisationConfig,
    change_in_windows,
    check_inner_optimisation,
    edit_first_levels,
    learning_rates,
)
from recast.feature_guidance.levels import count_steps, guided_times
from recast.feature_guidance.pass_counts import inversion_passes, sampling_passes
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.feature_guidance.taps import read_features, select_taps
from recast.feature_guidance.trace import record_inversion
from recast.motions.method import MotionMethod, Sampling, check_at_least, check_names_roles
from recast.motions.motion import Motion
from recast.motions.passes import Passes, RunPasses
from recast.networks.feature_hooks import Tap


class FeatureMatchingConfig(InnerOptimisationConfig, Protocol):
    """The settings of a method that matches features."""

    @property
    def taps(self) -> tuple[str, ...]:
        """Roles whose features are matched."""

    @property
    def inversion_steps(self) -> int:
        """Approximate number of inversion steps."""


def check_feature_matching(config: FeatureMatchingConfig) -> None:
    """Raise `BadCall` for a setting out of its range."""
    check_names_roles(config, "taps", "motion")
    check_inner_optimisation(config)
    check_at_least(config, 1, "inversion_steps")


F = TypeVar("F", bound=FeatureMatchingConfig)


class FeatureMatchingMethod(MotionMethod[F], Generic[F]):
    """A method that matches features. A motion is learned once and serves any prompt."""

    takes_windows = True
    learned_settings: ClassVar[tuple[str, ...]]
    """The settings on which the result of `learn` depends."""
    unchecked_settings: ClassVar[frozenset[str]] = frozenset()
    """The learned settings that may differ between `learn` and `transfer`."""
    tensor_suffixes: ClassVar[tuple[str, ...]] = ("",)
    """The suffixes of the tensors that `motion_tensors` returns. A tensor's name in the motion is
    the path of its tap and the suffix."""

    @abstractmethod
    def reduce(self, features: Tensor) -> Tensor:
        """Reduce features (1, F, H, W, C) to what the inversion records, (1, F, …)."""

    @abstractmethod
    def motion_tensors(self, levels: Tensor) -> tuple[Tensor, ...]:
        """The tensors (L, …) that a motion holds for one tap, from the reduced features (L, F, …)
        of all L guided levels. Frames are the second dimension of the first tensor."""

    @abstractmethod
    def distance(self, features: Tensor, target: Sequence[Tensor]) -> Tensor:
        """The scalar loss of one tap at one level, between features (1, F, H, W, C) of the sample
        and `target`, the motion's tensors of that level."""

    @abstractmethod
    def initial_latents(self, inverted: Tensor, generator: torch.Generator) -> Tensor:
        """The initial noise of a sample, with the shape of `inverted`, x_T (1, C, F, H, W)."""

    @property
    def minimizer(self) -> Minimizer:
        """The function that optimises x_t at one level."""
        return minimize

    @property
    def restart(self) -> Restart | None:
        """How sampling takes steps twice; None if it does not."""
        return None

    @final
    @property
    def varies_with_seed(self) -> bool:
        return super().varies_with_seed or self.restart is not None

    def format_source_prompt(self, prompt: str) -> str:
        """The prompt for the inversion of a clip that `prompt` describes."""
        return prompt

    @final
    @property
    def roles(self) -> tuple[str, ...]:
        return self.config.taps

    @final
    def cache_key_settings(self) -> Mapping[str, Any]:
        return self.settings_as_json(self.learned_settings)

    @final
    @job
    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Motion]:
        """Invert the clip at guidance scale 1. The motion holds x_T as "noise",
        (C, F, H, W), and for each tap the tensors (L, …) of the L guided levels."""
        trace = yield from record_inversion(
            backbone,
            backbone.encode(video),
            self.format_source_prompt(prompt),
            sampling.steps,
            guided_steps=self._guided_steps(sampling),
            inversion_steps=self.config.inversion_steps,
            taps=select_taps(backbone, self.config.taps),
            reduce=self.reduce,
        )
        tensors = {"noise": trace.noise}
        for path, levels in trace.features.items():
            tensors |= dict(zip(self._names(path), self.motion_tensors(levels), strict=True))
        times = self._times(backbone, trace.noise.shape, sampling)
        by_level = tensors.keys() - {"noise"}
        return self.build_motion(backbone, tensors, prompt, sampling, times, by_level)

    @final
    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample, and at the guided levels first optimise x_t until its features match those of
        the motion."""
        self._check(backbone, motion, sampling)
        prompt, negative_prompt = self.format_prompts(prompt, sampling.negative_prompt)
        guided_steps = self._guided_steps(sampling)
        taps = select_taps(backbone, self.config.taps)
        # Features are read under the target prompt, without classifier-free guidance.
        plain, scale = backbone.denoiser(backbone.encode_text([prompt])), LossScale()
        change = change_in_windows(
            backbone,
            motion,
            taps if guided_steps else (),
            lambda part: self._change(backbone, plain, taps, part, guided_steps, scale),
        )
        generator = torch.Generator().manual_seed(sampling.seed)
        inverted = motion.tensors["noise"][None].to(backbone.device)
        losses: dict[int, list[float]] = {}
        latents = yield from sample_with_events(
            backbone,
            backbone.cfg_denoiser(prompt, negative_prompt, sampling.guidance_scale),
            self.initial_latents(inverted, generator),
            sampling,
            edit=edit_first_levels(guided_steps, sampling.steps, change, losses),
            losses=losses,
            restart=self.restart,
            generator=generator,
        )
        return latents

    @final
    def passes(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> RunPasses:
        guided_steps = self._guided_steps(sampling)
        _, negative_prompt = self.format_prompts("", sampling.negative_prompt)
        inner = guided_steps * self.config.inner_steps
        # The inversion itself does not evaluate the noisiest level.
        noisiest = Passes(partial=1 if guided_steps else 0)
        return RunPasses(
            inversion_passes(backbone, shape, sampling, self.config.inversion_steps) + noisiest,
            sampling_passes(backbone, shape, sampling, negative_prompt, restart=self.restart)
            + Passes(partial=inner, partial_backward=inner),
        )

    def _change(
        self,
        backbone: Backbone,
        plain: Denoiser,
        taps: Sequence[Tap],
        motion: Motion,
        guided_steps: int,
        scale: LossScale,
    ) -> Change:
        """The inner optimisation at one level. Its loss is the mean of the losses of the taps."""

        def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
            # Only the targets of one level are read, because those of all levels may not fit into
            # memory.
            targets = {
                tap.path: [motion.level(name, index, x.device) for name in self._names(tap.path)]
                for tap in taps
            }

            def loss(x: Tensor) -> Tensor:
                features = read_features(backbone, plain, taps, x, t)
                terms = [self.distance(features[path], target) for path, target in targets.items()]
                return torch.stack(terms).mean()

            rates = learning_rates(self.config, index, guided_steps)
            return self.minimizer(loss, x, rates, scale)

        return change

    def _names(self, path: str) -> list[str]:
        return [path + suffix for suffix in self.tensor_suffixes]

    def _guided_steps(self, sampling: Sampling) -> int:
        return count_steps(self.config.guided, sampling)

    def _times(self, backbone: Backbone, shape: Sequence[int], sampling: Sampling) -> list[float]:
        """The times of the guided levels; of the noisiest level if no level is guided."""
        return guided_times(backbone, shape, sampling, max(1, self._guided_steps(sampling)))

    def _check(self, backbone: Backbone, motion: Motion, sampling: Sampling) -> None:
        """Raise `BadMotion` for a motion of other weights, settings or noise levels. A motion may
        have more taps than the config."""
        motion.check_compatible(backbone, self.name)
        settings = {"steps": sampling.steps, **self.cache_key_settings()}
        motion.check_settings(
            {name: v for name, v in settings.items() if name not in self.unchecked_settings}
        )
        is_guided = self._guided_steps(sampling) > 0
        taps = select_taps(backbone, self.config.taps) if is_guided else ()
        motion.check_holds("noise", *(name for tap in taps for name in self._names(tap.path)))
        motion.check_times(backbone, self._times(backbone, motion.tensors["noise"].shape, sampling))
