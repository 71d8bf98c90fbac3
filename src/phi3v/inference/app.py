"""The page to talk to a model; the only module that imports Gradio."""

import html
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from phi3v.inference.service import Service
from phi3v.inference.talk import Talk
from phi3v.inference.visiting import Choices, Host, View, status
from phi3v.model.crops import MAX_NUM_CROPS
from phi3v.model.settings import GenerationSettings

_UPLOAD_SECONDS = 3600
_CSS = (Path(__file__).parent / "app.css").read_text(encoding="utf-8")
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def mount_page(
    app: FastAPI,
    service: Service,
    settings: GenerationSettings,
    *,
    uploads: Path,
    max_bytes: int,
    password: str | None = None,
) -> None:
    """Add the page at the root of an app.

    Args:
        app: The app, with all other routes.
        service: The model.
        settings: Where the sliders stand at first.
        uploads: Folder of uploaded files, which Gradio has been told.
        max_bytes: Largest file that may be uploaded.
        password: Asked for before the page is shown.
    """
    page = Page(service, settings, uploads)
    # A mounted page never "launches"; without this Gradio skips its check that a file which the
    # browser names was uploaded, and would read any file of the server.
    page.blocks.has_launched = True
    gr.mount_gradio_app(
        app,
        page.blocks,
        "/",
        auth=None if password is None else _password_check(password),
        auth_message="The password is the key of the API; any user name will do.",
        allowed_paths=[],
        blocked_paths=[],
        show_error=False,
        max_file_size=max_bytes,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
    )


def _password_check(password: str) -> Any:
    def check(user: str, given: str) -> bool:
        return secrets.compare_digest(given.encode(), password.encode())

    return check


