"""Configuration of Phi-3-vision: the published ``config.json``, read and written field for field.

The run's own choices (attention kernel, dtype of activations) are never part of it.
"""

from typing import Any

from transformers import PreTrainedConfig

from phi3v.model import config_fields as checks
from phi3v.model.sizes import VisionSize, check_whole_numbers

PUBLISHED_REPOSITORY = "microsoft/Phi-3.5-vision-instruct"
PHI3_REPOSITORY = "microsoft/Phi-3-vision-128k-instruct"
# The one field that tells the two published models apart.
_PHI3_SLIDING_WINDOW = 131072
PUBLISHED_IMAGE_TOKEN_ID = 32044
CLIP_LARGE_336 = "openai/clip-vit-large-patch14-336"

# The added tokens stand in one block in every vocabulary of this family; <|image|> is its last
# member.
_OFFSET_OF_END = 37
_OFFSET_OF_END_OF_TEXT = 44

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "original_max_position_embeddings",
)
_POSITIVE = ("initializer_range", "rms_norm_eps", "rope_theta")
_SHARES = ("resid_pdrop", "embd_pdrop", "attention_dropout")
_FIELDS_OF_THE_RUN = (
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "id2label",
    "label2id",
    "problem_type",
)


def published_repository(sliding_window: int | None) -> str:
    """Name the repository of the published model that has this window, by default Phi-3.5's."""
    return PHI3_REPOSITORY if sliding_window == _PHI3_SLIDING_WINDOW else PUBLISHED_REPOSITORY


