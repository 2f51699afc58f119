"""The networks of a small text-to-video model, and the folder in diffusers' format they make."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from recast.files import atomic_folder
from recast.shapes import captions, networks, world
from recast.shapes.networks import Design


@dataclass(frozen=True, slots=True)
class Model:
    """The networks that together are a text-to-video model."""

    design: Design
    autoencoder: AutoencoderKL
    clip: CLIPModel
    tokenizer: CLIPTokenizer
    unet: UNet3DConditionModel

    def save(self, folder: Path, unet: nn.Module | None = None) -> Path:
        """Write a folder in diffusers' format, weights in fp16, with the whole CLIP beside it.

        `unet` is another state of the UNet, to be written instead.
        """
        with atomic_folder(folder) as temporary:
            _half(self.autoencoder).save_pretrained(temporary / "vae")
            _half(self.clip).save_pretrained(temporary / "clip")
            networks.clip_processor(self.tokenizer).save_pretrained(temporary / "clip")
            _half(text_encoder(self.clip)).save_pretrained(temporary / "text_encoder")
            _half(unet or self.unet).save_pretrained(temporary / "unet")
            self.tokenizer.save_pretrained(temporary / "tokenizer")
            networks.scheduler(self.design).save_pretrained(temporary / "scheduler")
            _describe(temporary, self.design)
        return folder


def _half(network: nn.Module) -> Any:
    return copy.deepcopy(network).cpu().half()


def _describe(folder: Path, design: Design) -> None:
    """What diffusers reads first, and what the model says of itself."""
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    defaults = {
        "frames": world.FRAMES,
        "height": design.size,
        "width": design.size,
        "fps": world.FPS,
        "steps": 25,
        "guidance_scale": 4.0,
    }
    card = {"defaults": defaults, "words": captions.known_words(captions.examples(2_000))}
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
