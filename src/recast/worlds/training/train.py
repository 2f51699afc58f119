"""The training of a shipped model from scratch, in four stages that can be resumed.

The stages are: autoencoder (dense images); clip (frames and captions); latents (each clip is
encoded once); and the denoiser, a UNet or a transformer (single frames, then short clips, then
whole clips). The result is a folder in diffusers' format. This module owns the stages and
the losses of autoencoder and CLIP. What can be set is in `config.py`, the data are in `data.py`,
the denoiser's loss is in `denoiser_loss.py`, and the loop is in `loop.py`.
"""

import math
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from recast.errors import BadModel, UnknownName, reason_of
from recast.events import Event, job
from recast.media.atomic_files import locked
from recast.worlds.training import networks
from recast.worlds.training.config import Part, TrainConfig
from recast.worlds.training.data import (
    clip_latents,
    dense_images,
    labelled_frames,
    part_maps,
    subject_weights,
    to_network_range,
)
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.denoiser_loss import Clips, DenoiserLosses, View
from recast.worlds.training.loop import Stage, autocast, train_stage
from recast.worlds.training.model import Model
from recast.worlds.training.networks import Design
from recast.worlds.training.part_reader import PartReader
from recast.worlds.training.speed import compile_blocks
from recast.worlds.training.whitening import whiten
from recast.worlds.training.widening import widened

_SHORT = View(frames=4, clips=40)
_WHOLE_IMAGES = 1 / 7  # fraction of the autoencoder's batches, if it learns on crops
_FOLDERS: dict[Part, str] = {
    "autoencoder": "vae",
    "clip": "clip",
    "unet": "unet",
    "transformer": "transformer",
}


@job
def train(
    config: TrainConfig, dataset: Dataset, design: Design | None = None
) -> Generator[Event, None, Path]:
    """Run all stages that are not finished. The result is the model's folder. `design` replaces the
    sizes of the networks that ship for this world.

    Raises `BadModel` if `config.start` is not a model of this design, `UnknownName` for a subject
    in `config.focus` that the world does not have, and `BadCall` while another process trains in
    the same folder.
    """
    for name in config.focus:
        if name not in dataset.subject_names:
            raise UnknownName("subject", name, dataset.subject_names)
    if config.start is not None and not (config.start / "model_index.json").is_file():
        raise BadModel(
            f"`start` is {config.start}, which is not a model folder: it has no model_index.json"
        )
    with locked(config.out):
        return (yield from _train(config, dataset, design or dataset.design))


def _train(config: TrainConfig, dataset: Dataset, design: Design) -> Generator[Event, None, Path]:
    torch.manual_seed(config.seed)
    tokenizer = _tokenizer(config, dataset)
    autoencoder = _initial(config, "autoencoder", networks.autoencoder(design))
    yield from _stage(_autoencoder_stage(config, dataset, design, autoencoder), config)
    clip = _initial(config, "clip", networks.clip(len(tokenizer)))
    yield from _stage(_clip_stage(config, dataset, clip, tokenizer), config)
    latents = yield from clip_latents(
        config.out / "latents",
        config.clips,
        autoencoder,
        dataset,
        design.size,
        config.device,
        config.workers,
    )
    if not (_is_from_start(config, "autoencoder") and config.autoencoder_steps == 0):
        scale = 1 / latents[:1000].astype(np.float32).std()
        autoencoder.register_to_config(scaling_factor=float(scale))
    if config.network == "unet":
        denoiser = _initial(config, "unet", networks.unet(design))
        # For a sequence of sixteen frames, plain attention is faster than the fused kernel.
        denoiser.set_attn_processor(AttnProcessor())
    else:
        denoiser = _initial(config, "transformer", networks.transformer(design))
    if config.whiten:
        latents = whiten(latents, autoencoder, denoiser)
    model = Model(dataset, design, autoencoder, clip, tokenizer, denoiser)
    clips = yield from _training_clips(config, dataset, latents, autoencoder)
    reader = None if clips.parts is None else PartReader(denoiser, clips.parts.shape[2])
    if config.compile:
        compile_blocks(denoiser, but=reader and reader.block)
    for stage in _denoiser_stages(config, model, clips, reader):
        yield from _stage(stage, config)
    return model.save(config.out / "model")


