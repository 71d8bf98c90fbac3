import io
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3v.data.attachments import attach
from phi3v.inference.chat import ChatSession, GenerationSettings
from phi3v.inference.terminal import HELP, Terminal
from phi3v.model.answers import render_prompt
from phi3v.model.processing import Phi3VProcessor


@pytest.fixture
def session(model: Any, processor: Phi3VProcessor) -> ChatSession:
    return ChatSession(model, processor, settings=GenerationSettings(max_new_tokens=5))


@pytest.fixture
def talk(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    def run(*lines: str, **options: Any) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        capsys.readouterr()
        Terminal(session, **options).run()
        printed = capsys.readouterr()
        return printed.out, printed.err

    return run


def history(session: ChatSession) -> str:
    return render_prompt(session.processor, session.conversation("next")).text


def test_every_answer_is_a_line_of_output(talk: Any, session: ChatSession) -> None:
    out, _ = talk("one", "", "two")
    assert out == f"{session.turns[1].text}\n{session.turns[3].text}\n"


def test_pictures_given_at_the_start_belong_to_the_first_question(
    talk: Any, session: ChatSession, media_folder: Path
) -> None:
    _, err = talk("one", "two", attachments=[attach(media_folder / "wide.png")])
    assert "wide.png: 300x100, 73 tokens" in err
    assert session.turns[0].text == "<image>\none"
    assert session.turns[2].text == "two"


def test_a_picture_joins_in_a_later_turn(
    talk: Any, session: ChatSession, media_folder: Path
) -> None:
    talk("one", f"/image {media_folder / 'wide.png'} {media_folder / 'tall.png'}", "two")
    assert "<|user|>\n<|image_1|>\n<|image_2|>\ntwo<|end|>" in history(session)


def test_a_path_with_spaces_needs_no_quotes(
    talk: Any, session: ChatSession, media_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "my picture.png").write_bytes((media_folder / "wide.png").read_bytes())
    talk(f"/image {tmp_path / 'my picture.png'}", "what?")
    assert len(session.attachments) == 1


def test_a_video_joins(talk: Any, session: ChatSession, media_folder: Path) -> None:
    _, err = talk(f"/video {media_folder / 'clip.mkv'}", "what?")
    assert "clip.mkv: 3 frames of 128x64" in err
    assert "<|image_3|>\nwhat?" in history(session)


@pytest.mark.parametrize("name", ["none.png", "broken.png"])
def test_a_bad_picture_does_not_end_the_chat(
    talk: Any, session: ChatSession, media_folder: Path, name: str
) -> None:
    _, err = talk("one", f"/image {media_folder / name}", "two")
    assert f"error: {media_folder / name}" in err
    assert [turn.text for turn in session.turns[::2]] == ["one", "two"]


def test_a_question_that_fails_keeps_its_pictures(
    talk: Any, session: ChatSession, media_folder: Path
) -> None:
    _, err = talk(f"/image {media_folder / 'wide.png'}", "<video> what?", "what?")
    assert "error: the text has the tags <video>" in err
    assert "pictures still wait" in err
    assert [turn.text for turn in session.turns[::2]] == ["<image>\nwhat?"]


def test_clear_forgets_turns_and_waiting_pictures(
    talk: Any, session: ChatSession, media_folder: Path
) -> None:
    talk("one", f"/image {media_folder / 'wide.png'}", "/clear", "two")
    assert [turn.text for turn in session.turns[::2]] == ["two"]


def test_exit_ends_the_chat(talk: Any, session: ChatSession) -> None:
    talk("/exit", "one")
    assert session.turns == []


def test_help_and_unknown_commands(talk: Any) -> None:
    out, err = talk("/help", "/picture x", "/image")
    assert HELP in err
    assert "unknown command /picture" in err
    assert "/image needs the path" in err
    assert out == ""


def test_debug_shows_the_prompt_and_its_tokens(
    talk: Any, session: ChatSession, media_folder: Path
) -> None:
    _, err = talk("what?", attachments=[attach(media_folder / "wide.png")], debug=True)
    assert "73 of pictures (1 picture(s) of 73)" in err
    assert "<|user|>\n<|image_1|>\nwhat?<|end|>\n<|assistant|>\n" in err


@pytest.mark.parametrize(
    ("error", "message"), [(KeyboardInterrupt(), "(stopped)"), (torch.OutOfMemoryError(), "memory")]
)
def test_a_broken_off_answer_does_not_end_the_chat(
    talk: Any, session: ChatSession, monkeypatch: pytest.MonkeyPatch,
    error: BaseException, message: str,
) -> None:  # fmt: skip
    ask = session.ask

    def fail_once(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(session, "ask", ask)
        raise error

    monkeypatch.setattr(session, "ask", fail_once)
    _, err = talk("one", "two")
    assert message in err
    assert [turn.text for turn in session.turns[::2]] == ["two"]
