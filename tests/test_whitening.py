"""Latents whose main directions vary equally, in networks that compute what they computed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, WanTransformer3DModel

from recast.errors import BadCall
from recast.pipeline import model_loading
from recast.worlds.training import whitening
from recast.worlds.training.config import TrainConfig

SHAPES_DIT = Path(model_loading.source_of("shapes-dit"))


def uneven_latents() -> np.ndarray:
    """(N, C, F, h, w) whose channels are mixed from directions with deviations from 0.05 to 4."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 3000, generator=generator)
    rows *= torch.tensor([0.05, 0.1, 0.3, 0.5, 0.7, 1.0, 2.0, 4.0])[:, None]
    mixing = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    return (mixing @ rows).reshape(8, 3, 10, 10, 10).movedim(1, 0).numpy().astype(np.float16)


def directions(latents: np.ndarray) -> torch.Tensor:
    """The deviations along the main directions, the smallest first."""
    rows = torch.from_numpy(latents.astype(np.float32)).movedim(1, -1).flatten(0, -2)
    return torch.linalg.eigvalsh(torch.cov(rows.T)).sqrt()


def test_the_main_directions_vary_equally_and_both_networks_compute_the_same() -> None:
    autoencoder = AutoencoderKL.from_pretrained(SHAPES_DIT / "vae").float().eval()
    transformer = WanTransformer3DModel.from_pretrained(SHAPES_DIT / "transformer").float().eval()
    autoencoder.register_to_config(scaling_factor=1.0)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    x = torch.randn(1, 8, 4, 8, 8, generator=generator)
    text = torch.randn(1, 32, transformer.config.text_dim, generator=generator)
    time = torch.tensor([500.0])

    with torch.no_grad():
        z = autoencoder.encode(image).latent_dist.mean
        decoded = autoencoder.decode(z).sample
        output = transformer(x, time, text, return_dict=False)[0]
    latents = uneven_latents()
    matrix = whitening._matrix(torch.from_numpy(latents.astype(np.float32)))
    whitened = whitening.whiten(latents, autoencoder, transformer)

    # Directions with deviations of 0.05 and 0.1 stay as they are.
    expected = torch.tensor([0.05, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(directions(whitened), expected, rtol=0.05, atol=0.005)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-5)

    def mapped(tensor: torch.Tensor) -> torch.Tensor:
        return torch.einsum("dc,bc...->bd...", matrix, tensor)

    with torch.no_grad():
        encoded = autoencoder.encode(image).latent_dist.mean
        torch.testing.assert_close(encoded, mapped(z), rtol=0, atol=1e-3)
        torch.testing.assert_close(autoencoder.decode(encoded).sample, decoded, rtol=0, atol=1e-3)
        new = transformer(mapped(x), time, text, return_dict=False)[0]
    torch.testing.assert_close(new, mapped(output), rtol=0, atol=1e-3)
    assert float((mapped(output) - output).abs().max()) > 0.1


def test_a_unet_is_not_whitened() -> None:
    with pytest.raises(BadCall, match="`whiten` needs `network` transformer"):
        TrainConfig(out=Path("unused"), whiten=True, network="unet")
