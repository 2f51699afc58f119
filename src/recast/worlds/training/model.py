"""The networks of a small text-to-video model, and its folder in diffusers' format.

This module owns the layout of the folder, so that a shipped model loads like any other. It refuses
to know training.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet3DConditionModel, WanTransformer3DModel
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from recast.media.atomic_files import atomic_folder
from recast.worlds.training import networks
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.networks import Design
from recast.worlds.wording import known_words


@dataclass(frozen=True, slots=True)
class Model:
    """The networks of one text-to-video model."""

    dataset: Dataset
    design: Design
    autoencoder: AutoencoderKL
    clip: CLIPModel
    tokenizer: CLIPTokenizer
    denoiser: UNet3DConditionModel | WanTransformer3DModel

    def save(self, folder: Path, denoiser: nn.Module | None = None) -> Path:
        """Write a folder in diffusers' format with fp16 weights, and the complete CLIP beside it.

        `denoiser` is written in place of the model's denoiser, for example one with averaged
        weights. Raises `NoSpace` for a full disk and `BadCall` for a path that cannot be written.
        """
        is_unet = isinstance(self.denoiser, UNet3DConditionModel)
        make_scheduler = networks.scheduler if is_unet else networks.flow_scheduler
        scheduler: Any = make_scheduler(self.design)
        with atomic_folder(folder) as temporary:
            _half_precision(self.autoencoder).save_pretrained(temporary / "vae")
            _half_precision(self.clip).save_pretrained(temporary / "clip")
            networks.clip_processor(self.tokenizer).save_pretrained(temporary / "clip")
            (temporary / "clip" / "recast.json").write_text(self.dataset.clip_card())
            _half_precision(text_encoder(self.clip)).save_pretrained(temporary / "text_encoder")
            part = "unet" if is_unet else "transformer"
            _half_precision(denoiser or self.denoiser).save_pretrained(temporary / part)
            self.tokenizer.save_pretrained(temporary / "tokenizer")
            scheduler.save_pretrained(temporary / "scheduler")
            _write_cards(temporary, self, part, scheduler)
        return folder


def _half_precision(network: nn.Module) -> Any:
    return copy.deepcopy(network).cpu().half()


def _write_cards(folder: Path, model: Model, part: str, scheduler: object) -> None:
    """Write model_index.json, which diffusers reads first, and recast.json, the model's card."""
    index = {
        "_class_name": "TextToVideoSDPipeline" if part == "unet" else "WanPipeline",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        part: ["diffusers", type(model.denoiser).__name__],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    defaults = {
        "frames": model.dataset.frames,
        "height": model.design.size,
        "width": model.design.size,
        "fps": model.dataset.fps,
        "steps": 25,
        "guidance_scale": 4.0,
    }
    words = known_words([*model.dataset.examples(2_000), model.dataset.quality])
    card = {"defaults": defaults, "words": words}
    (folder / "recast.json").write_text(json.dumps(card, indent=1))


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """CLIP's text tower as the class that diffusers' pipelines load."""
    text = CLIPTextModel(clip.config.text_config)
    prefix = "" if any(k.startswith("text_model.") for k in text.state_dict()) else "text_model."
    state = clip.state_dict()
    text.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith("text_model.")}
    )
    return text.eval().requires_grad_(False)


def frozen(kind: Any, folder: Path) -> Any:
    """A network of a saved model in float32, to be used and not to be trained."""
    return kind.from_pretrained(folder, local_files_only=True).float().eval().requires_grad_(False)
