"""`dedim train unet|encoder|landmarks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train the bundled networks, or your own, on aligned 112x112 face crops.")

DataOption = Annotated[
    str, typer.Option(help="Parquet file, folder of parquet files or images, or a Hub name.")
]
OutputOption = Annotated[Path, typer.Option("--output-dir", "-o", help="Checkpoints, log and the model.")]
MinutesOption = Annotated[float, typer.Option(help="Time budget over all resumed sessions.")]
StepsOption = Annotated[int, typer.Option(help="Step budget.")]
BatchOption = Annotated[int, typer.Option(help="Images a step.")]
RateOption = Annotated[float, typer.Option(help="Peak learning rate.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")]
CompileOption = Annotated[bool, typer.Option("--compile", help="torch.compile the network.")]
PrecisionOption = Annotated[str, typer.Option(help="no, bf16 or fp16.")]
WorkersOption = Annotated[int, typer.Option(help="Processes that decode images.")]
MemoryOption = Annotated[bool, typer.Option(help="Keep decoded images: 50 KB of memory each.")]
SeedOption = Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")]


def _report(metrics: dict[str, float], output_dir: Path) -> None:
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:.4f}")
    typer.echo(f"model: {output_dir / 'model'}")


@app.command()
def unet(
    data: DataOption, output_dir: OutputOption, minutes: MinutesOption = 30, max_steps: StepsOption = 1_000_000,
    batch_size: BatchOption = 16, learning_rate: RateOption = 6e-4, crop_size: int = 64,
    full_size_share: float = 0.1, low_timestep_share: float = 0.6, ema_decay: float = 0.999,
    precision: PrecisionOption = "bf16", compile: CompileOption = False, num_workers: WorkersOption = 0,
    seed: SeedOption = 0, resume: ResumeOption = False,
) -> None:  # fmt: skip
    """Train the face DDPM; validation: PSNR of the x_0 estimate by timestep."""
    import torch

    from diffusers_dedim.training.data import FaceCrops
    from diffusers_dedim.training.loop import LoopConfig, train
    from diffusers_dedim.training.unet import UNetTask

    loop = LoopConfig(
        str(output_dir), minutes, max_steps, batch_size, learning_rate, ema_decay=ema_decay,
        precision=precision, compile=compile, num_workers=num_workers, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    task = UNetTask(
        FaceCrops(data), FaceCrops(data, "val"), loop, crop_size=crop_size,
        full_size_share=full_size_share, low_timestep_share=low_timestep_share,
    )  # fmt: skip
    _report(train(task, loop, resume=resume), output_dir)


@app.command()
def encoder(
    data: DataOption, output_dir: OutputOption,
    teacher: Annotated[Path, typer.Option(help="ONNX recogniser: face [N,3,112,112] in [-1,1] -> embedding.")],
    minutes: MinutesOption = 60, max_steps: StepsOption = 1_000_000, batch_size: BatchOption = 64,
    learning_rate: RateOption = 2e-3, ema_decay: float = 0.998, precision: PrecisionOption = "bf16",
    max_noise: Annotated[float, typer.Option(help="Largest std of the noise on half of the crops.")] = 0.1,
    feature_weight: Annotated[float, typer.Option(help="Weight of the teacher's feature maps.")] = 1.0,
    initial_weights: Annotated[Path | None, typer.Option(help="Model folder to start from.")] = None,
    keep_in_memory: MemoryOption = False, compile: CompileOption = False, num_workers: WorkersOption = 0,
    seed: SeedOption = 0, resume: ResumeOption = False,
) -> None:  # fmt: skip
    """Distil MobileFaceNet from a teacher; validation: cosine to, and score correlation with, the teacher."""
    import torch

    from diffusers_dedim.encoders import MobileFaceNet
    from diffusers_dedim.training.data import FaceCrops
    from diffusers_dedim.training.encoder import EncoderTask, teacher_embeddings
    from diffusers_dedim.training.loop import LoopConfig, train
    from diffusers_dedim.training.teacher import Teacher

    loop = LoopConfig(
        str(output_dir), minutes, max_steps, batch_size, learning_rate, ema_decay=ema_decay, grad_clip=5.0,
        precision=precision, compile=compile, num_workers=num_workers, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    crops, val = FaceCrops(data, keep_in_memory=keep_in_memory), FaceCrops(data, "val")
    student = MobileFaceNet.from_pretrained(initial_weights) if initial_weights else MobileFaceNet()
    task = EncoderTask(
        crops, val, Teacher(teacher), teacher_embeddings(teacher, crops, output_dir / "teacher-train.npy"),
        teacher_embeddings(teacher, val, output_dir / "teacher-val.npy"), loop, student=student,
        max_noise=max_noise, feature_weight=feature_weight,
    )  # fmt: skip
    _report(train(task, loop, resume=resume), output_dir)


@app.command()
def landmarks(
    data: DataOption, output_dir: OutputOption, minutes: MinutesOption = 15, max_steps: StepsOption = 1_000_000,
    batch_size: BatchOption = 64, learning_rate: RateOption = 2e-3, ema_decay: float = 0.998,
    precision: PrecisionOption = "no", compile: CompileOption = False, num_workers: WorkersOption = 0,
    seed: SeedOption = 0, resume: ResumeOption = False,
) -> None:  # fmt: skip
    """Train the 51-landmark regressor; validation: error over the distance of the outer eye corners."""
    import torch

    from diffusers_dedim.training.data import FaceCrops
    from diffusers_dedim.training.landmarks import LandmarkTask
    from diffusers_dedim.training.loop import LoopConfig, train

    loop = LoopConfig(
        str(output_dir), minutes, max_steps, batch_size, learning_rate, ema_decay=ema_decay,
        precision=precision, compile=compile, num_workers=num_workers, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    train_data = FaceCrops(data, require_landmarks=True)
    task = LandmarkTask(train_data, FaceCrops(data, "val", require_landmarks=True), loop)
    _report(train(task, loop, resume=resume), output_dir)


if __name__ == "__main__":
    app()
