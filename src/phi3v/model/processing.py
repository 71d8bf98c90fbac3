"""From prompts and pictures to model inputs: the processor, and the batches it makes.

Letters: B rows, T tokens of the longest row, N images of all rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from phi3v.model.batching import batch_rows, pair_pictures, truncate_row
from phi3v.model.conversations import render_conversations, usable_options, warn_of_template
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.pictures import ImageLike
from phi3v.model.text import (
    CHAT_TEMPLATE,
    IMAGE_TOKEN,
    EncodedText,
    encode_text,
    render_messages,
)
from phi3v.model.tokenizer import load_tokenizer, save_tokenizer

__all__ = ["IMAGE_TOKEN", "EncodedText", "Phi3VProcessor", "render_messages"]

_IMAGE_SETTINGS = ("num_crops", "do_convert_rgb")
# More pictures than fit into one prompt.
_MOST_TAGS = 1_000
_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class Phi3VProcessor(ProcessorMixin):
    """Joins image processor and tokenizer of a Phi-3-vision checkpoint.

    Args:
        image_processor: Makes the crops.
        tokenizer: The checkpoint's tokenizer, as `load_tokenizer` gives it.
        chat_template: Accepted because the library passes it; only the published one is rendered.

    Raises:
        ValueError: If the tokenizer has no `<|image|>` token.

    Source:
        Processor of the published Phi-3-vision checkpoint, except that places of an image hold the
        id of `<|image|>` instead of minus its number.
    """

    image_processor: Phi3VImageProcessor
    tokenizer: PreTrainedTokenizerFast

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None = None,
    ) -> None:
        template = chat_template or tokenizer.chat_template or CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=template)
        if IMAGE_TOKEN not in tokenizer.added_tokens_encoder:
            raise ValueError(
                f"the tokenizer has no {IMAGE_TOKEN} token; use the tokenizer files of a "
                "Phi-3-vision checkpoint"
            )
        warn_of_template(template)
        # Content of processor_config.json, which Phi-3.5-vision has and Phi-3-vision has not.
        self.auto_map: dict[str, str] | None = None

    @property
    def image_token_id(self) -> int:
        """Id of the image token."""
        return self.tokenizer.added_tokens_encoder[IMAGE_TOKEN]

    @property
    def img_tokens(self) -> list[str]:
        """Image tags by number, as vLLM looks them up in the published processor."""
        return [f"<|image_{number}|>" for number in range(1, _MOST_TAGS + 1)]

    def calc_num_image_tokens_from_image_size(self, width: int, height: int) -> int:
        """Count the tokens of a picture of this size; the name is that of the published method."""
        return self.image_processor.num_image_tokens(width, height)

    def __call__(
        self,
        text: str | Sequence[str],
        images: ImageLike | Sequence[ImageLike | Sequence[ImageLike] | None] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str = "left",
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        pixel_format: str = "published",
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool = True,
    ) -> BatchFeature:
        """Turn prompts and their pictures into model inputs.

        Args:
            text: One prompt, or a list of B prompts, with a tag `<|image_k|>` for every image.
            images: For one prompt its picture or pictures; for a list of prompts a list with the
                list of pictures of every prompt, which may be empty.
            padding: True or "longest" pads to the longest row, "max_length" to max_length.
            padding_side: "left" (for generation) or "right".
            truncation: Cut rows at the end to max_length; an image is never cut.
            max_length: Number of tokens; None means the tokenizer's own limit.
            return_tensors: "pt", "np", or None for lists (of numpy pixels).
            pixel_format: "published" or "compact", see `Phi3VImageProcessor`.
            pad_to_multiple_of: With padding, make the length a multiple of this.
            add_special_tokens: False leaves out the BOS in front; those behind images stay.

        Returns:
            `input_ids` and `attention_mask` (B, T), and if there are images their `pixel_values`
            and `image_sizes` (N, 2), concatenated in row order.

        Raises:
            ValueError: If tags and pictures do not match, a picture cannot be read, a row would be
                cut inside an image, or rows of different length are wanted as a tensor.
        """
        texts, pictures = pair_pictures(text, images)
        features: dict[str, Any] = {}
        counts: list[int] = []
        if any(pictures):
            flat = [picture for row in pictures for picture in row]
            encoded = self.image_processor(flat, pixel_format, return_tensors)
            counts = encoded["num_img_tokens"]
            features = {key: encoded[key] for key in ("pixel_values", "image_sizes")}
        rows = []
        for prompt, row in zip(texts, pictures, strict=True):
            own, counts = counts[: len(row)], counts[len(row) :]
            ids = self.encode(prompt, own).input_ids
            rows.append(ids if add_special_tokens else ids[1:])
        if truncation:
            limit = self.tokenizer.model_max_length if max_length is None else max_length
            rows = [truncate_row(row, limit, self.image_token_id) for row in rows]
        elif max_length is not None and padding != "max_length":
            raise ValueError("max_length needs truncation=True or padding='max_length'")
        inputs = batch_rows(
            rows,
            self.tokenizer.pad_token_id,
            padding=padding,
            padding_side=padding_side,
            max_length=max_length,
            return_tensors=return_tensors,
            multiple=pad_to_multiple_of or 1,
        )
        return BatchFeature(inputs | features)

    def encode(self, text: str, image_token_counts: Sequence[int] = ()) -> EncodedText:
        """Turn one text with image tags into ids and their places in it; see `encode_text`."""
        return encode_text(self.tokenizer, text, image_token_counts)

    def apply_chat_template(  # type: ignore[override]  # the published template takes no options
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        continue_final_message: bool = False,
        images: Any = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation, or a list of them.

        Args:
            messages: Turns with `role` and `content`. A content is a string or a list of parts:
                `{"type": "text", "text": ...}` and `{"type": "image"}`, the latter with the picture
                under "image" or "path", unless all pictures come in `images`.
            add_generation_prompt: End with the opening of the assistant's next answer.
            tokenize: Return ids instead of text.
            return_dict: With tokenize, return all that calling the processor on the text returns.
            continue_final_message: Leave the last turn, an answer, open.
            images: Pictures of the conversation in order; for several conversations one list each.
            processor_kwargs: With tokenize, options of the call (padding, return_tensors, ...).
            **kwargs: More of the same.

        Returns:
            Text; or the ids; or the model inputs. A list or batch for a list of conversations.

        Raises:
            ValueError: If a role, part or option is wrong, or tags and pictures do not match.
        """
        texts, images, batched = render_conversations(
            messages,
            images=images,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        options = usable_options({**(processor_kwargs or {}), **kwargs})
        if not tokenize:
            if options or return_dict:
                raise ValueError(f"{sorted(options) or 'return_dict'} needs tokenize=True")
            return texts if batched else texts[0]
        inputs = self(texts, images, **options)
        return inputs if return_dict else inputs["input_ids"]

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the same options, by keyword
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "Phi3VProcessor":
        """Load the processor of a checkpoint folder or hub id; code in it is never run.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            **kwargs: `num_crops`, and download options (`revision`, `token`, ...). The Auto classes
                add options of their own, which mean nothing here.

        Raises:
            FileNotFoundError: If the folder lacks a file of the processor.
        """
        path = pretrained_model_name_or_path
        settings = {key: kwargs[key] for key in kwargs if key in _IMAGE_SETTINGS}
        download = {key: kwargs[key] for key in kwargs if key in _DOWNLOAD_OPTIONS}
        if Path(path).is_dir() and not (Path(path) / "preprocessor_config.json").is_file():
            raise FileNotFoundError(
                f"{path} has no preprocessor_config.json; copy it from the base model"
            )
        image_processor = Phi3VImageProcessor.from_pretrained(path, **settings, **download)
        processor = cls(image_processor, load_tokenizer(path, **download))
        published, _ = cls.get_processor_dict(path, **download)
        processor.auto_map = published.get("auto_map")
        return processor

    def save_pretrained(  # type: ignore[override]  # nothing is uploaded from here
        self, save_directory: str | Path, **kwargs: Any
    ) -> list[str]:
        """Write the processor in the published form; the folder is made if it does not exist.

        Returns:
            Paths of the JSON files of the processor.

        Raises:
            ValueError: If an option of the library is given; uploading is a method of its own.
        """
        if any(kwargs.values()):
            raise ValueError(f"save_pretrained got {sorted(kwargs)}; call push_to_hub to upload")
        folder = Path(save_directory)
        save_tokenizer(self.tokenizer, folder)
        files = self.image_processor.save_pretrained(folder)
        if self.auto_map:
            settings = {"auto_map": self.auto_map, "processor_class": type(self).__name__}
            file = folder / "processor_config.json"
            file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            files.append(str(file))
        return files