def _training_clips(
    config: TrainConfig, dataset: Dataset, latents: NDArray[np.float16], autoencoder: AutoencoderKL
) -> Generator[Event, None, Clips]:
    """The latents with the truth that the losses need."""
    scaled = torch.from_numpy(latents * np.float16(autoencoder.config.scaling_factor))
    subjects = parts = None
    grid, folder = scaled.shape[-1], config.out
    if config.subject or config.close_ups:
        found = yield from subject_weights(
            folder / "subjects.npy", config.clips, dataset, grid, config.workers
        )
        subjects = torch.from_numpy(found)
    if config.parts:
        maps = yield from part_maps(
            folder / "parts.npy", config.clips, dataset, grid, config.workers
        )
        parts = torch.from_numpy(maps)
    return Clips(scaled, subjects, parts)


def _is_from_start(config: TrainConfig, part: Part) -> bool:
    return config.start is not None and part in config.start_parts


def _initial(config: TrainConfig, part: Part, network: Any) -> Any:
    """The network with new weights, or the one from `config.start` if it is to be continued."""
    if config.start is None or not _is_from_start(config, part):
        return network
    folder = config.start / _FOLDERS[part]
    if not folder.is_dir():
        raise BadModel(f"{config.start} has no {part}; leave it out of `start_parts`")
    try:
        loaded = type(network).from_pretrained(folder, local_files_only=True).float()
        if part == "autoencoder" and _is_narrower(loaded, network):
            return widened(loaded, network)
        network.load_state_dict(loaded.state_dict())  # raises if the designs differ
        if part == "autoencoder":
            network.register_to_config(scaling_factor=loaded.config.scaling_factor)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadModel(
            f"{folder} does not hold the {part} of a model of this design ({reason_of(error)})"
        ) from error
    return network  # its config does not hold the path of the folder


def _is_narrower(autoencoder: AutoencoderKL, other: AutoencoderKL) -> bool:
    widths = (autoencoder.config.block_out_channels, other.config.block_out_channels)
    return tuple(widths[0]) < tuple(widths[1])


def _stage(stage: Stage, config: TrainConfig) -> Iterator[Event]:
    stage.model.to(config.device)
    yield from train_stage(stage, config.out, config.seed)


def _tokenizer(config: TrainConfig, dataset: Dataset) -> CLIPTokenizer:
    folder = config.out / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    if config.start is not None and "clip" in config.start_parts:
        shutil.copytree(config.start / "tokenizer", folder)
        return CLIPTokenizer.from_pretrained(folder)
    return networks.tokenizer([*dataset.examples(2_000), *[dataset.quality] * 20], folder)


def _autoencoder_stage(
    config: TrainConfig, dataset: Dataset, design: Design, model: AutoencoderKL
) -> Stage:
    @cache
    def images() -> NDArray[np.uint8]:
        file = config.out / "images.npy"
        return dense_images(file, config.images, dataset, design.size, config.workers)

    def batch(rng: np.random.Generator) -> NDArray[np.uint8]:
        side = min(dataset.crop, design.size)
        if side < design.size and rng.random() < _WHOLE_IMAGES:
            pick = images()[rng.integers(0, config.images, 8)]
        else:
            pick = images()[rng.integers(0, config.images, 32)]
        if len(pick) > 8 and side < design.size:
            y, x = rng.integers(0, design.size - side + 1, 2)
            pick = pick[:, y : y + side, x : x + side]
        if not dataset.upright:
            pick = np.rot90(pick, int(rng.integers(4)), (1, 2))
        return pick[:, :, ::-1] if rng.random() < 0.5 else pick

    def loss(model: Any, step: int, rng: np.random.Generator) -> Tensor:
        x = to_network_range(batch(rng)).to(config.device)
        with autocast(config.device):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.sample()).sample
        y, divergence = y.float(), posterior.kl().mean() / posterior.mean[0].numel()
        error = F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-4 * divergence
        return error + _edge_error(y, x) if dataset.sharp_edges else error

    return Stage(
        name="autoencoder", model=model, loss=loss, steps=config.autoencoder_steps, lr=1e-3
    )


