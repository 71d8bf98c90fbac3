"""The page as a visitor sees it, in a real browser, served by the command itself."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.clips import write_clip
from tests.inference.serving import make_endless
from tests.training.launching import environment

from phi3v.model.loading import load_model, load_processor
from phi3v.model.saving import save_checkpoint
from phi3v.model.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


class Served:
    """The command in a process of its own."""

    def __init__(self, folder: Path, log: Path, *words: str) -> None:
        self.log = log
        flags = ["--model-path", str(folder), "--port", "0", "--device", "cpu", *words]
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "phi3v", "serve", *flags],
                env=environment(TMPDIR=str(log.parent)),
                stderr=file,
            )
        until = time.monotonic() + 120
        while (found := re.search(r"(http://\S+)/v1", log.read_text())) is None:
            assert self.process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        self.url = found[1]

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def endless_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on a base that never ends its answers, and that answers otherwise than it."""
    from peft import LoraConfig, get_peft_model

    # So deep that a long answer takes longer than a browser on a busy machine to show its begin.
    base = write_tiny_checkpoint(tmp_path_factory.mktemp("endless") / "base", num_hidden_layers=24)
    save_checkpoint(make_endless(load_model(base)), load_processor(base), base)
    adapted = get_peft_model(load_model(base), LoraConfig(r=4, target_modules=["qkv_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(base.parent / "run_7")
    return base.parent / "run_7"


@pytest.fixture(scope="module")
def served(endless_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("served") / "log"
    one = Served(endless_adapter, log, "--max-new-tokens", "60", "--max-context", "2000")
    yield one
    if one.process.poll() is None:
        one.stop(signal.SIGTERM)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visitor:
    """A visitor with a window of their own, who notes what the page asks of others."""

    def __init__(self, browser: Any, url: str) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.strangers: list[str] = []
        self.errors: list[str] = []
        self.url = url
        self.page.on("request", self._note_request)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#question textarea", timeout=60_000)

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.strangers.append(request.url)

    def attach(self, *files: Path) -> None:
        page = self.page
        page.set_input_files("#question input[type=file]", [str(file) for file in files])
        page.wait_for_function(
            f"document.querySelectorAll('#question .thumbnail-item').length == {len(files)}"
        )

    def send(self, text: str, *files: Path) -> None:
        if files:
            self.attach(*files)
        self.page.fill("#question textarea", text)
        self.page.click("#question [data-testid=submit-button]")

    def ask(self, text: str, *files: Path) -> str:
        before = self.note()
        self.send(text, *files)
        self.wait(lambda: self.note() != before)
        self.wait_for_rest()
        self.wait(lambda: not self.note().startswith(("Waiting", "Answering")))
        return self.answer()

    def wait_for_rest(self) -> None:
        self.wait(lambda: self.page.query_selector("#question .stop-button") is None)

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, self.page.inner_text("body")
            self.page.wait_for_timeout(30)

    def set(self, label: str, value: int) -> None:
        box = self.page.get_by_label(f"number input for {label}")
        box.fill(str(value))
        box.press("Tab")

    def answer(self, chat: str = "#chat") -> str:
        bubbles = self.page.query_selector_all(f"{chat} [data-testid=bot]")
        return str(bubbles[-1].inner_text()) if bubbles else ""

    def questions(self) -> int:
        return len(self.page.query_selector_all("#chat [data-testid=user]"))

    def note(self) -> str:
        return str(self.page.inner_text("#note p")).strip()

    def num_tokens(self) -> int:
        found = re.search(r"has ([\d,]+) of 2,000 tokens", self.note())
        assert found, self.note()
        return int(found[1].replace(",", ""))


@pytest.fixture
def visitor(browser: Any, served: Served) -> Iterator[Visitor]:
    one = Visitor(browser, served.url)
    yield one
    one.context.close()
    assert not one.strangers and not one.errors


@needs_browser
def test_pictures_and_a_video_in_several_turns(
    visitor: Visitor, media_folder: Path, tmp_path: Path
) -> None:
    visitor.send("Which?", media_folder / "wide.png", media_folder / "tall.png")
    lengths = set()
    visitor.wait(lambda: visitor.note().startswith("Answering"))
    while visitor.note().startswith("Answering"):
        lengths.add(len(visitor.answer()))
    assert len(lengths) > 2, "the answer comes in pieces"
    assert len(visitor.page.query_selector_all("#chat [data-testid=user] img")) == 2
    first = visitor.num_tokens()
    visitor.ask("And this?", media_folder / "square.png")
    second = visitor.num_tokens()
    write_clip(tmp_path / "clip.mp4", num_frames=25, rate=10, codec="mpeg4", pixels="yuv420p")
    assert visitor.ask("What happens?", tmp_path / "clip.mp4")
    assert first < second < visitor.num_tokens()
    assert visitor.page.query_selector("#chat [data-testid=user] video")


@needs_browser
def test_base_and_fine_tuned_model_side_by_side(visitor: Visitor, media_folder: Path) -> None:
    visitor.page.click("text=Compare with the base model")
    visitor.page.wait_for_selector("#base-chat")
    visitor.ask("What is it?", media_folder / "wide.png")
    tuned, base = visitor.answer(), visitor.answer("#base-chat")
    assert tuned and base and tuned != base
    left, right = (visitor.page.locator(one).bounding_box() for one in ("#chat", "#base-chat"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


@needs_browser
def test_what_cannot_be_answered_gets_a_message_and_stays_in_the_box(
    visitor: Visitor, media_folder: Path
) -> None:
    visitor.ask("", media_folder / "wide.png")
    assert visitor.note() == "Write a question to the files"
    visitor.page.reload()
    visitor.page.wait_for_selector("#question textarea")
    visitor.ask("What?", media_folder / "broken.png")
    assert visitor.note() == "broken.png is not a picture"
    assert visitor.page.input_value("#question textarea") == "What?"
    assert visitor.questions() == 0
    visitor.page.reload()
    visitor.page.wait_for_selector("#question textarea")
    visitor.ask("word " * 3000)
    assert "but at most 1999 are taken" in visitor.note()


@needs_browser
def test_stop_regenerate_and_clear(visitor: Visitor) -> None:
    visitor.page.click("button:has-text('Settings')")
    visitor.set("Longest answer", 1800)
    visitor.send("Tell me a long story")
    visitor.wait(lambda: len(visitor.answer()) > 60)
    # At once: a click of the browser's driver first waits for the page to be at rest.
    visitor.page.evaluate("document.querySelector('#question .stop-button').click()")
    visitor.wait_for_rest()
    stopped = visitor.answer()
    visitor.page.wait_for_timeout(500)
    assert visitor.answer() == stopped != ""
    visitor.set("Longest answer", 5)
    visitor.page.click("button:has-text('Regenerate')")
    visitor.wait(lambda: visitor.note().startswith("This conversation"))
    assert 0 < len(visitor.answer()) < len(stopped)
    visitor.page.click("#actions button:has-text('Clear')")
    visitor.wait(lambda: visitor.questions() == 0)


@needs_browser
def test_visitors_do_not_see_each_other(browser: Any, served: Served, visitor: Visitor) -> None:
    visitor.ask("My secret is 7")
    other = Visitor(browser, served.url)
    assert other.questions() == 0
    other.ask("Hm")
    assert "secret" not in other.page.inner_text("body")
    assert visitor.questions() == other.questions() == 1
    other.context.close()


def test_a_signal_ends_it_cleanly(served: Served) -> None:
    import httpx

    body = {"messages": [{"role": "user", "content": "Hm"}], "model": "run_7", "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=60) as reply:
        events = reply.iter_lines()
        next(events)
        assert served.stop(signal.SIGTERM) == 0
    left = [name for name in os.listdir(served.log.parent) if name.startswith("phi3v-serve-")]
    assert not left
    assert served.log.read_text().rstrip().endswith("stopped")
