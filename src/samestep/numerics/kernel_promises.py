"""Promises of the kernels that bits free of workers rest on, tried on this machine's torch.

Who computes what must not matter: a piece of an update has the bits that it has inside the whole, a sum in parts those
of the whole sum, a product those of the same one in other memory. Another torch, or another processor, may choose
kernels for which that does not hold; what follows finds it before a run relies on it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from samestep.numerics.kernel_fingerprint import kernel_hashes, numbers
from samestep.system.onednn import LINEAR

GRID, VECTOR = 32_768, 64  # elements: where a parameter may be cut, where one may start
Update = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def broken_promises() -> list[str]:
    """Sentences for what does not hold, in tens of milliseconds, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return [sentence for sentence, holds in PROMISES.items() if not holds()]
    finally:
        torch.set_num_threads(threads)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def repeats() -> bool:
    return kernel_hashes() == kernel_hashes()


def writes_products_in_place() -> bool:
    memory = torch.zeros(1 << 20)
    for rows, width, columns in ((3, 17, 5), (16, 256, 192), (64, 384, 130)):
        grad, x = numbers(rows, columns), numbers(rows, width, salt=2)
        for start in (0, VECTOR, 7 * VECTOR):
            place = memory[start : start + columns * width].view(columns, width)
            if not same(torch.mm(grad.t(), x, out=place), torch.mm(grad.t(), x)):
                return False
    return True


def adds_in_parts() -> bool:
    a, b = numbers(5 * GRID + 77), numbers(5 * GRID + 77, salt=2)
    whole = a + b
    parts = [torch.add(x, y) for x, y in zip(torch.split(a, 2 * GRID), torch.split(b, 2 * GRID), strict=True)]
    return same(torch.cat(parts), whole) and same(a.clone().add_(b), whole)


def updates_in_pieces() -> bool:
    return all(_same_in_pieces(update) for update in (_fused_sgd, _fused_adamw, _foreach))


def _same_in_pieces(update: Update) -> bool:
    """Whether pieces of a parameter, each in memory of its own that starts elsewhere, are updated as the whole is."""
    size = 2 * GRID + 12_345
    whole = [numbers(size, salt=salt) for salt in (1, 2, 3)] + [numbers(size, salt=4).abs()]
    memory = [torch.zeros(size + VECTOR) for _ in whole]
    for tensor, place in zip(whole, memory, strict=True):
        place[VECTOR:].copy_(tensor)
    for start in range(0, size, GRID):
        update(*(place[VECTOR:][start : start + GRID] for place in memory))
    update(*whole)
    return all(same(place[VECTOR:], tensor) for place, tensor in zip(memory, whole, strict=True))


def _fused_sgd(param: Tensor, grad: Tensor, momentum: Tensor, _: Tensor) -> None:
    torch._fused_sgd_(
        [param], [grad], [momentum], weight_decay=0.01, momentum=0.9, lr=0.1, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=False,
    )  # fmt: skip


def _fused_adamw(param: Tensor, grad: Tensor, first: Tensor, second: Tensor) -> None:
    torch._fused_adamw_(
        [param], [grad], [first], [second], [], [torch.tensor(3.0)], lr=1e-2, beta1=0.9, beta2=0.99, weight_decay=0.1,
        eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip


def _foreach(param: Tensor, grad: Tensor, first: Tensor, second: Tensor) -> None:
    torch._foreach_lerp_([first], [grad], 0.1)
    torch._foreach_mul_([second], 0.99)
    torch._foreach_addcmul_([second], [grad], [grad], 0.01)
    torch._foreach_addcdiv_([param], [first], [second.sqrt() + 1e-8], -0.01)


def norms_one_by_one() -> bool:
    parts = torch.split(numbers(3 * GRID + 100), GRID)
    together = torch._foreach_norm(list(parts), 2.0)
    return all(
        same(norm, torch._foreach_norm([part.clone()], 2.0)[0]) for part, norm in zip(parts, together, strict=True)
    )


def slices_functions() -> bool:
    x = numbers(4096 + 33)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (torch.exp, torch.tanh, F.gelu, F.silu, torch.sigmoid, F.relu)
    return all(
        same(torch.cat([function(x[:cut]), function(x[cut:].clone())]), function(x))
        for function in functions
        for cut in (VECTOR, 31 * VECTOR)
    )


def keeps_columns_of_copies() -> bool:
    """A product does not depend on where its operands lie."""
    x, weight, bias = numbers(24, 320), numbers(200, 320, salt=2), numbers(200, salt=3)
    memory = torch.zeros(200 * 320 + VECTOR)
    moved = memory[VECTOR:].view(200, 320)
    moved.copy_(weight)
    if not same(F.linear(x, weight, bias), F.linear(x.clone(), moved, bias.clone())):
        return False
    return LINEAR is None or same(
        LINEAR(x, weight, bias, "none", [], ""), LINEAR(x.clone(), moved, bias, "none", [], "")
    )


def streams_begin_again() -> bool:
    state = torch.get_rng_state()
    try:
        drawn = []
        for _ in range(2):
            torch.default_generator.manual_seed(7)
            drawn.append(torch.cat([torch.rand(1003), torch.randn(1003), F.dropout(torch.ones(1003), 0.3)]))
        return same(*drawn)
    finally:
        torch.set_rng_state(state)


PROMISES: dict[str, Callable[[], bool]] = {
    "a kernel repeats its bits": repeats,
    "a product written with out= has the bits of one in fresh memory": writes_products_in_place,
    "a product does not depend on where its operands lie": keeps_columns_of_copies,
    "a sum of gradients in parts has the bits of the whole sum": adds_in_parts,
    "an update of a piece has the bits that it has in the whole": updates_in_pieces,
    "a norm of a chunk does not depend on the chunks beside it": norms_one_by_one,
    "a function of a slice at a multiple of 64 elements has the bits of the whole": slices_functions,
    "a random stream begins again with its seed": streams_begin_again,
}