def _edge_error(image: Tensor, target: Tensor) -> Tensor:
    """The mean error of the differences between neighbouring pixels."""
    return F.l1_loss(image.diff(dim=-1), target.diff(dim=-1)) + F.l1_loss(
        image.diff(dim=-2), target.diff(dim=-2)
    )


class _ClassifiedClip(nn.Module):
    """CLIP with classifiers of the scene's attributes on both embeddings.

    Many captions of a batch mean the same, and the contrastive loss alone would push them apart.
    """

    def __init__(self, clip: CLIPModel, counts: Sequence[int]) -> None:
        super().__init__()
        self.clip = clip
        width = clip.config.projection_dim
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in counts)


def _clip_stage(
    config: TrainConfig, dataset: Dataset, clip: CLIPModel, tokenizer: CLIPTokenizer
) -> Stage:
    read_labelled = cache(
        partial(labelled_frames, config.out / "frames.npy", config.images, dataset, config.workers)
    )

    def loss(model: Any, step: int, rng: np.random.Generator) -> Tensor:
        frames, labels, scenes = read_labelled()
        pick = rng.integers(0, len(frames), 128)
        texts = [dataset.caption(scenes[i], rng) for i in pick]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        out = model.clip(
            input_ids=tokens.input_ids.to(config.device),
            pixel_values=to_network_range(frames[pick]).to(config.device),
        )
        target = labels[pick].to(config.device)
        # All pairs with the same attributes are correct.
        same = torch.eq(target[:, None], target[None]).all(-1).float()
        same = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image
        contrast = F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)
        classification = sum(
            F.cross_entropy(5 * head(embedding), target[:, k])
            for k, head in enumerate(model.heads)
            for embedding in (out.image_embeds, out.text_embeds)
        )
        return contrast + classification

    return Stage(
        name="clip",
        model=_ClassifiedClip(clip, dataset.attribute_counts),
        loss=loss,
        steps=config.clip_steps,
        lr=1e-3,
        ema=0.99,
        frozen=("clip.text_model", "clip.text_projection") if config.freeze_text else (),
    )


def _denoiser_stages(
    config: TrainConfig, model: Model, clips: Clips, reader: PartReader | None
) -> Iterator[Stage]:
    def save_snapshot(average: nn.Module, step: int) -> None:
        if config.snapshot_every and step % config.snapshot_every == 0:
            denoiser = average.transformer if isinstance(average, PartReader) else average
            model.save(config.out / "snapshots" / f"{step:06}", denoiser)

    losses = DenoiserLosses(config, model, clips)
    frames = model.dataset.frames
    factor = config.batch_factor
    short = replace(_SHORT, clips=factor * _SHORT.clips)
    whole = View(frames=frames, clips=factor * 160 // frames)
    close_up = View(frames=frames, clips=4 * whole.clips, close_up=True)
    plan = [
        (1, losses.of(View(frames=1, clips=factor * 160)), config.image_steps, 0.1),
        (short.frames, losses.of(short), config.short_steps, 0.1),
        (
            frames,
            losses.mixed(whole, {short: config.joint, close_up: config.close_ups}),
            config.steps,
            0.3,
        ),
    ]
    for length, loss, steps, cooldown in plan:
        yield Stage(
            name=f"{config.network}{length}",
            model=reader or model.denoiser,
            loss=loss,
            steps=steps,
            lr=1e-3 if config.network == "unet" else 2e-3,
            muon=config.network == "transformer",
            warmup=max(1, min(100, steps // 5)),
            cooldown=cooldown,
            checkpoint_every=math.gcd(200, config.snapshot_every),
            on_checkpoint=save_snapshot if length == frames else None,
        )
