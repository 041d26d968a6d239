"""Noun phrases by rule."""

import pytest

from rb_jax.data.inputs.objects import extract_objects

CASES = {
    "What would happen if this ice cube were left in the sun?": ("ice cube", "sun"),
    "What would the scene look like if the dragon had passed over the village?": (
        "dragon",
        "village",
    ),
    "Imagine that the burning candle had been lit for three hours.": ("burning candle",),
    "What if someone dropped the glass vase on the stone floor?": ("glass vase", "stone floor"),
    "How would the street look after a heavy snow storm?": ("street", "heavy snow storm"),
    "Suppose the fruits stayed on the green stand for one week.": ("fruits", "green stand"),
    "Show the plant after it hasn't been watered for a month.": ("plant",),
    "What would the witch's cauldron look like at midnight?": ("witch", "cauldron"),
    "If the dam breaks, what happens to the houses below?": ("dam", "houses"),
    "What happens when you turn the lamp off?": ("lamp",),
    "The boy lets go of his red balloon; what then?": ("boy", "red balloon"),
    "What if the wind blows the leaves off the old oak tree?": ("wind", "leaves", "old oak tree"),
    "What if two eggs were boiled in the pot?": ("eggs", "pot"),
    "Turn the light on.": ("light",),
    "Let the ball roll down the slope.": ("ball", "slope"),
    "What would the car look like if it crashed into a wall?": ("car", "wall"),
}


@pytest.mark.parametrize("instruction", CASES)
def test_phrases(instruction):
    assert extract_objects(instruction, 16) == CASES[instruction]


def test_limit_order_and_repeats():
    sentence = "The cat saw the dog, the dog saw the cat, and the bird saw the fish."
    assert extract_objects(sentence, 16) == ("cat", "dog", "bird", "fish")
    assert extract_objects(sentence, 2) == ("cat", "dog")
    assert extract_objects(sentence, 0) == ()


@pytest.mark.parametrize("text", ["", "   ", "?!...", "what if?", "'s ' - --", "\n", "3 4 5"])
def test_nothing_to_find(text):
    assert extract_objects(text, 4) == ()


def test_other_scripts_do_not_fail():
    assert extract_objects("日本の猫が寝る", 4) == ("日本の猫が寝る",)
