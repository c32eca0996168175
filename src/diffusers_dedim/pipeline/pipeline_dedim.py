"""`DeDiMPipeline`: photos in, protected photos and a record of each face out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor, nn

from diffusers_dedim.diffusion.callbacks import CallbackView, StepCallback, chain_callbacks
from diffusers_dedim.diffusion.contrast import at_least_contrast
from diffusers_dedim.diffusion.denoisers import window_for
from diffusers_dedim.diffusion.sampling import SampleResult, sample_dedim
from diffusers_dedim.diffusion.schedule import dedim_timesteps
from diffusers_dedim.diffusion.solvers import check_scheduler, prepare_scheduler
from diffusers_dedim.faces import Face, FaceDetection, FaceDetector, SmallFaces, warn_small, whole_crop
from diffusers_dedim.faces.find import TOO_SMALL
from diffusers_dedim.models.blocks import CROP_SIZE
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.pipeline.components import (
    OPTIONAL_COMPONENTS,
    OWN_COMPONENTS,
    ComposablePipeline,
    as_component,
    load_own_components,
    own_classes,
    write_loading_files,
)
from diffusers_dedim.pipeline.device import fast_dtype, mapped_device
from diffusers_dedim.pipeline.doubts import SecondLook
from diffusers_dedim.pipeline.engine import Networks, PhotoStream
from diffusers_dedim.pipeline.inputs import (
    OUTPUT_TYPES,
    PhotoInput,
    faces_of_photos,
    from_pixels,
    photo_generators,
    take_photos,
)
from diffusers_dedim.pipeline.output import DeDiMOutput, FaceResult, warn_unreached
from diffusers_dedim.pipeline.photos import StreamPhoto, stream_photo
from diffusers_dedim.pipeline.presets import DeDiMPreset, resolve_preset
from diffusers_dedim.pipeline.rescue import Choice, FacePolicy, Fallback, FoundFaces, find_faces


class DeDiMPipeline(ComposablePipeline):
    """De-identify every face of a photo with a diffusion model (DeDiM, Uchida, Abe and Yamada).

    It lowers automatic matching by face recognition; it does not make anybody anonymous.

    Args:
        unet: face denoiser, epsilon prediction on 112-px crops.
        scheduler: `DDPMScheduler`, or DDIM, DPM-Solver++ or Euler (`diffusion.solvers`; else TypeError), with the
            noise schedule the denoiser was trained with; the bundled one has the paper's cosine schedule.
        face_encoder: maps crops ``[N, 3, 112, 112]`` in [-1, 1] to unit embeddings; guides and judges. Any
            module with that call (a plain one is wrapped). None: the two bundled guides, an `EncoderEnsemble`.
        landmarker: maps such crops to 51 landmarks ``[N, 51, 2]``. None: the bundled regressor.
        visibility: maps such crops to the probability ``[N, 1, 112, 112]`` that a pixel shows the uncovered face;
            what is covered keeps its bits. None: the bundled network beside the bundled landmark model, beside
            another one none: then the whole mask is taken for visible.
        discriminator: maps such crops and a noise level to logits ``[N, 1, h, w]``, above 0 where they look protected;
            leads the sampler back to photos. None: as for ``visibility``; without one there is no such lead.

    Example:
        >>> from diffusers_dedim import DeDiMPipeline
        >>> pipe = DeDiMPipeline.from_pretrained()  # doctest: +SKIP
        >>> out = pipe(photo)  # doctest: +SKIP
        >>> if all(face.is_protected for face in out.faces):  # doctest: +SKIP
        ...     out.images[0].save("protected.png")
    """

    model_cpu_offload_seq = "landmarker->visibility->face_encoder->discriminator->unet"
    _own_components: ClassVar[tuple[str, ...]] = tuple(OWN_COMPONENTS)
    _optional_components: ClassVar[list[str]] = ["face_encoder", "landmarker", "visibility", "discriminator"]
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "sample",
        "prev_sample",
        "noise_pred",
        "x_org",
        "mask",
        "reference",
        "avoid",
    ]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        face_encoder: nn.Module | None = None,
        landmarker: nn.Module | None = None,
        visibility: nn.Module | None = None,
        discriminator: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_scheduler(scheduler)
        named = {
            "face_encoder": face_encoder,
            "landmarker": landmarker,
            "visibility": visibility,
            "discriminator": discriminator,
        }
        given = {name: part for name, part in named.items() if part is not None}
        own = dict.fromkeys(OPTIONAL_COMPONENTS) | given if landmarker is not None else given
        parts = given | load_own_components(str(BUNDLED_WEIGHTS), own)
        for module in (unet, *parts.values()):
            module.eval().requires_grad_(False)
        components: dict[str, nn.Module | None] = dict.fromkeys(OPTIONAL_COMPONENTS)
        components |= {name: as_component(part) for name, part in parts.items()}
        self.register_modules(unet=unet, scheduler=scheduler, **components)
        self.face_detector: FaceDetection = FaceDetector(any_turn=True)
        self._trained_levels = scheduler.alphas_cumprod  # a scheduler put in later must have the same

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any
    ) -> DeDiMPipeline:
        """Load a pipeline: the bundled one (no argument), a local folder, or a Hub repository.

        Args:
            pretrained_model_name_or_path: folder or Hub id; None for the weights inside the package.
            **kwargs: as for `DiffusionPipeline.from_pretrained` (``dtype``, ``variant``, ``revision``, components
                by name, ...). ``dtype`` is the denoiser's, by default bfloat16 where the device of ``device_map``, or
                this processor without one, computes in it, and float32 elsewhere (`fast_dtype`; pass
                ``dtype=fast_dtype("cuda")`` before ``.to("cuda")``); recogniser and landmarks stay in float32,
                because their scores are reported.

        Raises:
            OSError: there is no such folder or repository, or it holds no pipeline.
        """
        source = str(
            BUNDLED_WEIGHTS if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        )
        kwargs |= load_own_components(source, kwargs)
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = fast_dtype(mapped_device(kwargs.get("device_map")))
        pipeline: DeDiMPipeline = super().from_pretrained(source, **kwargs)
        if kwargs.get("device_map") is not None:  # diffusers places what it loads, not what it is given
            for name in OWN_COMPONENTS:
                part = getattr(pipeline, name)
                if part is not None:
                    part.to(pipeline.device)
        return pipeline

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read ``model_index.json`` without our own parts: `from_pretrained` has loaded them, or was given others."""
        config = super().load_config(*args, **kwargs)
        if isinstance(config, dict):
            config = {name: value for name, value in config.items() if name not in OWN_COMPONENTS}
        return config

    def save_config(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write ``model_index.json`` and the few lines of code that let plain diffusers load the folder.

        `save_pretrained` calls it (docs/paper.md, D6). A recogniser of another class than ours is left out.
        """
        super().save_config(save_directory, **kwargs)
        write_loading_files(Path(save_directory), own_classes(self.components))

    @torch.no_grad()
    def __call__(
        self,
        image: PhotoInput | Sequence[PhotoInput],
        *,
        preset: str | DeDiMPreset = "fast",
        start_timestep: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        max_rounds: int | None = None,
        threshold: float | None = None,
        guidance: PipelineCallback | None = None,
        callback_on_step_end: PipelineCallback | MultiPipelineCallbacks | StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample", "prev_sample"),
        aligned: bool = False,
        small_faces: SmallFaces = "blur",
        fallback: Fallback = "leave-out",
        faces: Sequence[Face] | Sequence[Sequence[Face]] | None = None,
        select_faces: Choice | None = None,
        batch_size: int = 16,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        album: Album | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
    ) -> DeDiMOutput | tuple[list[Any], list[FaceResult]]:
        """Protect every face of one or more photos.

        Args:
            image: a photo or a list of photos of any size: PIL image of any mode, array ``[H, W, 3]`` or ``[H, W]``
                (uint8, or floats in [0, 1]), or float tensor ``[3, H, W]`` in [0, 1]; or a batch of arrays or tensors.
            preset: "gentle", "fast", "strong", "paper" or a `DeDiMPreset`; the next five arguments override its values.
            start_timestep: the paper's t_0. num_inference_steps: denoising steps a round.
            guidance_scale: s ("paper") or the size of a push ("fast"); 0 for no guidance.
            max_rounds: L. threshold: h, a probability strictly between 0 and 1.
            guidance: replaces the preset's guidance.
            callback_on_step_end: more callbacks, run after the guidance: ``(pipeline, step_index, timestep,
                tensors) -> tensors``; what it returns as ``prev_sample`` is used.
            callback_on_step_end_tensor_inputs: what a plain function gets, of ``_callback_tensor_inputs``.
            aligned: the images are aligned 112x112 crops already; nothing is detected.
            small_faces: a face that has too little to change is covered: "blur" or "pixelate". It is under 40 px, too
                little of it is visible, or it is turned away. "skip" leaves one under 40 px as it is; each with a
                warning. "error" refuses its photo. With these two the ``fallback`` is for the others.
            fallback: what becomes of a face that stays above the threshold after all attempts: "blur" or "pixelate"
                covers it; with "leave-out" there is a warning, and ``is_protected`` is False: leave the photo out.
            faces: found by other means, instead of the detector: a list for one photo, or a list a photo; boxes and
                five points in photo px.
            select_faces: ``face -> bool`` by its box, landmarks and confidence, or a `PersonChoice`; the faces it
                refuses are left as they are, **unprotected**, and are not in the result. None: every face.
            batch_size: faces that are sampled together.
            generator: one for all, or one per photo.
            album: what is protected of each person already, from earlier calls or photos; each face is told apart from
                those of its person, and noted. None: every photo by itself.
            output_type: "pil" (RGB; RGBA where a PIL image came with transparency, and a colour photo's profile in
                ``info["icc_profile"]``), or in [0, 1] "np" (float32 ``[H, W, 3]``) or "pt" (``[3, H, W]``).
            return_dict: False returns the tuple (images, faces).

        Returns:
            `DeDiMOutput`. A face that ended above its threshold is in it as it is, with a warning and
            ``is_protected`` False.

        Raises:
            NoFaceError: a photo shows no face, or none that was selected. FaceTooSmallError: a face is under 40 px,
                with ``small_faces="error"``, or all are with "skip".
            ValueError, TypeError: an argument is of the wrong shape, type or range.
        """
        settings = resolve_preset(
            preset,
            start_timestep=start_timestep,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            max_rounds=max_rounds,
            threshold=threshold,
        )
        _check_call(output_type, batch_size, aligned, faces, select_faces)
        policy = FacePolicy(small_faces, fallback, select_faces)
        photos, beside = take_photos(image)
        generators = photo_generators(generator, len(photos))
        given = [None] * len(photos) if faces is None else faces_of_photos(faces, len(photos))
        found = [
            find_faces(photo, [whole_crop(photo)] if aligned else seen, self.face_detector, policy, index)
            for index, (photo, seen) in enumerate(zip(photos, given, strict=True))
        ]
        for index, each in enumerate(found):
            # past __call__ and its no_grad wrapper, the user's line
            _warn_small(each, index, small_faces, stacklevel=5)
        with self.progress_bar(total=sum(each.changed for each in found)) as bar:
            callbacks = (guidance, callback_on_step_end, callback_on_step_end_tensor_inputs)
            stream = PhotoStream(
                self._networks(*callbacks, bar),
                settings,
                policy=policy,
                slots=batch_size,
                isolate=False,
                on_face=bar.update,
                album=album,
            )
            items = map(StreamPhoto, range(len(photos)), photos, generators, found)
            done = {result.photo.owner: result for result in stream.protect(items)}
        results = [
            replace(face, image_index=index) for index in range(len(photos)) for face in done[index].faces
        ]
        warn_unreached(results, settings.threshold, stacklevel=4)  # the line that called the pipeline
        self.maybe_free_model_hooks()
        images = [from_pixels(done[index].pixels, output_type, kept) for index, kept in enumerate(beside)]
        return DeDiMOutput(images, results) if return_dict else (images, results)

    def stream(
        self,
        photos: Iterable[Any],
        *,
        preset: str | DeDiMPreset = "fast",
        max_rounds: int | None = None,
        threshold: float | None = None,
        guidance: PipelineCallback | None = None,
        callback_on_step_end: PipelineCallback | MultiPipelineCallbacks | StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample", "prev_sample"),
        small_faces: SmallFaces = "blur",
        fallback: Fallback = "leave-out",
        select_faces: Choice | None = None,
        batch_size: int = 16,
        generator: torch.Generator | None = None,
        album: Album | None = None,
    ) -> Iterator[Any]:
        """Protect photos one after another, however many there are: faces of the next take the places of those done.

        Each photo gets what calling the pipeline would give it, up to the rounding of other batch sizes. Photos are
        taken when there is room for them and come back as soon as all their faces are done, so their order may change
        and memory does not grow with their number. Faces are found in a thread of its own: do not call the pipeline
        meanwhile. What a photo provokes is in its result, and the stream goes on.

        Args:
            photos: may be endless. Photos as for the pipeline, numbered by ``photo.owner`` of their results; or
                `StreamPhoto`, which may name an owner, a generator and faces. Anything else is handed through.
            preset, max_rounds, threshold, guidance, callback_on_step_end, callback_on_step_end_tensor_inputs,
                small_faces, fallback, select_faces: as for the pipeline. Nothing is warned of: faces left as they are
                come in ``small_faces`` and ``unchosen`` of the result, the others with their ``treatment``.
            batch_size: faces that are sampled together; halved whenever memory does not suffice.
            generator: draws for the photos in their order; a `StreamPhoto` brings its own.
            album: as for the pipeline; a face waits for those of its person on earlier photos.

        Yields:
            A `StreamResult` for each photo. **Look at its error, and at ``is_protected`` of its faces.**

        Raises:
            ValueError, TypeError: a setting is of the wrong type or range.

        Example:
            >>> for result in pipe.stream(map(Image.open, paths)):  # doctest: +SKIP
            ...     if result.error is None and all(face.is_protected for face in result.faces):
            ...         result.image.save(f"{result.photo.owner}.png")
        """
        settings = resolve_preset(preset, max_rounds=max_rounds, threshold=threshold)
        _check_call("pil", batch_size, False, None, None)
        networks = self._networks(guidance, callback_on_step_end, callback_on_step_end_tensor_inputs)
        policy = FacePolicy(small_faces, fallback, select_faces)
        stream = PhotoStream(networks, settings, policy=policy, slots=batch_size, album=album)
        return self._stream(
            stream, (stream_photo(item, index, generator) for index, item in enumerate(photos))
        )

    def _stream(self, stream: PhotoStream, photos: Iterable[Any]) -> Iterator[Any]:
        yield from stream.protect(photos)
        self.maybe_free_model_hooks()

    def sampler(self, preset: str | DeDiMPreset = "fast") -> Callable[..., SampleResult]:
        """`sample_dedim` with this pipeline's networks and a preset, for who has aligned crops, as video has.

        Args:
            preset: "gentle", "fast", "strong", "paper" or a `DeDiMPreset`.

        Returns:
            A function of ``x_org``, ``mask``, ``generators`` and ``max_rounds``, and what else `sample_dedim` takes.

        Raises:
            ValueError: there is no such preset.
        """
        settings = resolve_preset(preset)
        return self._networks(None, None, ()).sample(settings)

    def _networks(
        self,
        guidance: PipelineCallback | None,
        callback_on_step_end: PipelineCallback | MultiPipelineCallbacks | StepCallback | None,
        callback_inputs: Sequence[str],
        bar: Any = None,
    ) -> Networks:
        """What the engine works with; ``bar`` shows each call of the denoiser."""

        def sample(settings: DeDiMPreset) -> Callable[..., SampleResult]:
            callbacks = [guidance or settings.make_guidance(), callback_on_step_end]
            chained = chain_callbacks(callbacks, callback_inputs, self._callback_tensor_inputs)
            return self._sampler(settings, chained, bar)

        look = SecondLook(self.landmarker, self.visibility)
        return Networks(
            self.face_detector, self.landmarker, self.face_encoder, sample, self._execution_device, look
        )

    def _sampler(
        self, settings: DeDiMPreset, callback: StepCallback | None, bar: Any
    ) -> Callable[..., SampleResult]:
        timesteps = dedim_timesteps(settings.start_timestep, settings.num_inference_steps)
        scheduler = prepare_scheduler(self.scheduler, timesteps, self._trained_levels)
        calls = count(1)

        def denoise(x_t: Tensor, timestep: int) -> Tensor:
            if bar is not None:  # "paper" takes minutes
                bar.set_postfix_str(f"step {next(calls)}, {len(x_t)} images")
            return self._predict_noise(x_t, timestep)

        sample = partial(
            sample_dedim,
            unet=denoise,
            scheduler=scheduler,
            face_encoder=self.face_encoder,
            threshold=settings.sampler_threshold,
            guidance=callback,
            error_correction=settings.error_correction,
            avoid_limit=settings.avoid_limit,
            window=window_for(self.unet, (CROP_SIZE, CROP_SIZE)) if settings.denoise_window else None,
            pipeline=CallbackView(self, scheduler),
        )
        return at_least_contrast(sample, settings.least_contrast)

    def _predict_noise(self, x_t: Tensor, timestep: int) -> Tensor:
        """Call the denoiser in its own type and the memory layout that convolutions like."""
        x_t = x_t.to(self.unet.dtype, memory_format=torch.channels_last)
        # of two half types, its own and one around it, a processor's group norms take no mixture
        own = nullcontext() if x_t.dtype == torch.float32 else torch.autocast(x_t.device.type, enabled=False)
        with own:
            # a tensor: torch.compile would compile anew for every whole number
            eps: Tensor = self.unet(x_t, torch.tensor(timestep, device=x_t.device)).sample
        return eps.float()


def _check_call(
    output_type: str, batch_size: int, aligned: bool, faces: Sequence[Any] | None, select_faces: Choice | None
) -> None:
    """Refuse what the pipeline cannot do, before any face is looked for."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type: expected one of {OUTPUT_TYPES}, got {output_type!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
    if aligned and select_faces is not None:
        raise ValueError("select_faces: needs faces to choose from, and aligned=True detects none; drop one.")
    if aligned and faces is not None:
        raise ValueError("faces: aligned=True says that each image is one face; drop one of the two.")


def _warn_small(found: FoundFaces, index: int, small_faces: SmallFaces, stacklevel: int) -> None:
    """Say what becomes of a photo's small faces."""
    small = len(found.small) + sum(subject.reason == TOO_SMALL for subject in found.subjects)
    warn_small(small, len(found.small) + len(found.subjects), index, stacklevel, small_faces)
