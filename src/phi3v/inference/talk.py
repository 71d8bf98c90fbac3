"""A conversation on the page: what was asked and answered, apart from how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phi3v.data.attachments import VIDEO_SUFFIXES
from phi3v.inference.messages import Message, Upload


@dataclass(frozen=True)
class Exchange:
    """One question with its answers.

    Attributes:
        text: The question.
        uploads: Its pictures and videos.
        answer: What the model said.
        base_answer: What the base model said; None where it was not asked.
    """

    text: str
    uploads: tuple[Upload, ...] = ()
    answer: str = ""
    base_answer: str | None = None

    def heard_by(self, adapted: bool) -> str:
        """Return the answer as a model remembers it; what it was not asked, the other said."""
        if adapted or self.base_answer is None:
            return self.answer
        return self.base_answer


@dataclass
class Talk:
    """The conversation of one visitor."""

    exchanges: list[Exchange] = field(default_factory=list)

    def extend_answer(self, adapted: bool, text: str) -> None:
        """Set the answer to the last question, as far as it has come."""
        changed: Any = {"answer": text} if adapted else {"base_answer": text}
        self.exchanges[-1] = replace(self.exchanges[-1], **changed)

    def messages(self, system: str, *, adapted: bool = True) -> list[Message]:
        """Write the conversation up to its last question, as one of the models heard it."""
        messages = [Message("system", (system.strip(),))] if system.strip() else []
        for place, exchange in enumerate(self.exchanges):
            messages.append(Message("user", (*exchange.uploads, exchange.text)))
            if place < len(self.exchanges) - 1:
                messages.append(Message("assistant", (exchange.heard_by(adapted),)))
        return messages

    def bubbles(self, *, adapted: bool = True) -> list[dict[str, Any]]:
        """Write the conversation for a chat window."""
        bubbles: list[dict[str, Any]] = []
        for exchange in self.exchanges:
            files = [{"path": str(upload.content)} for upload in exchange.uploads]
            bubbles += [{"role": "user", "content": file} for file in files]
            if exchange.text:
                bubbles.append({"role": "user", "content": exchange.text})
            answer = exchange.answer if adapted else exchange.base_answer
            if answer := "*not asked*" if answer is None else answer:
                bubbles.append({"role": "assistant", "content": answer})
        return bubbles


def as_uploads(paths: Sequence[str], folder: Path) -> tuple[Upload, ...]:
    """Take files that the page has stored.

    Args:
        paths: Their paths, as the browser names them.
        folder: Where uploads are; nothing else is opened.

    Raises:
        ValueError: A path leads elsewhere.
    """
    uploads = []
    for path in paths:
        full = Path(path).resolve()
        if not full.is_relative_to(folder.resolve()):
            raise ValueError(f"{Path(path).name} was not uploaded here")
        kind = "video" if full.suffix.lower() in VIDEO_SUFFIXES else "image"
        uploads.append(Upload(kind, full.name, full))  # type: ignore[arg-type]  # one of two kinds
    return tuple(uploads)
