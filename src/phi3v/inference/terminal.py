"""The interactive chat at the terminal."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from phi3v.data.attachments import Attachment, attach
from phi3v.data.turns import MediaKind
from phi3v.inference.chat import ChatSession
from phi3v.model.answers import Conversation, render_prompt

HELP = """\
/image PATH ...   add pictures to the next question
/video PATH ...   add videos to the next question
/clear            forget the conversation and all pictures
/help             show this text
/exit             leave; so does the end of the input (Ctrl-D)
Everything else is a question. Ctrl-C stops an answer."""
_EXITS = ("/exit", "/quit")


def note(text: str) -> None:
    """Tell the user something that is not an answer."""
    print(text, file=sys.stderr, flush=True)


def describe_prompt(session: ChatSession, conversation: Conversation) -> str:
    """Describe the rendered prompt of a conversation and its token counts."""
    prompt = render_prompt(session.processor, conversation)
    counts = prompt.image_token_counts
    pictures = f"{len(counts)} picture(s) of {', '.join(map(str, counts))}" if counts else "no"
    return (
        f"--- prompt: {prompt.num_tokens} tokens: {prompt.num_tokens - sum(counts)} of text, "
        f"{sum(counts)} of pictures ({pictures})\n{prompt.text}\n---"
    )


def print_answer(
    session: ChatSession, text: str, attachments: Sequence[Attachment], *, debug: bool
) -> None:
    """Ask a question and print the answer while it is made.

    Args:
        session: The conversation.
        text: The question.
        attachments: Its pictures and videos.
        debug: Show the rendered prompt and the token counts first.
    """
    if debug:
        note(describe_prompt(session, session.conversation(text, attachments)))
    pieces = session.ask(text, attachments=attachments)
    with closing(pieces):
        for piece in pieces:
            print(piece, end="", flush=True)
    print(flush=True)


class Terminal:
    """An interactive chat that reads questions and commands from standard input.

    Args:
        session: The conversation.
        attachments: Pictures and videos of the first question.
        debug: Show every rendered prompt.
    """

    def __init__(
        self, session: ChatSession, attachments: Sequence[Attachment] = (), *, debug: bool = False
    ) -> None:
        self.session = session
        self.waiting = list(attachments)
        self.debug = debug

    def run(self) -> None:
        """Answer until ``/exit`` or the end of the input; an error ends its own turn only."""
        prompt = ""
        if sys.stdin.isatty():
            import readline  # noqa: F401  # gives input() a history and editing keys

            prompt = "> "
        note("Ask a question; /help lists the commands.")
        for one in self.waiting:
            note(self._describe(one))
        while True:
            try:
                line = input(prompt).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not prompt:
                    raise
                note("\n(/exit or Ctrl-D leaves)")
                continue
            except UnicodeDecodeError as error:
                note(f"error: the line is not UTF-8 ({error}); type it again")
                continue
            if line in _EXITS:
                return
            if line:
                self._guard(line)

    def _guard(self, line: str) -> None:
        try:
            self._handle(line)
        except KeyboardInterrupt:
            note("\n(stopped)")
        except torch.OutOfMemoryError:
            note("error: out of memory; use fewer pictures, fewer crops, or /clear")
        except (ValueError, OSError) as error:
            note(f"error: {error}")
            if self.waiting and not line.startswith("/"):
                note("The pictures still wait for a question; /clear forgets them.")

    def _handle(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        match command:
            case "/help":
                note(HELP)
            case "/clear":
                self.session.clear()
                self.waiting.clear()
                note("The conversation and its pictures are forgotten.")
            case "/image":
                self._add(rest.strip(), "image")
            case "/video":
                self._add(rest.strip(), "video")
            case _ if command.startswith("/"):
                note(f"error: unknown command {command}; /help lists the commands")
            case _:
                self._ask(line)

    def _ask(self, text: str) -> None:
        try:
            print_answer(self.session, text, self.waiting, debug=self.debug)
        except KeyboardInterrupt:
            self.waiting.clear()
            raise
        self.waiting.clear()

    def _add(self, paths: str, kind: MediaKind) -> None:
        if not paths:
            raise ValueError(f"/{kind} needs the path of a file")
        for path in [paths] if Path(paths).is_file() else shlex.split(paths):
            one = attach(
                path,
                kind=kind,
                max_num_frames=self.session.max_num_frames,
                options=self.session.media_options,
            )
            description = self._describe(one)
            self.waiting.append(one)
            note(description)

    def _describe(self, one: Attachment) -> str:
        count = self.session.processor.image_processor.num_image_tokens
        try:
            tokens = sum(count(*picture.size) for picture in one.pictures)
        except ValueError as error:
            raise ValueError(f"{one.name}: {error}") from error
        width, height = one.pictures[0].size
        frames = f"{len(one.pictures)} frames of " if one.kind == "video" else ""
        return f"{one.kind} {one.name}: {frames}{width}x{height}, {tokens} tokens"
