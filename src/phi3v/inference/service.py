"""What page and API share: the way from messages to an answer on its way."""

import asyncio
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phi3v.inference.answering import AnswerRequest
from phi3v.inference.messages import (
    MediaLimits,
    Message,
    check_messages,
    list_uploads,
    number_pictures,
    open_messages,
    picture_sizes,
)
from phi3v.inference.prompts import PreparedPrompt, prepare_prompt
from phi3v.inference.sampling import RowSampling
from phi3v.inference.scheduling import Answer, Limits, Scheduler
from phi3v.model.crops import check_num_crops
from phi3v.model.loading import SEED_WEIGHTS, is_adapter_folder
from phi3v.model.processing import Phi3VProcessor

# Uploads are decoded by so many threads at once: each may hold a whole picture.
_NUM_OPENERS = 2


@dataclass(frozen=True)
class Wish:
    """How an answer should be made.

    Attributes:
        max_new_tokens: Most tokens of the answer.
        sampling: How its tokens are chosen.
        stop: Texts to stop at.
        adapted: Use the adapter, if there is one.
        num_crops: Most crops of a picture; None takes the stored number.
        max_num_frames: Most frames of a video; None takes the server's bound.
    """

    max_new_tokens: int = 500
    sampling: RowSampling = field(default_factory=RowSampling)
    stop: tuple[str, ...] = ()
    adapted: bool = True
    num_crops: int | None = None
    max_num_frames: int | None = None


class Service:
    """A loaded model with its line of requests.

    Args:
        model: ``Phi3VForCausalLM`` or a PEFT model around it.
        processor: Its processor.
        name: How clients name the model.
        can_compare: Whether its adapter can be switched off.
        media: What uploads may be.
        limits: Bounds of the line.
        max_context: Most tokens of a conversation with its answer; None takes the model's own.
    """

    def __init__(
        self,
        model: Any,
        processor: Phi3VProcessor,
        name: str,
        *,
        can_compare: bool = False,
        media: MediaLimits | None = None,
        limits: Limits | None = None,
        max_context: int | None = None,
    ) -> None:
        self.processor = processor
        self.name = name
        self.can_compare = can_compare
        self.media = media or MediaLimits()
        own = model.config.max_position_embeddings
        self.max_context = min(max_context or own, own)
        self.scheduler = Scheduler(model, processor, limits)
        self._openers = asyncio.Semaphore(_NUM_OPENERS)

    @property
    def names(self) -> dict[str, bool]:
        """Names of the models, and whether the adapter is on in them."""
        return {self.name: True, **({f"{self.name}:base": False} if self.can_compare else {})}

    async def ask(self, messages: Sequence[Message], wish: Wish) -> tuple[Answer, int]:
        """Open the uploads, put the request in line, and return the answer on its way.

        The caller holds a place in line (`Scheduler.place`).

        Returns:
            The answer, and the number of tokens of the prompt.

        Raises:
            ValueError: The messages cannot be honoured.
            StoppedError: The server stops.
        """
        async with self._openers:
            prompt = await asyncio.to_thread(self._prepare, messages, wish)
        room = self.max_context - len(prompt.input_ids)
        request = AnswerRequest(
            prompt, min(wish.max_new_tokens, room), wish.sampling, wish.stop, wish.adapted
        )
        return self.scheduler.submit(request), len(prompt.input_ids)

    def count_tokens(self, messages: Sequence[Message], wish: Wish) -> tuple[int, int]:
        """Count the tokens of a conversation from the headers of its uploads.

        Returns:
            All tokens of the prompt, and those of pictures among them.

        Raises:
            ValueError: The messages cannot be honoured.
        """
        media, processor = self.media_for(wish.max_num_frames), self.processor_for(wish.num_crops)
        check_messages(messages, media)
        sizes = [picture_sizes(upload, media) for upload in list_uploads(messages)]
        count = processor.image_processor.num_image_tokens
        counts = [count(*size) for pictures in sizes for size in pictures]
        numbered = number_pictures(messages, [len(pictures) for pictures in sizes])
        text = processor.apply_chat_template(numbered, add_generation_prompt=True)
        return len(processor.encode(text, counts).input_ids), sum(counts)

    def media_for(self, max_num_frames: int | None) -> MediaLimits:
        """Return the limits of uploads for a wish; frames are only ever fewer."""
        frames = self.media.max_num_frames
        return replace(self.media, max_num_frames=min(frames, max_num_frames or frames))

    def processor_for(self, num_crops: int | None) -> Phi3VProcessor:
        """Return the processor, cutting pictures into at most so many crops.

        Raises:
            ValueError: The number is out of range.
        """
        if num_crops is None or num_crops == self.processor.image_processor.num_crops:
            return self.processor
        check_num_crops(num_crops)
        processor = copy(self.processor)
        processor.image_processor = copy(processor.image_processor)
        processor.image_processor.num_crops = num_crops
        return processor

    def _prepare(self, messages: Sequence[Message], wish: Wish) -> PreparedPrompt:
        conversation = open_messages(messages, self.media_for(wish.max_num_frames))
        return prepare_prompt(
            self.processor_for(wish.num_crops), conversation, self.max_context - 1
        )


def can_switch_off_adapter(path: str | Path) -> bool:
    """Tell whether a folder holds an adapter that can be switched off to get the base model.

    Adapter folders of the seed project change weights of the base itself.
    """
    return is_adapter_folder(path) and not (Path(path) / SEED_WEIGHTS).is_file()
