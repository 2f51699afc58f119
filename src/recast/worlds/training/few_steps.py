"""The training of a LoRA with which a model samples in few steps, without its guidance scale.

Salimans, Ho: "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022; Meng et
al.: "On Distillation of Guided Diffusion Models", CVPR 2023. The teacher is the model itself, with
many steps and classifier-free guidance. The student's few steps divide its trajectory into
segments. At each level of a segment the student learns the output by which one step leads to the
end of the segment, where the teacher arrives in several. This is done in one round, because the
teacher's trajectories are stored. This module owns the trajectories and the loss; the loop is in
`loop.py`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet3DConditionModel, WanTransformer3DModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recast.diffusion.noise_schedule import Schedule, per_sample
from recast.diffusion.scheduler_config import from_diffusers
from recast.errors import BadCall
from recast.events import Event, Step, job
from recast.media.atomic_files import atomic
from recast.networks import checkpoint_loading
from recast.networks.adapters import LoRA
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.loop import Stage, autocast, train_stage
from recast.worlds.training.model import frozen
from recast.worlds.training.speed import compile_blocks, plain_attention

_LAYERS = ("attn1.", "attn2.", "ffn.", ".ff.")
_CLIPS_PER_FILE = 40
Trajectories = NDArray[np.float32]
"""Samples of the teacher at all of its levels, (N, S + 1, C, F, h, w)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FewStepConfig:
    """The training of a LoRA for few steps. Raises `BadCall` for numbers of steps that do not fit
    together, and for a UNet that is to be compiled."""

    model: Path
    """Folder of the model that is the teacher."""
    out: Path
    """Folder for the teacher's trajectories, checkpoints and logs. At the end it holds the LoRA in
    `pytorch_lora_weights.safetensors`."""
    student_steps: int = 4
    """Steps of the student."""
    teacher_steps: int = 24
    """Steps of the teacher, a multiple of the student's."""
    guidance_scale: float = 4.0
    """The teacher's scale of classifier-free guidance."""
    clips: int = 800
    """Number of the teacher's trajectories."""
    empty_caption_every: int = 10
    """One trajectory in this many has an empty caption, because a clip without a source prompt is
    inverted with an empty one."""
    rank: int = 32
    """Rank of the LoRA."""
    steps: int = 1_000
    """Training steps, with `batch` clips each."""
    batch: int = 16
    """Clips in a batch."""
    seed: int = 0
    """Seed of the initial weights, the noise and the captions."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda or mps. Data stay on the CPU."""
    compile: bool = False
    """Compile the transformer's blocks with torch.compile, which needs a C++ compiler on a
    processor. A UNet cannot be compiled so, because its blocks differ."""

    def __post_init__(self) -> None:
        if self.empty_caption_every < 1:
            raise BadCall(
                f"`empty_caption_every` must be at least 1, got {self.empty_caption_every}"
            )
        if self.compile and (self.model / "unet").is_dir():
            raise BadCall(
                f"`compile` needs a model with a transformer, and {self.model} has a UNet, whose "
                "blocks differ"
            )
        if self.student_steps < 1 or self.teacher_steps % self.student_steps:
            raise BadCall(
                "`teacher_steps` must be a multiple of `student_steps`, got "
                f"{self.teacher_steps} and {self.student_steps}"
            )


