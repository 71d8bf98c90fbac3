from benchmarks.turns import measure

TALK = [("What is it", [(200, 100)]), ("And now", []), ("And this", [(90, 90)])]


def test_a_conversation_is_the_same_with_kept_prefixes_and_costs_less() -> None:
    turns = measure(TALK, crop_size=112, num_crops=4, num_tokens=4)
    assert [turn["kept"]["answer"] for turn in turns] == [turn["anew"]["answer"] for turn in turns]
    first, second, third = turns
    assert first["kept"]["decoded"] == first["anew"]["decoded"]
    # All but the last token of the prompt, then one by one.
    assert second["anew"]["decoded"] >= second["prompt"]
    assert second["kept"]["decoded"] < second["prompt"] - first["prompt"] + 8
    assert (second["kept"]["crops"], second["anew"]["crops"]) == (0, first["anew"]["crops"])
    new = third["anew"]["crops"] - second["anew"]["crops"]
    assert third["kept"]["crops"] == new > 0
