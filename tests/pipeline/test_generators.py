from __future__ import annotations

import re

import pytest
import torch

from diffusers_dedim.pipeline.inputs import child_generator, photo_generators


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_generator_serves_all_photos() -> None:
    one = seeded(0)
    assert photo_generators(one, 3) == [one] * 3
    assert photo_generators(None, 2) == [None, None]


def test_children_depend_on_the_parents_seed_and_differ_from_each_other() -> None:
    parent = seeded(1)
    first, second = child_generator(parent), child_generator(parent)
    assert first.initial_seed() == child_generator(seeded(1)).initial_seed()
    assert first.initial_seed() != second.initial_seed()


def test_without_a_parent_the_global_seed_counts() -> None:
    seeds = []
    for _ in range(2):
        torch.manual_seed(3)
        seeds.append(child_generator(None).initial_seed())
    assert seeds[0] == seeds[1]


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("generator: expected one, or 3 (one a photo), got 2.")):
        photo_generators([seeded(0), seeded(1)], 3)


@pytest.mark.parametrize(("wrong", "name"), [(7, "int"), ([1, 2], "list")])
def test_a_seed_is_no_generator(wrong: object, name: str) -> None:
    text = f"generator: expected a torch.Generator or a list of them, got {name}; for a seed write"
    with pytest.raises(TypeError, match=re.escape(text)):
        photo_generators(wrong, 2)  # type: ignore[arg-type]
