import pytest

from phi3v.model.settings import GenerationSettings


def test_nothing_is_drawn_at_temperature_0() -> None:
    assert GenerationSettings().options()["do_sample"] is False


def test_drawing_is_not_narrowed_unasked() -> None:
    options = GenerationSettings(temperature=0.7).options()
    assert (options["temperature"], options["top_p"], options["top_k"]) == (0.7, 1.0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0, expected 0 or above"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p is 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected above 0"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"top_p": 0.9}, "top_p 0.9 has no effect at temperature 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**settings)
