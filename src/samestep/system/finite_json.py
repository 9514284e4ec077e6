"""JSON has no NaN and no infinity: null stands for them."""

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """The same with None in the place of such numbers, however deep."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line_of(found: Mapping[str, Any]) -> str:
    return json.dumps(finite(found), allow_nan=False)
