"""One exam that every codec sits, then what each promises by itself."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from samestep.codec.bfloat16 import BFloat16
from samestep.codec.codec import GRID, Codec, State
from samestep.codec.feedback import Feedback
from samestep.codec.int8 import Int8
from samestep.codec.powersgd import PowerSGD
from samestep.codec.topk import TopK
from samestep.errors import PlanRefused
from samestep.parallel.gradients.layout import CHUNK

PLAIN: list[Codec] = [BFloat16(), Int8(), Int8(16), Int8(GRID), TopK(), TopK(0.3), TopK(1.0), PowerSGD(), PowerSGD(1)]
CODECS: list[Codec] = PLAIN + [Feedback(codec) for codec in PLAIN]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
FLAT = [(0,), (1,), (15,), (256,), (1_000,), (GRID,), (2 * GRID + 1_234,)]
SHAPED = [(), (0,), (1,), (7,), (1, 1), (3, 0), (0, 4), (9, 11), (64, 48), (16, 3, 5, 5)]

every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
grained = pytest.mark.parametrize("codec", [c for c in CODECS if c.grain is not None], ids=lambda codec: codec.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def shapes_of(codec: Codec) -> list[tuple[int, ...]]:
    return SHAPED if codec.grain is None else FLAT


def gradient(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, some of them much larger and some zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    size = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (values * 10 ** (6 * size - 3) * (size > 0.1)).to(dtype)


def gradients(shape: Sequence[int], steps: int, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    return (gradient(shape, dtype, seed) for seed in range(steps))


def passed(codec: Codec, values: Tensor, state: State) -> Tensor:
    """What is added on the other side of the edge."""
    return codec.decode(codec.encode(values, state), values.shape, values.dtype)


def bits(*tensors: Tensor) -> list[tuple[tuple[int, ...], torch.dtype, bytes]]:
    return [(tuple(t.shape), t.dtype, t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) for t in tensors]


def cloned(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def elsewhere(values: Tensor) -> list[Tensor]:
    """The values as they are, not at the start of their memory, and with other strides."""
    shifted = torch.empty(values.numel() + 3, dtype=values.dtype)[3:].copy_(values.reshape(-1)).view(values.shape)
    spread = torch.stack([values, values], dim=-1)[..., 0]
    transposed = values.transpose(0, -1).contiguous().transpose(0, -1) if values.dim() else values
    return [values, shifted, spread, transposed]


def memory(tensors: Sequence[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


# --- the exam ---


@every_codec
@every_dtype
def test_shape_type_and_size_are_known_beforehand(codec: Codec, dtype: torch.dtype) -> None:
    for shape in shapes_of(codec):
        packed = codec.encode(gradient(shape, dtype), {})
        decoded = codec.decode(packed, shape, dtype)
        assert (decoded.shape, decoded.dtype) == (shape, dtype)
        assert all(part.is_contiguous() for part in packed)
        assert codec.nbytes(shape, dtype) == sum(part.numel() * part.element_size() for part in packed)


@every_codec
@every_dtype
def test_arguments_are_left_alone_and_nothing_shares_memory(codec: Codec, dtype: torch.dtype) -> None:
    """A sent tensor may still be on its way when the next step writes its gradient."""
    for shape in shapes_of(codec):
        values, state = gradient(shape, dtype), State()
        before = bits(values)
        for _ in range(2):
            packed = codec.encode(values, state)
            sent = bits(*packed)
            decoded = codec.decode(packed, shape, dtype)
            assert bits(values) == before
            assert bits(*packed) == sent
            apart = [memory([values]), memory(list(state.values())), memory([decoded]), memory(packed)]
            assert len(set().union(*apart)) == sum(map(len, apart))


@every_codec
@every_dtype
def test_equal_values_give_equal_bits_wherever_they_lie(codec: Codec, dtype: torch.dtype) -> None:
    """The bits of a product of matrices depend on where they begin, which a codec has to make up for."""
    for shape in shapes_of(codec):
        states: list[State] = [{}, {}, {}, {}]
        for values in gradients(shape, 3, dtype):
            found = [codec.encode(v, state) for v, state in zip(elsewhere(values), states, strict=True)]
            assert all(bits(*packed) == bits(*found[0]) for packed in found)
            moved = [torch.empty(p.numel() + 1, dtype=p.dtype)[1:].copy_(p.reshape(-1)).view(p.shape) for p in found[0]]
            assert bits(codec.decode(found[0], shape, dtype)) == bits(codec.decode(moved, shape, dtype))
        assert all(bits(*state.values()) == bits(*states[0].values()) for state in states)


@every_codec
@every_dtype
def test_a_stored_state_continues_with_the_same_bits(codec: Codec, dtype: torch.dtype) -> None:
    for shape in shapes_of(codec):
        state, stored = State(), State()
        for values in gradients(shape, 4, dtype):
            stored = cloned(state)
            assert all(type(tensor) is Tensor and not tensor.requires_grad for tensor in state.values())
            assert bits(*codec.encode(values, state)) == bits(*codec.encode(values, stored))
        assert state.keys() == stored.keys()
        assert bits(*state.values()) == bits(*stored.values())


@grained
@given(data=st.data(), numel=st.integers(0, 3 * GRID), dtype=st.sampled_from(DTYPES))
def test_pieces_of_the_whole_are_the_whole_of_the_pieces(
    codec: Codec, data: st.DataObject, numel: int, dtype: torch.dtype
) -> None:
    """Cut at other multiples of the grain in every step, as another assignment does; the state is cut along."""
    assert codec.grain is not None
    whole_state, parts = State(), State()
    for values in gradients((numel,), 3, dtype):
        grains = st.integers(0, numel // codec.grain)
        cuts = [codec.grain * cut for cut in sorted(data.draw(st.lists(grains, max_size=3)))]
        ends = [0, *cuts, numel]
        packed: list[list[Tensor]] = []
        states: list[State] = []
        for a, b in pairwise(ends):
            states.append({name: tensor[a:b].clone() for name, tensor in parts.items()})
            packed.append(codec.encode(values[a:b], states[-1]))
        whole = codec.encode(values, whole_state)
        assert bits(*whole) == bits(*(torch.cat(pieces) for pieces in zip(*packed, strict=True)))
        decoded = [codec.decode(p, (b - a,), dtype) for p, (a, b) in zip(packed, pairwise(ends), strict=True)]
        assert bits(codec.decode(whole, (numel,), dtype)) == bits(torch.cat(decoded))
        parts = {name: torch.cat([state[name] for state in states]) for name in whole_state}
        assert bits(*parts.values()) == bits(*whole_state.values())


@every_codec
def test_a_grain_divides_the_grid_of_cuts(codec: Codec) -> None:
    assert GRID == CHUNK
    assert codec.grain is None or GRID % codec.grain == 0


@every_codec
@every_dtype
def test_zeros_stay_zeros_and_are_no_end(codec: Codec, dtype: torch.dtype) -> None:
    for shape in shapes_of(codec):
        values, state = gradient(shape, dtype), State()
        zeros = torch.zeros_like(values)
        assert torch.equal(passed(codec, zeros, state), zeros)
        if values.any():
            assert passed(codec, values, state).any()


@every_codec
@every_dtype
@pytest.mark.parametrize("failure", [math.inf, -math.inf, math.nan])
def test_a_failure_stays_visible(codec: Codec, dtype: torch.dtype, failure: float) -> None:
    for shape in shapes_of(codec):
        for at in {0, math.prod(shape) // 2, math.prod(shape) - 1} if math.prod(shape) else ():
            values = gradient(shape, dtype)
            values.view(-1)[at] = failure
            assert not passed(codec, values, {}).view(-1)[at].isfinite()


@every_codec
def test_a_codec_is_a_value_and_its_name_tells_it_apart(codec: Codec) -> None:
    assert [other for other in CODECS if other == codec] == [codec]
    assert [other for other in CODECS if other.name == codec.name] == [codec]
    assert len({codec, codec}) == 1


# --- error feedback ---


@pytest.mark.parametrize("codec", PLAIN, ids=lambda codec: codec.name)
@given(steps=st.integers(1, 8), seed=st.integers(0, 1_000), shape=st.sampled_from([(1,), (700,), (20, 35), (6, 4, 3)]))
def test_feedback_loses_nothing(codec: Codec, steps: int, seed: int, shape: tuple[int, ...]) -> None:
    """Sum of what was added + last residual = sum of the gradients."""
    shape = shape if codec.grain is None else (math.prod(shape),)
    feedback, state = Feedback(codec), State()
    added, total = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for step in range(steps):
        values = gradient(shape, torch.float64, seed + step)
        total += values
        added += passed(feedback, values, state)
    torch.testing.assert_close(added + state["residual"], total, rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("codec", PLAIN, ids=lambda codec: codec.name)
@every_dtype
def test_the_residual_is_what_decoding_lost_to_the_bit(codec: Codec, dtype: torch.dtype) -> None:
    for shape in shapes_of(codec):
        feedback, state, inner = Feedback(codec), State(), State()
        residual = torch.zeros(shape, dtype=dtype)
        for values in gradients(shape, 3, dtype):
            wanted = values + residual
            decoded = passed(codec, wanted, inner)
            residual = wanted - decoded
            assert bits(passed(feedback, values, state)) == bits(decoded)
            assert bits(state["residual"]) == bits(residual)


def test_a_residual_may_lie_in_memory_of_the_caller() -> None:
    own, state = torch.zeros(1_005)[5:], State()
    given_memory: State = {"residual": own}
    for values in gradients((1_000,), 3):
        assert bits(*Feedback(Int8()).encode(values, state)) == bits(*Feedback(Int8()).encode(values, given_memory))
    assert given_memory["residual"] is own
    assert torch.equal(own, state["residual"])


def test_feedback_around_feedback_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="one residual"):
        Feedback(Feedback(Int8()))


# --- what each promises ---

extreme = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(extreme, min_size=1, max_size=40))
def test_bfloat16_is_the_nearest_number_with_8_bits(values: list[float]) -> None:
    x = torch.tensor(values)
    found = passed(BFloat16(), x, {}).double()
    normal = (x.abs() >= 2.0**-126) & (x.abs() <= torch.finfo(torch.bfloat16).max)
    assert ((found - x.double()).abs() <= 2.0**-8 * x.abs().double())[normal].all()


def test_bfloat16_rounds_halves_to_the_even_one() -> None:
    x = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 1 + 2.0**-8 + 2.0**-20])
    assert passed(BFloat16(), x, {}).tolist() == [1.0, 1 + 2.0**-6, -1.0, 1 + 2.0**-7]


@given(values=st.lists(extreme, min_size=1, max_size=70), dtype=st.sampled_from([torch.float32, torch.float64]))
@example(values=[torch.finfo(torch.float32).max, 0.0, -1.0], dtype=torch.float32)
@example(values=[1e-44, 1e-45, -3e-45], dtype=torch.float32)
@example(values=[180 * 2.0**-149, -1e-45], dtype=torch.float32)  # the scale rounds down, to 1 of 1.42 units
def test_int8_is_off_by_half_a_scale(values: list[float], dtype: torch.dtype) -> None:
    codec, x = Int8(16), torch.tensor(values, dtype=dtype)
    codes, scales = codec.encode(x, {})
    lost = (codec.decode([codes, scales], x.shape, dtype).double() - x.double()).abs()
    for block, error, scale in zip(x.split(16), lost.split(16), scales.double(), strict=True):  # type: ignore[no-untyped-call]
        largest = block.abs().max().double()
        bound = scale / 2 if scale > torch.finfo(dtype).smallest_normal else largest
        assert (error <= bound + 2 * torch.finfo(dtype).eps * largest).all()
    assert codes.abs().max() <= 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_int8_of_the_largest_numbers_is_finite(dtype: torch.dtype) -> None:
    x = torch.finfo(dtype).max * torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=dtype)
    assert (passed(Int8(), x, {}) / x).tolist()[:2] == pytest.approx([1.0, 1.0])
    assert passed(Int8(), x, {}).isfinite().all()


@pytest.mark.parametrize("failure", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [0, 300, 599])
def test_int8_makes_nan_of_the_block_that_failed_and_of_no_other(failure: float, at: int) -> None:
    x = gradient((600,))
    x[at] = failure
    failed = torch.arange(600) // 256 == at // 256
    assert torch.equal(passed(Int8(), x, {}).isnan(), failed)
    assert not Int8().encode(x, {})[0][failed].any()


def test_int8_of_a_block_without_a_scale_has_no_codes() -> None:
    """Of zeros, and of numbers too small for a scale."""
    for x in (torch.zeros(5), torch.tensor([1e-45, -1e-45, 0.0])):
        assert not any(packed.any() for packed in Int8().encode(x, {}))


def test_int8_takes_a_quarter_of_the_bytes() -> None:
    assert Int8().nbytes((1_000, 1_000), torch.float32) == 1_000_000 + 4 * 3_907


@given(
    values=st.lists(st.integers(-3, 3) | st.sampled_from([math.inf, -math.inf]), max_size=60),
    fraction=st.floats(0.001, 1.0),
)
def test_topk_keeps_the_k_largest_and_of_equal_ones_the_first(values: list[float], fraction: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    k = max(1, round(len(values) * fraction)) if values else 0
    kept = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k])
    indices, chosen = TopK(fraction).encode(x, {})
    assert indices.tolist() == kept
    assert chosen.tolist() == [values[i] for i in kept]
    assert passed(TopK(fraction), x, {}).tolist() == [v if i in kept else 0 for i, v in enumerate(values)]


def test_topk_counts_in_each_chunk_and_from_its_start() -> None:
    x = torch.zeros(2 * GRID + 5)
    x[[7, GRID - 1, GRID, 2 * GRID + 4]] = torch.tensor([1.0, -2.0, 3.0, 1e-30])
    indices, chosen = TopK(2 / GRID).encode(x, {})
    assert indices.tolist() == [7, GRID - 1, 0, 1, 4]
    assert chosen.tolist() == [1.0, -2.0, 3.0, 0.0, pytest.approx(1e-30)]
    assert torch.equal(passed(TopK(2 / GRID), x, {}), x)


def test_topk_of_everything_is_everything() -> None:
    x = gradient((GRID + 77,))
    assert torch.equal(passed(TopK(1.0), x, {}), x)


def test_topk_keeps_nan_before_numbers() -> None:
    x = torch.arange(100.0)
    x[3] = math.nan
    assert TopK().encode(x, {})[0].tolist() == [3]


@given(rank=st.integers(1, 4), fewer=st.integers(0, 2), seed=st.integers(0, 1_000), scale=st.sampled_from([1e-6, 1.0]))
def test_powersgd_is_exact_up_to_its_rank(rank: int, fewer: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, max(1, rank - fewer), generator=generator, dtype=torch.float64) for n in (30, 50))
    matrix, state = scale * (a @ b.T), State()
    for _ in range(3):
        torch.testing.assert_close(passed(PowerSGD(rank), matrix, state), matrix, rtol=1e-6, atol=1e-9 * scale)


def test_powersgd_turns_to_the_main_directions() -> None:
    """The best approximation of rank 2, known from the singular values, is reached by repeating the step."""
    u, _, v = torch.linalg.svd(gradient((40, 30), torch.float64))
    s = 0.5 ** torch.arange(30, dtype=torch.float64)
    matrix, state = u[:, :30] @ torch.diag(s) @ v, State()
    best = s[2:].norm().item()
    lost = [(passed(PowerSGD(2), matrix, state) - matrix).norm().item() for _ in range(20)]
    assert lost[0] > 1.02 * best
    assert lost[-1] == pytest.approx(best, rel=1e-6)


def test_powersgd_keeps_its_directions_over_a_step_without_gradient() -> None:
    matrix, state = gradient((40, 30)), State()
    for _ in range(2):
        passed(PowerSGD(), matrix, state)
    before = cloned(state)
    passed(PowerSGD(), torch.zeros(40, 30), state)
    assert bits(state["q"]) == bits(before["q"])


@pytest.mark.parametrize("shape", [(), (100,), (7, 7), (8, 8), (2, 1_000)])
def test_powersgd_sends_what_would_not_be_smaller_as_it_is(shape: tuple[int, ...]) -> None:
    values, state = gradient(shape), State()
    assert bits(*PowerSGD().encode(values, state)) == bits(values)
    assert not state


def test_powersgd_reads_a_convolution_as_out_by_rest() -> None:
    values = gradient((16, 3, 5, 5))
    p, q = PowerSGD(2).encode(values, {})
    assert (p.shape, q.shape) == ((16, 2), (75, 2))
    flat = passed(PowerSGD(2), values.view(16, 75), {})
    assert torch.equal(passed(PowerSGD(2), values, {}), flat.view(16, 3, 5, 5))


def test_powersgd_begins_alike_everywhere() -> None:
    """Written down, because a change of the start changes every run; to six digits, for other CPUs."""
    p, _ = PowerSGD(1).encode(torch.diag(torch.tensor([1.0, 2.0, 3.0])), {})
    assert p.abs().squeeze().tolist() == pytest.approx([0.4367292, 0.8728923, 0.2175476], rel=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Int8(100), r"int8:100.*power of two from 16 to 32768"),
        (lambda: Int8(0), "int8:0"),
        (lambda: Int8(2 * GRID), "int8:65536"),
        (lambda: TopK(0.0), r"topk:0\.0.*more than 0"),
        (lambda: TopK(1.5), r"topk:1\.5.*at most 1"),
        (lambda: TopK(math.nan), "topk:nan"),
        (lambda: PowerSGD(0), r"powersgd:0.*at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(make: type[Codec], said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        make()
