"""Our networks: recogniser, landmark regressor, visibility, discriminator, denoiser, and where their weights are."""

from diffusers_dedim.models.discriminator import PatchDiscriminator
from diffusers_dedim.models.landmarks import MIRROR_PERMUTATION, NUM_LANDMARKS, LandmarkRegressor
from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.models.unet import make_unet
from diffusers_dedim.models.visibility import VisibilityNet
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS

__all__ = [
    "BUNDLED_WEIGHTS",
    "MIRROR_PERMUTATION",
    "NUM_LANDMARKS",
    "LandmarkRegressor",
    "MobileFaceNet",
    "PatchDiscriminator",
    "VisibilityNet",
    "make_unet",
]
