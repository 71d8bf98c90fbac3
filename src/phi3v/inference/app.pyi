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

class QuestionBox(gr.MultimodalTextbox):
    """A text box for questions that takes uploads, and no addresses to fetch."""

    is_template = True

    async def async_move_resource_to_block_cache(
        self, url_or_file_path: str | Path | None
    ) -> str | None:
        """Keep an upload; the library would also fetch addresses that a browser sends."""
        if "://" in str(url_or_file_path):
            raise gr.Error("only uploaded files are taken")
        return await super().async_move_resource_to_block_cache(url_or_file_path)
    from collections.abc import Callable, Sequence
    from typing import TYPE_CHECKING, Any, Literal

    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

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
        self.talk = gr.State(Talk)
        with gr.Row(elem_id="answers"):
            self.chat = self._chat("Answers", "chat")
            self.base_chat = self._chat("Base model", "base-chat", visible=False)
        self.note = gr.HTML(status(""), elem_id="note")
        self.box = QuestionBox(
            label="Question",
            show_label=False,
            placeholder="Ask a question, and attach pictures or videos",
            file_count="multiple",
            file_types=["image", "video"],
            sources=["upload"],
            max_plain_text_length=100_000,
            max_lines=8,
            stop_btn=False,
            autofocus=False,
            elem_id="question",
        )
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
            placeholder="No question yet",
        )

    def _lay_out_settings(self, settings: GenerationSettings) -> None:
        media, processor = self._service.media, self._service.processor
        self.system = gr.Textbox(
            label="System prompt", lines=2, info="Stands before the conversation"
        )
        with gr.Row():
            self.length = gr.Slider(
                *(1, max(2048, settings.max_new_tokens)),
                value=settings.max_new_tokens,
                step=1,
                label="Longest answer (tokens)",
            )
            self.temperature = gr.Slider(
                *(0, 2),
                value=settings.temperature,
                step=0.05,
                label="Temperature",
                info="0 always takes the likeliest word",
            )
            self.top_p = gr.Slider(
                *(0.05, 1),
                value=settings.top_p,
                step=0.05,
                label="Top-p",
                info="Draws from the likeliest words of this share",
            )
        with gr.Row():
            self.penalty = gr.Slider(
                *(1, 2),
                value=settings.repetition_penalty,
                step=0.05,
                label="Repetition penalty",
                info="Above 1, words are repeated less",
            )
            self.crops = gr.Slider(
                *(1, MAX_NUM_CROPS),
                value=processor.image_processor.num_crops,
                step=1,
                label="Crops per picture",
                info="More crops show finer detail and take more tokens",
            )
            self.frames = gr.Slider(
                *(1, max(2, media.max_num_frames)),
                value=media.max_num_frames,
                step=1,
                label="Frames per video",
            )
        self.seed = gr.Number(
            label="Seed", value=None, precision=0, info="Repeats drawn answers; empty: at random"
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
        self.clear.click(self._clear, None, shown, cancels=going, **quiet)
        self.compare.change(self._show_base, [self.compare, self.talk], self.base_chat, **quiet)
        for control in (self.system, self.crops, self.frames):
            control.change(self._count, [self.talk, *settings], self.note, **quiet)

    async def _ask(self, asked: dict[str, Any], talk: Talk, *settings: Any) -> AsyncIterator[Any]:
        async for view in self._host.ask(asked, talk, Choices(*settings)):
            yield _show(view)

    async def _ask_again(self, talk: Talk, *settings: Any) -> AsyncIterator[Any]:
        async for view in self._host.ask_again(talk, Choices(*settings)):
            yield _show(view)

    async def _count(self, talk: Talk, *settings: Any) -> str:
        return await self._host.count(talk, Choices(*settings))

    def _clear(self) -> tuple[Any, ...]:
        return _show(View(Talk(), status("")))

    def _show_base(self, compare: bool, talk: Talk) -> Any:
        bubbles: Any = talk.bubbles(adapted=False)
        return gr.Chatbot(value=bubbles, visible=compare)

def _show(view: View) -> tuple[Any, ...]:
    """Write a view as new values of box, both chats, talk and note."""
    chats = view.talk.bubbles(), view.talk.bubbles(adapted=False)
    return _box(view), *chats, view.talk, gr.skip() if view.note is None else view.note

def _box(view: View) -> Any:
    if view.busy is None:
        return gr.skip()
    if view.busy:
        return QuestionBox(value=None, submit_btn=False, stop_btn=True)
    if view.asked is None:
        return QuestionBox(submit_btn=True, stop_btn=False)
    return QuestionBox(value=dict(view.asked), submit_btn=True, stop_btn=False)
