"""Reading the features of a model by role."""

from collections.abc import Mapping

from torch import Tensor

from recast.backbones.base import Backbone
from recast.networks.feature_hooks import record


def motion_features(backbone: Backbone, x: Tensor, t: Tensor, prompt: str) -> Mapping[str, Tensor]:
    """The features of x_t (1, C, F, H, W): path of each tap -> (1, F, H, W, C).

    With `stop` the pass ends at the last tap. Gradients flow back to x_t.
    """
    denoise = backbone.denoiser(backbone.encode_text([prompt]))
    taps = backbone.taps("motion")
    with record(backbone.network, taps, x.shape[2], stop=True) as features:
        denoise(x, t)
    return features