def _refuse_addresses(box: gr.MultimodalTextbox) -> None:
    """Keep the library from fetching addresses that a browser names instead of uploads.

    On the instance, because Gradio writes a file beside the module for every derived class.
    """
    keep = box.async_move_resource_to_block_cache

    async def keep_upload(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise gr.Error("only uploaded files are taken")
        return await keep(path)

    box.async_move_resource_to_block_cache = keep_upload  # type: ignore[assignment]  # another name of the argument


class Page:
    """The page: what is on it, and what its buttons do.

    Args:
        service: The model.
        settings: Where the sliders stand at first.
        uploads: Folder of uploaded files.
    """

    def __init__(self, service: Service, settings: GenerationSettings, uploads: Path) -> None:
        self._service = service
        self._host = Host(service, uploads)
        with gr.Blocks(
            title=f"{service.name} - phi3v",
            analytics_enabled=False,
            delete_cache=(_UPLOAD_SECONDS // 4, _UPLOAD_SECONDS),
            fill_height=True,
        ) as self.blocks:
            self._lay_out(settings)
            self._connect()
        self.blocks.queue(default_concurrency_limit=None, api_open=False)

    def _lay_out(self, settings: GenerationSettings) -> None:
        name = html.escape(self._service.name)
        gr.HTML(f"<h1>{name}</h1><p>Ask about pictures, videos and text.</p>", elem_id="title")
        self.talk = gr.State(None)
        with gr.Row(elem_id="answers"):
            self.chat = self._chat("Answers", "chat")
            self.base_chat = self._chat("Base model", "base-chat", visible=False)
        self.note = gr.HTML(status(""), elem_id="note")
        self.box = gr.MultimodalTextbox(
            label="Question",
            show_label=False,
            placeholder="Ask a question",
            file_count="multiple",
            file_types=["image", "video"],
            sources=["upload"],
            max_plain_text_length=100_000,
            max_lines=8,
            stop_btn=False,
            autofocus=False,
            elem_id="question",
        )
        _refuse_addresses(self.box)
        with gr.Row(elem_id="actions"):
            self.again = gr.Button("Regenerate", size="sm")
            self.clear = gr.Button("Clear", size="sm")
            self.compare = gr.Checkbox(
                label="Compare with the base model",
                visible=self._service.can_compare,
                container=False,
                elem_id="compare",
            )
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self._lay_out_settings(settings)

    def _chat(self, label: str, elem_id: str, *, visible: bool = True) -> gr.Chatbot:
        return gr.Chatbot(
            label=label,
            elem_id=elem_id,
            visible=visible,
            height="58vh",
            min_width=320,
            buttons=["copy"],
            feedback_options=None,
            allow_file_downloads=False,
            placeholder="No question yet",
        )

    def _lay_out_settings(self, settings: GenerationSettings) -> None:
        media, processor = self._service.media, self._service.processor
        self.system = gr.Textbox(
            label="System prompt", lines=2, info="Stands before the conversation"
        )
        crops, frames = processor.image_processor.num_crops, media.max_num_frames
        with gr.Row():
            longest = max(2048, settings.max_new_tokens)
            self.length = _slider("Longest answer", 1, longest, settings.max_new_tokens, "Tokens")
            self.temperature = _slider(
                "Temperature", 0, 2, settings.temperature, "0 always takes the likeliest word"
            )
            self.top_p = _slider(
                "Top-p", 0.05, 1, settings.top_p, "Draws from the likeliest words of this share"
            )
        with gr.Row():
            self.penalty = _slider(
                *("Repetition penalty", 1, 2, settings.repetition_penalty),
                "Above 1, words are repeated less",
            )
            self.crops = _slider(
                *("Crops per picture", 1, MAX_NUM_CROPS, crops),
                "More show finer detail and take more tokens",
            )
            self.frames = _slider(
                *("Frames per video", 1, max(2, frames), frames), "Spread over its length"
            )
        self.seed = gr.Number(
            label="Seed",
            value=-1,
            minimum=-1,
            precision=0,
            info="The same number draws the same answer; -1 another",
        )

    def _connect(self) -> None:
        settings: list[Any] = [self.system, self.length, self.temperature, self.top_p]
        settings += [self.penalty, self.crops, self.frames, self.seed, self.compare]
        shown = [self.box, self.chat, self.base_chat, self.talk, self.note]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = self.box.submit(self._ask, [self.box, self.talk, *settings], shown, **quiet)
        repeated = self.again.click(self._ask_again, [self.talk, *settings], shown, **quiet)
        going: Any = [asked, repeated]
        self.box.stop(lambda: _box(View(Talk())), None, self.box, cancels=going, **quiet)
        for clear in (self.clear.click, self.chat.clear, self.base_chat.clear):
            clear(self._clear, None, shown, cancels=going, **quiet)
        self.compare.change(self._show_base, [self.compare, self.talk], self.base_chat, **quiet)
        for control in (self.system, self.crops, self.frames):
            control.change(self._count, [self.talk, *settings], self.note, **quiet)

    async def _ask(
        self, asked: dict[str, Any], talk: Talk | None, *settings: Any
    ) -> AsyncIterator[Any]:
        async for view in self._host.ask(asked, talk or Talk(), Choices(*settings)):
            yield _show(view)

    async def _ask_again(self, talk: Talk | None, *settings: Any) -> AsyncIterator[Any]:
        async for view in self._host.ask_again(talk or Talk(), Choices(*settings)):
            yield _show(view)

    async def _count(self, talk: Talk | None, *settings: Any) -> str:
        return await self._host.count(talk or Talk(), Choices(*settings))

    def _clear(self) -> tuple[Any, ...]:
        return _show(View(Talk(), status("")))

    def _show_base(self, compare: bool, talk: Talk | None) -> Any:
        bubbles: Any = (talk or Talk()).bubbles(adapted=False)
        return gr.Chatbot(value=bubbles, visible=compare)


def _slider(label: str, low: float, high: float, value: float, info: str) -> gr.Slider:
    step = 1 if isinstance(value, int) else 0.05
    return gr.Slider(low, high, value, step=step, label=label, info=info)


def _show(view: View) -> tuple[Any, ...]:
    """Write a view as new values of box, both chats, talk and note."""
    chats = view.talk.bubbles(), view.talk.bubbles(adapted=False)
    return _box(view), *chats, view.talk, gr.skip() if view.note is None else view.note


def _box(view: View) -> Any:
    if view.busy is None:
        return gr.skip()
    if view.busy:
        return gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)
    if view.asked is None:
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
    return gr.MultimodalTextbox(value=dict(view.asked), submit_btn=True, stop_btn=False)
