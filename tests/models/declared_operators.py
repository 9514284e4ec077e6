"""Operators of torchvision, declared where its own library of them cannot be loaded: no model of the zoo calls them."""

import importlib.util

import torch

KEPT: list[torch.library.Library] = []
"""What is declared is forgotten with its library."""


def declare() -> None:
    if KEPT or importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "DEF")
    KEPT.append(library)
    try:
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # they are there
        return
