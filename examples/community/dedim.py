"""DeDiM on aligned face crops, in one file (Uchida, Abe and Yamada, "DeDiM", Algorithm 2).

A community pipeline has to stand alone: diffusers copies this file into its module cache and imports it there,
so it may need nothing but diffusers and torch. It therefore repeats the sampler of the package `diffusers-dedim`,
which also finds the faces in a photo, pastes the result back, and has a preset of some 30 denoiser calls a face.
This file is the paper's own setting. A test compares both on the same seed.

It lowers automatic matching by face recognition; it does not make anybody anonymous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers import DiffusionPipeline

        >>> # face_encoder: your own module, crops [N, 3, H, W] in [-1, 1] -> unit embeddings [N, D]
        >>> pipe = DiffusionPipeline.from_pretrained(
        ...     "path/to/ddpm-of-aligned-faces",
        ...     custom_pipeline="dedim",
        ...     trust_remote_code=True,  # diffusers asks for it: read the file first
        ...     face_encoder=face_encoder,
        ... )
        >>> out = pipe(crops, mask, generator=torch.Generator().manual_seed(0), max_rounds=3)
        >>> out.probabilities  # match probability of each face, (cosine + 1) / 2
        >>> if all(out.reached_threshold):
        ...     out.images[0].save("protected.png")
        ```
"""


@dataclass
class DeDiMCropOutput(BaseOutput):
    """Protected crops and, per face, the match probability by ``face_encoder`` and the rounds that were run.

    ``images`` are PIL images, or for ``output_type="pt"`` one tensor ``[N, 3, H, W]`` in [0, 1].
    ``reached_threshold`` tells which faces fell below the threshold: the others are NOT protected as asked.
    """

    images: list[Image.Image] | torch.Tensor
    probabilities: list[float]
    rounds: list[int]
    reached_threshold: list[bool]


