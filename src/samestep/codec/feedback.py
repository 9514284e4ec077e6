"""Error feedback: what compression lost in this step is added to the next one.

Seide et al., "1-bit stochastic gradient descent" (2014); why it makes up for any such compression:
Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes" (2019).

    residual += values
    decoded   = decode(encode(residual))
    residual -= decoded
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.codec.codec import Codec, State


@dataclass(frozen=True)
class Feedback:
    """A codec around a codec: nothing is lost, only late.

    Over any number of steps, sum of decoded + last residual = sum of values, up to the rounding of
    these two additions in the values' own type.

    packed: the inner codec's. state: "residual", of the values' shape and type, and the inner codec's.
    The residual is changed in place, and may be memory of the caller's: no residual and one of zeros
    are the same.
    """

    inner: Codec

    def __post_init__(self) -> None:
        assert not isinstance(self.inner, Feedback), "there is one residual"

    @property
    def name(self) -> str:
        return f"feedback({self.inner.name})"

    @property
    def grain(self) -> int | None:
        return self.inner.grain

    def encode(self, values: Tensor, state: State) -> list[Tensor]:
        if "residual" not in state:
            state["residual"] = torch.zeros_like(values, memory_format=torch.contiguous_format)
        residual = state["residual"]
        residual += values
        packed = self.inner.encode(residual, state)
        residual -= self.inner.decode(packed, values.shape, values.dtype)
        return packed

    def decode(self, packed: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.inner.decode(packed, shape, dtype)

    def nbytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return self.inner.nbytes(shape, dtype)
