"""Sessions of many turns with a model, with pictures and videos in any of them."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from phi3v.data.attachments import Attachment, attach, join_turns, place_tags
from phi3v.data.options import MediaOptions
from phi3v.data.turns import MEDIA_TAG, Turn
from phi3v.inference.answers import stream_answer
from phi3v.inference.prefixes import PrefixCache
from phi3v.model.answers import Conversation, answer_batch
from phi3v.model.processing import IMAGE_TOKEN, Phi3VProcessor
from phi3v.model.settings import GenerationSettings

__all__ = ["ChatSession", "Conversation", "GenerationSettings", "answer_batch"]

_PUBLISHED = MediaOptions()


class ChatSession:
    """A conversation of many turns that remembers what was said.

    Args:
        model: ``Phi3VForCausalLM`` or a PEFT model around it.
        processor: Its processor.
        system: Text of a system turn.
        max_num_frames: Most frames of a video.
        settings: How to choose the answers, unless `ask` says otherwise.
        media_options: Which files may be opened, and how.

    Raises:
        ValueError: The system text holds a tag.
    """

    def __init__(
        self,
        model: Any,
        processor: Phi3VProcessor,
        system: str | None = None,
        *,
        max_num_frames: int = 10,
        settings: GenerationSettings | None = None,
        media_options: MediaOptions = _PUBLISHED,
    ) -> None:
        if system and (found := MEDIA_TAG.search(system)):
            raise ValueError(f"the system text holds the tag {found.group()}; media belong in asks")
        self.model = model
        self.processor = processor
        self.system = system
        self.max_num_frames = max_num_frames
        self.settings = settings or GenerationSettings()
        self.media_options = media_options
        # A turn decodes only what is new in it.
        self.prefixes = PrefixCache()
        self.clear()

    def clear(self) -> None:
        """Forget all turns and pictures; the system text stays."""
        self.prefixes.clear()
        self.turns: list[Turn] = [Turn("system", self.system)] if self.system else []
        self.attachments: list[Attachment] = []

    def conversation(self, text: str, attachments: Sequence[Attachment] = ()) -> Conversation:
        """Return all turns so far and this question, which is not remembered."""
        question = Turn("user", place_tags(text, [one.kind for one in attachments]))
        return join_turns([*self.turns, question], [*self.attachments, *attachments])

    def ask(
        self,
        text: str,
        images: Sequence[str | Path | Image.Image] = (),
        videos: Sequence[str | Path] = (),
        *,
        attachments: Sequence[Attachment] = (),
        **settings: Any,
    ) -> Generator[str]:
        """Ask a question and yield the answer in pieces.

        The turn is remembered when the answer is complete, or, with what was said until then, when
        the iterator is closed early. A turn that fails leaves the conversation as it was.

        Args:
            text: The question. Its tags, if any, show where pictures and videos belong.
            images: Pictures or their paths.
            videos: Paths of videos.
            attachments: Opened pictures and videos, before `images` and `videos`.
            **settings: Fields of `GenerationSettings` that differ for this answer.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file cannot be read, tags do not match, or the conversation is too long;
                raised before the first piece is asked for.
        """
        chosen = replace(self.settings, **settings)
        options, frames = self.media_options, self.max_num_frames
        added = [*attachments, *(attach(one, kind="image", options=options) for one in images)]
        added += [
            attach(one, kind="video", max_num_frames=frames, options=options) for one in videos
        ]
        conversation = self.conversation(text, added)
        pieces = stream_answer(self.model, self.processor, conversation, chosen, self.prefixes)
        question = Turn("user", place_tags(text, [one.kind for one in added]))
        return self._listen(pieces, question, added)

    def _listen(
        self, pieces: Generator[str], question: Turn, attachments: list[Attachment]
    ) -> Generator[str]:
        heard = ""
        try:
            with closing(pieces):
                for piece in pieces:
                    heard += piece
                    yield piece
        except (GeneratorExit, KeyboardInterrupt):
            if heard:
                self._remember(question, attachments, heard)
            raise
        self._remember(question, attachments, heard)

    def _remember(self, question: Turn, attachments: list[Attachment], answer: str) -> None:
        # A tag in an answer would be taken for a picture when the history is rendered.
        answer = MEDIA_TAG.sub(lambda tag: tag.group().strip("<|>"), answer)
        answer = answer.replace(IMAGE_TOKEN, "image")
        self.turns += [question, Turn("assistant", answer.strip())]
        self.attachments += attachments