@job
def train(config: FewStepConfig, dataset: Dataset) -> Generator[Event, None, Path]:
    """Train the LoRA. The result is its file, in half precision and in diffusers' format. The same
    call resumes an interrupted training."""
    torch.manual_seed(config.seed)
    teacher = _Teacher(config, dataset)
    trajectories = yield from _trajectories(config, teacher)
    network = teacher.network
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and any(part in name for part in _LAYERS)
    ]
    generator = torch.Generator().manual_seed(config.seed)
    tensors = LoRA.initial(network, layers, config.rank, teacher.component, generator)
    lora = LoRA(network, tensors, config.device, teacher.component)
    stage = Stage(
        name="few_steps",
        model=nn.ParameterList(lora.tensors.values()),
        loss=_Loss(config, teacher, trajectories, lora),
        steps=config.steps,
        lr=1e-3,
        weight_decay=0.0,
        warmup=max(1, min(100, config.steps // 5)),
        ema=0.99,
    )
    yield from train_stage(stage, config.out, config.seed)
    file = config.out / "pytorch_lora_weights.safetensors"
    weights = {name: t.detach().half().cpu().contiguous() for name, t in lora.tensors.items()}
    with atomic(file) as temporary:
        save_file(weights, temporary, {"format": "pt"})
    return file


class _Teacher:
    """The frozen model and its noise levels."""

    def __init__(self, config: FewStepConfig, dataset: Dataset) -> None:
        folder, self._device = config.model, config.device
        network: Any
        if (folder / "unet").is_dir():
            self.component = "unet"
            network = frozen(UNet3DConditionModel, folder / self.component)
            network.set_attn_processor(AttnProcessor())  # faster for sixteen frames
        else:
            self.component = "transformer"
            network = frozen(WanTransformer3DModel, folder / self.component)
            if config.compile:
                compile_blocks(network)
        self.network = network.to(self._device)
        self._encode_text = frozen(CLIPTextModel, folder / "text_encoder").to(self._device)
        self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self._config, self._dataset = config, dataset
        scheduler = checkpoint_loading.read_json(folder / "scheduler" / "scheduler_config.json")
        self.schedule = from_diffusers(scheduler)
        grid = self.schedule.grid(config.student_steps)
        self.levels = self.schedule.refine(grid, config.teacher_steps)
        """The teacher's levels, noisiest first, (S + 1,)."""

    def output(self, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """The output of the network for x (B, C, F, h, w), with a level for each sample, (B,)."""
        time = self.schedule.network_time(level)
        inputs = (part.to(self._device) for part in (x, time, text))
        with autocast(self._device), plain_attention():
            output: Tensor = self.network(*inputs, return_dict=False)[0]
        return output.float()

    @torch.no_grad()
    def text(self, captions: list[str]) -> Tensor:
        """Encoded captions, (B, L, C)."""
        tokens = self._tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        )
        ids = tokens.input_ids.to(self._device)
        encoded: Tensor = self._encode_text(ids).last_hidden_state
        return encoded

    def caption(self, clip: int) -> str:
        """The caption of a trajectory."""
        if clip % self._config.empty_caption_every == self._config.empty_caption_every - 1:
            return ""
        rng = np.random.default_rng([self._config.seed, clip])
        return self._dataset.caption(self._dataset.sample(clip), rng)

    @torch.no_grad()
    def trajectories(self, clips: range) -> Tensor:
        """Samples at all levels, (B, S + 1, C, F, h, w), with a noise of its own for each clip."""
        design, dataset = self._dataset.design, self._dataset
        shape = (design.latent_channels, dataset.frames, design.grid, design.grid)
        noise = [
            torch.randn(
                shape, generator=torch.Generator().manual_seed(self._config.seed + 10**6 * clip)
            )
            for clip in clips
        ]
        x = torch.stack(noise)
        text = self.text([*map(self.caption, clips), *[""] * len(clips)])
        states = [x]
        for level, following in zip(self.levels[:-1], self.levels[1:], strict=True):
            both = self.output(torch.cat([x, x]), level.expand(2 * len(x)), text).cpu()
            conditional, unconditional = both.chunk(2)
            guided = unconditional + self._config.guidance_scale * (conditional - unconditional)
            x = self.schedule.noised(*self.schedule.denoised(guided, x, level), following)
            states.append(x)
        return torch.stack(states, 1)


class _Loss:
    """The squared error of the student's output, by which one step is to lead from a level to the
    end of its segment. Half of a batch is at the beginnings of segments, because the student
    samples from there; the other levels teach it the way."""

    def __init__(
        self,
        config: FewStepConfig,
        teacher: _Teacher,
        trajectories: Trajectories,
        lora: LoRA,
    ) -> None:
        self._config, self._teacher, self._trajectories, self._lora = (
            config,
            teacher,
            trajectories,
            lora,
        )
        self._text = teacher.text([teacher.caption(clip) for clip in range(len(trajectories))])

    def __call__(self, model: Any, step: int, rng: np.random.Generator) -> Tensor:
        """The loss of a random batch. `model` holds the weights of the LoRA."""
        config = self._config
        length = config.teacher_steps // config.student_steps
        pick = rng.integers(0, len(self._trajectories), config.batch)
        start = rng.integers(0, config.teacher_steps, config.batch)
        start[::2] = start[::2] // length * length
        end = (start // length + 1) * length
        x, arrived = (torch.from_numpy(self._trajectories[pick, index]) for index in (start, end))
        level, final = (self._teacher.levels[index] for index in (start, end))
        target = _output_of_step(self._teacher.schedule, x, level, arrived, final)
        with self._lora.applied():
            output = self._teacher.output(x, level, self._text[pick])
        return F.mse_loss(output, target.to(config.device))


def _output_of_step(
    schedule: Schedule, x: Tensor, level: Tensor, arrived: Tensor, final: Tensor
) -> Tensor:
    """The output at x, (B, C, F, h, w), by which one step leads from the levels, (B,), to `arrived`
    at the levels `final`: two equations of x0 and eps, one for each end."""
    alpha, sigma, final_alpha, final_sigma = (
        per_sample(factor(t), x)
        for t in (level, final)
        for factor in (schedule.alpha, schedule.sigma)
    )
    determinant = alpha * final_sigma - sigma * final_alpha
    x0 = (final_sigma * x - sigma * arrived) / determinant
    eps = (alpha * arrived - final_alpha * x) / determinant
    return schedule.output(x0, eps, level)


def _trajectories(config: FewStepConfig, teacher: _Teacher) -> Generator[Event, None, Trajectories]:
    """The teacher's trajectories, (N, S + 1, C, F, h, w), computed once and stored."""
    parts = []
    for first in range(0, config.clips, _CLIPS_PER_FILE):
        clips = range(first, min(first + _CLIPS_PER_FILE, config.clips))
        file = config.out / "trajectories" / f"{first:06}.npy"
        part = np.load(file) if file.exists() else None
        if part is None or len(part) < len(clips):
            batches = [
                teacher.trajectories(clips[i : i + config.batch])
                for i in range(0, len(clips), config.batch)
            ]
            part = torch.cat(batches).numpy()
            with atomic(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, part)
            yield Step(stage="trajectories", index=clips.stop, total=config.clips)
        parts.append(part[: len(clips)])
    return np.concatenate(parts)