class DeDiMCropPipeline(DiffusionPipeline):
    """De-identify aligned face crops: diffuse a little, denoise while moving away from the identity, repeat.

    Args:
        unet: denoiser that predicts the noise of aligned faces.
        scheduler: `DDPMScheduler` it was trained with.
        face_encoder: differentiable module, crops ``[N, 3, H, W]`` in [-1, 1] to unit embeddings ``[N, D]``.
    """

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler, face_encoder: torch.nn.Module) -> None:
        super().__init__()
        if not isinstance(scheduler, DDPMScheduler):
            raise TypeError(f"scheduler: expected a DDPMScheduler, got {type(scheduler).__name__}.")
        self.register_modules(unet=unet.eval(), scheduler=scheduler)
        self.image_processor = VaeImageProcessor(do_resize=False, do_convert_rgb=True)
        self.face_encoder = face_encoder.eval()  # no component: diffusers cannot save or load foreign classes

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, *args: Any, **kwargs: Any) -> DeDiMCropPipeline:
        super().to(*args, **kwargs)
        self.face_encoder.to(self.device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        mask: torch.Tensor | None = None,
        start_timestep: int = 100,
        num_inference_steps: int = 100,
        guidance_scale: float = 250.0,
        max_rounds: int = 100,
        threshold: float = 0.2,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> DeDiMCropOutput | tuple[Any, list[float], list[int], list[bool]]:
        """Protect aligned faces; the defaults are section 4 of the paper, up to 10,000 denoiser calls a face.

        Args:
            image: PIL image or list of them, all of one size, or tensor ``[N, 3, H, W]`` in [0, 1].
            mask: ``[N, 1, H, W]`` or ``[1, 1, H, W]`` in [0, 1], 1 = sampled, 0 = original; the paper takes the pixels
                within 10 px of a landmark. None changes the whole crop.
            start_timestep: the paper's t_0. num_inference_steps: denoising steps a round, evenly spaced over it.
            guidance_scale: s, 0 or more; 0 is plain DDPM. max_rounds: L. threshold: h, a probability strictly
                between 0 and 1.
            generator: one, or one per face.
            callback_on_step_end: ``(pipeline, step_index, timestep, {"prev_sample": ...})``, after the guidance; what
                it returns as ``prev_sample`` is used.
            output_type: "pil" or "pt". return_dict: False returns the tuple.

        Raises:
            TypeError: ``image`` is none of these.
            ValueError: an argument has a wrong shape or is out of its range; the message names it.
        """
        _check_image(image)
        x_org = self.image_processor.preprocess(image).to(self.device, torch.float32)
        self._check_inputs(x_org, start_timestep, num_inference_steps, max_rounds, threshold, output_type)
        self._check_guidance(x_org, mask, guidance_scale)
        mask = (
            torch.ones_like(x_org[:, :1]) if mask is None else mask.to(x_org).expand(len(x_org), -1, -1, -1)
        )
        generators = self._generators(generator, len(x_org))
        scheduler = DDPMScheduler.from_config(self.scheduler.config, clip_sample=False)
        stride = start_timestep / num_inference_steps
        timesteps = [round(start_timestep - i * stride) - 1 for i in range(num_inference_steps)]
        scheduler.set_timesteps(timesteps=timesteps)

        reference = self.face_encoder(x_org)  # v_0
        x_0, probability = x_org.clone(), x_org.new_ones(len(x_org))  # line 1
        rounds = [0] * len(x_org)
        active = torch.arange(len(x_org), device=x_org.device)
        for _ in self.progress_bar(range(max_rounds)):  # line 2
            own = [generators[i] for i in active.tolist()]
            noise = randn_tensor(x_org[active].shape, own, x_org.device, x_org.dtype)
            x_t = scheduler.add_noise(x_0[active], noise, torch.tensor(timesteps[:1]))  # line 3
            for index, timestep in enumerate(timesteps):  # line 4
                eps = self.unet(x_t.to(self.unet.dtype), timestep).sample.float()
                x_prev = scheduler.step(eps, timestep, x_t, generator=own).prev_sample  # lines 5-6
                if guidance_scale > 0:  # line 7
                    gradient = self._log_other_gradient(x_t, reference[active])
                    x_prev = x_prev + guidance_scale * _sigma(scheduler, timestep) * gradient
                if callback_on_step_end is not None:
                    x_prev = callback_on_step_end(self, index, timestep, {"prev_sample": x_prev})[
                        "prev_sample"
                    ]
                x_t = x_prev  # line 8
            candidate = mask[active] * x_t + (1 - mask[active]) * x_org[active]  # line 9
            after = _probability(self.face_encoder(candidate), reference[active])
            better = after < probability[active]  # line 10
            x_0[active[better]], probability[active[better]] = candidate[better], after[better]  # line 11
            for i in active.tolist():
                rounds[i] += 1
            active = active[probability[active] >= threshold]  # line 12
            if len(active) == 0:
                break  # line 13

        images = self.image_processor.postprocess(x_0.cpu(), output_type=output_type)
        result = (images, probability.tolist(), rounds, (probability < threshold).tolist())
        return DeDiMCropOutput(*result) if return_dict else result

    def _log_other_gradient(self, x_t: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Gradient of log(1 - p(y_0 | x_t)); 1 - p is kept above a thousandth, for at x_org it is 0."""
        with torch.inference_mode(False), torch.enable_grad():
            x_t = x_t.detach().clone().requires_grad_()
            probability = _probability(self.face_encoder(x_t), reference.clone())
            (gradient,) = torch.autograd.grad(probability.sum(), x_t)
        return -gradient / (1 - probability.detach()).clamp_min(1e-3).reshape(-1, 1, 1, 1)

    def _generators(self, generator: Any, count: int) -> list[torch.Generator]:
        """One generator per face, so that a face's result does not depend on its batch."""
        if isinstance(generator, list):
            if len(generator) != count:
                raise ValueError(f"generator: expected one, or {count} (one a face), got {len(generator)}.")
            return generator
        device = "cpu" if generator is None else generator.device
        seeds = [torch.randint(2**62, (1,), generator=generator, device=device).item() for _ in range(count)]
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def _check_inputs(
        self,
        x_org: torch.Tensor,
        start_timestep: int,
        steps: int,
        max_rounds: int,
        threshold: float,
        output_type: str,
    ) -> None:
        train = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= start_timestep <= train:
            raise ValueError(
                f"num_inference_steps, start_timestep: expected 1 <= steps <= start <= {train}, got {steps} and "
                f"{start_timestep}."
            )
        if not 0 < threshold < 1:
            raise ValueError(f"threshold: expected a probability strictly between 0 and 1, got {threshold}.")
        if max_rounds < 1:
            raise ValueError(f"max_rounds: expected at least 1, got {max_rounds}.")
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type: expected 'pil' or 'pt', got {output_type!r}.")
        if self.scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"scheduler: expected prediction_type 'epsilon', got {self.scheduler.config.prediction_type!r}."
            )

    def _check_guidance(self, x_org: torch.Tensor, mask: torch.Tensor | None, guidance_scale: float) -> None:
        """A face that was meant to be guided must not be left as it is without a word."""
        if not 0 <= guidance_scale < float("inf"):  # also refuses nan
            raise ValueError(f"guidance_scale: expected a finite number of 0 or more, got {guidance_scale}.")
        if mask is None:
            return
        if mask.shape[0] not in (1, len(x_org)) or mask.shape[1:] != (1, *x_org.shape[2:]):
            raise ValueError(
                f"mask: expected [{len(x_org)}, 1, {x_org.shape[2]}, {x_org.shape[3]}], got {list(mask.shape)}."
            )
        if not bool(((mask >= 0) & (mask <= 1)).all()):  # also refuses nan
            raise ValueError(
                "mask: expected values in [0, 1], 1 = sampled, 0 = original; divide 0..255 by 255."
            )


def _probability(embedding: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Eq. 4: (cos + 1) / 2."""
    return ((embedding * reference).sum(1) + 1) / 2


def _sigma(scheduler: DDPMScheduler, timestep: int) -> float:
    """Standard deviation of q(x_{t-1} | x_t, x_0) for the set timesteps; 0 at the last."""
    previous = int(scheduler.previous_timestep(timestep))
    ac_t = float(scheduler.alphas_cumprod[timestep])
    ac_prev = float(scheduler.alphas_cumprod[previous]) if previous >= 0 else 1.0
    return float(((1 - ac_prev) / (1 - ac_t) * (1 - ac_t / ac_prev)) ** 0.5)


def _check_image(image: Any) -> None:
    """Refuse what the image processor would take for something else."""
    if isinstance(image, torch.Tensor):
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise ValueError(
                f"image: expected a float tensor [N, 3, H, W], got {image.dtype} {list(image.shape)}."
            )
        if not bool(((image >= 0) & (image <= 1)).all()):  # also refuses nan
            raise ValueError(
                "image: expected tensor values in [0, 1]; give (image + 1) / 2 of one in [-1, 1]."
            )
        return
    images = image if isinstance(image, list) else [image]
    if not images or not all(isinstance(one, Image.Image) for one in images):
        raise TypeError("image: expected a PIL image, a list of them, or a tensor [N, 3, H, W] in [0, 1].")
    if len({one.size for one in images}) > 1:
        raise ValueError(f"image: expected crops of one size, got {sorted({one.size for one in images})}.")
