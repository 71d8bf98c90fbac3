"""What a checkpoint folder describes; importing it registers the classes with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

# From its own module: until 5.18, transformers itself hands it out only beside torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.loading import load_model, load_processor
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.model.processing import Phi3VProcessor

__all__ = [
    "Phi3VConfig",
    "Phi3VForCausalLM",
    "Phi3VImageProcessor",
    "Phi3VProcessor",
    "load_model",
    "load_processor",
]


def _register() -> None:
    """Make the Auto classes know ``phi3_v``; a class that the library ships itself goes first."""
    try:
        AutoConfig.register(Phi3VConfig.model_type, Phi3VConfig)
    except ValueError:
        return
    AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM)
    AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM)
    AutoProcessor.register(Phi3VConfig, Phi3VProcessor)
    AutoImageProcessor.register(Phi3VConfig, slow_image_processor_class=Phi3VImageProcessor)


_register()
