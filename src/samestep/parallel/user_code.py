"""Place of the user's code that is running, for messages."""

import contextlib
import sys
import traceback
from pathlib import Path

import torch

PACKAGES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, sys.modules["samestep"]))
PASSED_OVER = (*PACKAGES, str(contextlib.__file__))  # contexts are entered in the user's name


def user_place(*, whole_path: bool = False) -> str:
    """`file:line` of the innermost frame that is neither torch's, nor samestep's, nor contextlib's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PASSED_OVER):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    return f"{path if whole_path else path.name}:{frame.f_lineno}"


def raised_at(error: BaseException) -> str:
    """`file:line` of the innermost frame, neither torch's nor samestep's, through which an error came."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(PACKAGES)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
