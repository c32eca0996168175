"""Draw how a training went, from the ``log.jsonl`` of its output folder.

    python -m benchmarks.curves runs/unet -o out/unet.png
    python -m benchmarks.curves runs/first runs/second --figure cosine_to_teacher -o out/encoder.png

Several folders are parts of one training, each begun with the weights of the one before, and are drawn one after
another. Left the loss, each point the mean of the steps that the log has in one line, and their running mean; right
the validation figures of the averaged weights. Time is that of the log: minutes in which steps were made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_dedim.evaluation.figures import to_png
from diffusers_dedim.extras import import_extra

SMOOTHED = 15  # lines of the log in the running mean, and a tenth of them at most
_NOT_FIGURES = ("step", "seconds", "loss", "lr")

Lines = list[dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the logs and write the picture.

    Args:
        arguments: command line without the program; ``sys.argv`` by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of `dedim train`, in order")
    parser.add_argument("--figure", nargs="*", help="names of validation figures (default: all)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(arguments)
    try:
        figure = curves_figure([read_log(run / "log.jsonl") for run in options.runs], options.figure)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(to_png(figure))
    print(options.out)


def read_log(path: Path) -> Lines:
    """Lines of a ``log.jsonl``; of steps that a resumed run made again the later line is kept.

    Raises:
        ValueError: a line is not a JSON object with ``step`` and ``seconds``; the last may be cut short by a kill.
    """
    texts, lines = path.read_text(encoding="utf-8").splitlines(), Lines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            while lines and lines[-1]["step"] > line["step"]:
                lines.pop()
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts):
                break
            raise ValueError(f"{path}: line {number} is not one of a training's log ({error}).") from error
        lines.append(line)
    if not lines:
        raise ValueError(f"{path}: no step was logged.")
    # a step may have a line of its loss and one of its figures, and of each the later counts
    return list({(line["step"], "loss" in line): line for line in lines}.values())


def curves_figure(parts: Sequence[Lines], names: Sequence[str] | None = None) -> Any:
    """Loss and validation figures over minutes.

    Args:
        parts: logs (`read_log`), one after another.
        names: validation figures to draw; all of them by default.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: a name is not in the logs.
    """
    lines = _joined(parts)
    known = list(dict.fromkeys(name for line in lines for name in line if name not in _NOT_FIGURES))
    chosen = known if names is None else names
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"figure: expected some of {known}, got {unknown}.")
    figure = import_extra("matplotlib.figure", "the curves").Figure(figsize=(8, 3), layout="constrained")
    left, *rest = figure.subplots(1, 1 + len(chosen))[:] if chosen else [figure.subplots()]
    minutes, losses = _series(lines, "loss")
    left.plot(minutes, losses, ".", color="#7f7f7f", alpha=0.4, markersize=3)
    # the ends have fewer neighbours, so that the line neither stops early nor bends towards 0
    window = np.ones(max(1, min(SMOOTHED, len(losses) // 10)))
    mean = np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")
    left.plot(minutes, mean, color="#d55e00")
    left.set_ylim(
        0.9 * np.quantile(losses, 0.01), 1.1 * np.quantile(losses, 0.95)
    )  # the first steps are off the scale
    left.set_title("loss", fontsize=9)
    for part, name in zip(rest, chosen, strict=True):
        part.plot(*_series(lines, name), "o-", color="#1f83c4", markersize=3)
        part.set_title(name, fontsize=9)
    for part in (left, *rest):
        part.set_xlabel("minutes", fontsize=8)
        part.tick_params(labelsize=8)
        part.grid(alpha=0.3)
    return figure


def _joined(parts: Sequence[Lines]) -> Lines:
    """The parts' lines with the seconds counted on."""
    lines, before = Lines(), 0.0
    for part in parts:
        lines += [{**line, "seconds": line["seconds"] + before} for line in part]
        before = lines[-1]["seconds"]
    return lines


def _series(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """Minutes and values of the lines that have one."""
    found = [(line["seconds"] / 60, line[name]) for line in lines if name in line]
    return [minutes for minutes, _ in found], [value for _, value in found]


if __name__ == "__main__":
    main()
