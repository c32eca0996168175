"""Protect photos on the machines of a Ray cluster; needs ``pip install "diffusers-dedim[ray]"``."""

from diffusers_dedim.runs.ray.driver import run_ray

__all__ = ["run_ray"]