class Phi3VConfig(PreTrainedConfig):
    """Configuration of a Phi-3-vision or Phi-3.5-vision checkpoint.

    Field names, defaults and validation are those of the published configuration. Two fields go
    beyond it and are written only where they differ from the published models:
        ``img_processor["clip_config"]`` (size of the tower)
    and ``image_token_id`` (a vocabulary of another size).

    Raises:
        ValueError: A field has a value that no published checkpoint can have.

    Source:
        ``config.json`` of microsoft/Phi-3-vision-128k-instruct and
        microsoft/Phi-3.5-vision-instruct.
    """

    model_type = "phi3_v"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attention_dropout: float = 0.0
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 32000
    pad_token_id: int | None = 32000
    sliding_window: int | None = None
    embd_layer: dict[str, Any] | str = "default"
    img_processor: dict[str, Any] | None = None
    image_token_id: int = PUBLISHED_IMAGE_TOKEN_ID

    def __post_init__(self, **kwargs: Any) -> None:
        """Drop what belongs to a run, fill what may be absent, and check the rest."""
        # Published files name flash attention here; kept, it would overrule the caller's choice.
        kwargs.pop("_attn_implementation", None)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        # Before the library makes anything of them.
        self._check_sizes()
        super().__post_init__(**kwargs)
        self._check_fields()
        self._check_vision()

    def _check_sizes(self) -> None:
        check_whole_numbers(self, (*_SIZES, "image_token_id"), where="config")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"config: hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        assert self.num_key_value_heads is not None
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    def _check_fields(self) -> None:
        checks.check_numbers(self, _POSITIVE, where="config", above=0)
        checks.check_numbers(self, _SHARES, where="config", above=-1e-9, below=1)
        checks.check_token_ids(self, ("bos_token_id", "eos_token_id", "pad_token_id"))
        checks.check_choice("config: use_cache", self.use_cache, (True, False))
        checks.check_choice("config: tie_word_embeddings", self.tie_word_embeddings, (True, False))
        checks.check_choice("config: hidden_act", self.hidden_act, ("silu",))
        if self.sliding_window is not None:
            check_whole_numbers(self, ["sliding_window"], where="config")
        if self.rope_scaling is not None:
            checks.check_rope_scaling(self.rope_scaling, self.head_dim)

    def _check_vision(self) -> None:
        if isinstance(self.embd_layer, str):
            return
        if not self.has_vision:
            raise ValueError(f"config: embd_layer must be an object, found {self.embd_layer!r}")
        layer = self.embd_layer
        assert isinstance(layer, dict)
        for key, expected in (("hd_transform_order", "sub_glb"), ("projection_cls", "mlp")):
            if layer.get(key, expected) != expected:
                raise ValueError(
                    f"config: embd_layer {key} must be {expected!r} as in the published models, "
                    f"found {layer[key]!r}"
                )
        described = self.img_processor or {}
        if not isinstance(described, dict) or not isinstance(
            described.get("clip_config", {}), dict
        ):
            raise ValueError("config: img_processor and its clip_config must be JSON objects")
        if described.get("type_feature", "patch") != "patch":
            raise ValueError("config: img_processor type_feature must be 'patch'")
        vision, index = self.vision, self.vision_feature_layer
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"config: img_processor layer_idx must be a number, found {index!r}")
        if not 0 <= self.num_vision_layers_used <= vision.num_hidden_layers:
            raise ValueError(
                f"config: img_processor layer_idx {index} is not one of the "
                f"{vision.num_hidden_layers} layers of the tower"
            )
        if vision.image_size % vision.patch_size or vision.patches_per_side % 2:
            raise ValueError(
                f"config: a crop of {vision.image_size} pixels must be an even number of "
                f"{vision.patch_size}-pixel patches"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the decoder."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_vision(self) -> bool:
        """Whether the checkpoint has a vision side; ``embd_layer: "default"`` means text only."""
        return isinstance(self.embd_layer, dict)

    @property
    def vision(self) -> VisionSize:
        """Size of the CLIP tower."""
        stored = (self.img_processor or {}).get("clip_config", {})
        known = {k: v for k, v in stored.items() if k in VisionSize.__dataclass_fields__}
        return VisionSize(**known)

    @property
    def vision_feature_layer(self) -> int:
        """Index of the hidden state of the tower that is used as feature; -2 when published."""
        return (self.img_processor or {}).get("layer_idx", -2)

    @property
    def num_vision_layers_used(self) -> int:
        """Number of CLIP layers that can influence the output; 23 of 24 when published."""
        index = self.vision_feature_layer
        return index if index >= 0 else self.vision.num_hidden_layers + 1 + index

    @property
    def crop_size(self) -> int:
        """Side of one crop in pixels; 336 when published."""
        return self.vision.image_size

    @property
    def patch_size(self) -> int:
        """Side of one CLIP patch in pixels; 14 when published."""
        return self.vision.patch_size

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end an answer, ``<|end|>`` and ``<|endoftext|>``; ``eos_token_id`` says else."""
        return [self.image_token_id - _OFFSET_OF_END, self.image_token_id - _OFFSET_OF_END_OF_TEXT]

    @property
    def layer_types(self) -> list[str]:
        """Kind of key-value cache of every layer: all full.

        The window of the published models is as long as their context, so a sliding cache would
        save nothing.
        """
        return ["full_attention"] * self.num_hidden_layers

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as the published ``config.json`` names them.

        Programs that know only the published form read ``torch_dtype``, ``rope_scaling`` and
        ``rope_theta``; the newer spellings of the library are not written.
        """
        fields = super().to_dict()
        for name in _FIELDS_OF_THE_RUN:
            fields.pop(name, None)
        if (dtype := fields.pop("dtype", None)) is not None:
            fields["torch_dtype"] = dtype
        if fields.get("image_token_id") == PUBLISHED_IMAGE_TOKEN_ID:
            del fields["image_token_id"]
        if not fields.get("auto_map"):
            code = published_repository(self.sliding_window)
            fields["auto_map"] = {
                "AutoConfig": f"{code}--configuration_phi3_v.Phi3VConfig",
                "AutoModelForCausalLM": f"{code}--modeling_phi3_v.Phi3VForCausalLM",
            }
        return {key: value for key, value in fields.items() if value is not None}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return ``to_dict()`` without the folder name; defaults are written out, as published."""
        fields = self.to_dict()
        fields.pop("_name_or_path", None)
        return fields
