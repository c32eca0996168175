"""Clicks and openings that overtake each other."""

from __future__ import annotations

import threading
import time

import numpy as np

from diffusers_dedim.demo.choice import Choice, Openings
from diffusers_dedim.demo.people import OpenedPhotos, Person

THREE = OpenedPhotos((), tuple(Person(((0, index),)) for index in range(3)))
FOUR = OpenedPhotos((), tuple(Person(((0, index),)) for index in (0, 1, 3, 2)))


def test_a_click_counts_before_the_page_has_its_answer_and_once_after() -> None:
    choice = Choice(THREE)
    choice.toggle(0)
    choice.toggle(1)
    assert choice.settle([0, 1, 2], 0) == (THREE, [2])
    assert choice.settle([1, 2], 1) == (THREE, [2])
    assert choice.settle([2], 2) == (THREE, [2])
    assert choice.settle([0, 1], 0) == (THREE, []), "ticked and unticked since"
    assert choice.settle(None, None) == (THREE, [0, 1]), "nobody was ticked"


def test_a_box_that_was_added_is_chosen_and_who_was_left_out_stays_so() -> None:
    choice = Choice(THREE)
    choice.add(FOUR, 2)
    assert choice.settle([0, 2], 0) == (FOUR, [0, 2, 3])
    choice.toggle(2)
    assert choice.settle([0, 2], 0) == (FOUR, [0, 3])
    assert choice.settle([0, 2, 3], 1) == (FOUR, [0, 3])


def test_whoever_asks_waits_for_the_click_that_is_at_work() -> None:
    choice, said = Choice(THREE), []
    with choice:
        asking = threading.Thread(target=lambda: said.append(choice.settle([0], 0)[1]))
        asking.start()
        time.sleep(0.2)
        assert not said
        choice.toggle(1)
    asking.join(10)
    assert said == [[0, 1]]


def test_photos_that_were_put_away_are_forgotten_also_by_a_click_at_work() -> None:
    choice = Choice(THREE)
    with choice:
        threading.Thread(target=choice.put_away).start()
        while not choice.is_away:
            time.sleep(0.01)
        choice.add(FOUR, 2)
    opened, chosen = choice.settle([0], 0)
    assert (opened.people, chosen) == ((), [])


def test_an_opening_begins_when_the_one_before_has_said_its_last_word() -> None:
    openings, said = Openings(), []

    def first() -> None:
        with openings.begin("a") as turn:
            began.set()
            while turn is None or not turn.is_overtaken:
                time.sleep(0.01)
            time.sleep(0.2)
            said.append(1)

    began = threading.Event()
    opening = threading.Thread(target=first)
    opening.start()
    assert began.wait(10)
    with openings.begin("b"):
        assert not said
    with openings.begin("a") as turn:
        assert said == [1]
        assert turn is not None
        assert not turn.is_overtaken
    opening.join(10)
    assert not openings._last


def test_junk_of_a_hand_made_request_chooses_nobody() -> None:
    assert Choice(THREE).settle(["0", 1.5, 7, np.nan], -3)[1] == []
