"""A fingerprint of the kernels: the bits that this machine's torch gives for a few small computations.

Two machines with one fingerprint compute alike as far as it was looked at, whatever their processors are called; where
it differs, the kind of operation says what does. Inputs are made of whole numbers, so they are the same everywhere.
"""

import hashlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from samestep.system.onednn import LINEAR

Results = Iterator[Tensor]
VERSION = 1  # of what is computed here


def kernel_hashes() -> dict[str, str]:
    """A hash of 8 hexadecimal digits for each kind of operation, computed on the CPU with one thread."""
    threads, streams = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            return {name: _hash(kind()) for name, kind in KINDS.items()}
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(streams)


def _hash(results: Results) -> str:
    found = hashlib.sha256()
    for result in results:
        found.update(f"{tuple(result.shape)}".encode())
        found.update(result.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:8]


def numbers(*shape: int, salt: int = 1) -> Tensor:
    """float32 numbers in -1..1, exact quotients of whole numbers."""
    count = torch.Size(shape).numel()
    whole = (torch.arange(count, dtype=torch.int64) * (7919 + 2 * salt) + salt).remainder(2003) - 1001
    return (whole.double() / 1001).float().view(shape)


def gradients(output: Tensor, *leaves: Tensor) -> Results:
    """The output, and the gradients of its product with fixed numbers, summed: a given start would import sympy."""
    yield output
    yield from torch.autograd.grad((output * numbers(*output.shape, salt=5)).sum(), leaves)


def leaf(*shape: int, salt: int = 1) -> Tensor:
    return numbers(*shape, salt=salt).requires_grad_()


def products() -> Results:
    for rows, inner, columns in ((1, 300, 70), (5, 33, 17), (16, 256, 192), (48, 513, 130)):
        a, b = numbers(rows, inner), numbers(columns, inner, salt=2)
        yield from (a @ b.t(), F.linear(a, b, numbers(columns, salt=3)), b @ a.t())
    yield torch.bmm(numbers(6, 16, 40), numbers(6, 40, 24, salt=2))
    yield numbers(300, 200) @ numbers(200, salt=2)


def onednn_products() -> Results:
    if LINEAR is not None:
        for rows, inner, columns in ((3, 64, 48), (16, 256, 192), (32, 513, 130)):
            x, weight = numbers(rows, inner), numbers(columns, inner, salt=2)
            yield LINEAR(x, weight, numbers(columns, salt=3), "none", [], "")
            yield LINEAR(numbers(rows, columns, salt=4), weight.t(), None, "none", [], "")


def half_products() -> Results:
    a, b = numbers(16, 128).bfloat16(), numbers(128, 72, salt=2).bfloat16()
    yield from (a @ b, F.linear(a, b.t().contiguous()))


def convolutions() -> Results:
    x, weight, bias = leaf(4, 3, 18, 18), leaf(16, 3, 3, 3, salt=2), leaf(16, salt=3)
    yield from gradients(F.conv2d(x, weight, bias, padding=1), x, weight, bias)
    yield from gradients(F.conv2d(x.to(memory_format=torch.channels_last), weight, stride=2), x, weight)
    wide, deep = leaf(2, 32, 10, 10, salt=4), leaf(24, 32, 3, 3, salt=2)
    yield from gradients(F.conv2d(wide, deep), wide, deep)
    line, short = leaf(3, 8, 50, salt=4), leaf(12, 8, 5, salt=2)
    yield from gradients(F.conv1d(line, short), line, short)


def functions() -> Results:
    x = leaf(1003)
    for function in (torch.exp, torch.tanh, torch.sigmoid, torch.erf, torch.sin, F.gelu, F.silu, F.softplus):
        yield from gradients(function(x * 3), x)
    positive = numbers(1003).abs() + 0.25
    yield from (positive.log(), positive.sqrt(), positive.rsqrt(), positive.pow(1.7), positive.reciprocal())


def sums() -> Results:
    x = numbers(257, 131)
    yield from (x.sum(), x.sum(0), x.sum(1), x.mean(), x.var(0), x.cumsum(0)[-1], (1 + x / 8).prod(1))
    yield from (torch.linalg.vector_norm(x), x.norm(dim=1), torch.logsumexp(x, 1), numbers(70_001).sum())
    yield from torch._foreach_norm([x, x[1:]], 2.0)
    table = leaf(40, 24)
    yield from gradients(F.embedding(torch.arange(200).remainder(37), table), table)
    yield torch.zeros(40, 24).index_add(0, torch.arange(200).remainder(37), numbers(200, 24))


def norms() -> Results:
    x, weight, bias = leaf(12, 96), leaf(96, salt=2), leaf(96, salt=3)
    yield from gradients(F.layer_norm(x, (96,), weight, bias), x, weight, bias)
    images, scale, shift = leaf(6, 16, 7, 7, salt=4), leaf(16, salt=2), leaf(16, salt=3)
    yield from gradients(F.batch_norm(images, None, None, scale, shift, training=True), images, scale, shift)
    yield from gradients(F.group_norm(images, 4, scale, shift), images, scale, shift)
    yield from gradients(F.avg_pool2d(images, 2), images)


def attention() -> Results:
    x = leaf(14, 101)
    yield from gradients(x.softmax(1), x)
    yield from gradients(F.cross_entropy(x, torch.arange(14)), x)
    q, k, v = (leaf(2, 4, 33, 16, salt=salt) for salt in (1, 2, 3))
    yield from gradients(F.scaled_dot_product_attention(q, k, v), q, k, v)
    yield from gradients(F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)


def recurrent() -> Results:
    x, state = leaf(7, 5, 20), numbers(1, 5, 24, salt=9)
    weights = [leaf(96, 20, salt=2), leaf(96, 24, salt=3), leaf(96, salt=4), leaf(96, salt=5)]
    output, _, _ = torch.lstm(x, (state, state * 0.5), weights, True, 1, 0.0, True, False, False)
    yield from gradients(output, x, *weights)


def optimizers() -> Results:
    param, grad, *moments = (numbers(1003, salt=salt) for salt in (1, 2, 3, 4))
    first, second = moments[0], moments[1].abs()
    count = torch.tensor(3.0)
    torch._fused_adamw_(
        [param], [grad], [first], [second], [], [count], lr=1e-2, beta1=0.9, beta2=0.99, weight_decay=0.1, eps=1e-8,
        amsgrad=False, maximize=False,
    )  # fmt: skip
    torch._fused_sgd_(
        [param], [grad], [first], weight_decay=0.01, momentum=0.9, lr=0.1, dampening=0.0, nesterov=True,
        maximize=False, is_first_step=False,
    )  # fmt: skip
    yield from (param, first, second)
    torch._foreach_mul_([param], 0.9)
    torch._foreach_addcdiv_([param], [first], [second.sqrt() + 1e-8], -0.01)
    yield param


KINDS: dict[str, Callable[[], Results]] = {
    "products": products,
    "oneDNN's products": onednn_products,
    "bfloat16 products": half_products,
    "convolutions": convolutions,
    "functions": functions,
    "sums": sums,
    "norms": norms,
    "attention": attention,
    "recurrent layers": recurrent,
    "optimizers": optimizers,
}
