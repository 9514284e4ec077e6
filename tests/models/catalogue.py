"""All models of the zoo, by name; which library each needs."""

import importlib.util
from collections.abc import Callable, Mapping

from models import hand_written_models, language_models, library_models, perception_models
from models.declared_operators import declare
from models.specimen import Specimen

LIBRARIES: Mapping[str, Mapping[str, Callable[[], Specimen]]] = {
    "hand-written": hand_written_models.MODELS,
    "transformers, language": language_models.MODELS,
    "transformers, perception": perception_models.MODELS,
    "torchvision": library_models.TORCHVISION,
    "timm": library_models.TIMM,
    "vit-pytorch": library_models.VIT_PYTORCH,
    "x-transformers": library_models.X_TRANSFORMERS,
    "torch-geometric": library_models.GEOMETRIC,
    "diffusers": library_models.DIFFUSERS,
    "pytorch-tabnet": library_models.TABNET,
    "rtdl-revisiting-models": library_models.REVISITED,
}
"""By the library, and what of it."""

KIND = {name: library for library, models in LIBRARIES.items() for name in models}


def names(only: tuple[str, ...] = ()) -> list[str]:
    """Names of models; those that begin with one of `only`."""
    return [name for name in KIND if not only or name.startswith(only) or KIND[name].startswith(only)]


def missing(name: str) -> str | None:
    """The library that a model needs and that is not installed."""
    library = KIND[name].partition(",")[0].replace("-", "_")
    return None if library == "hand_written" or importlib.util.find_spec(library) else library


def specimen(name: str) -> Specimen:
    declare()
    return LIBRARIES[KIND[name]][name]()
