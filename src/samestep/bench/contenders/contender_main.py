"""The process of a contender: hears on stdin what it is to be, then takes its turns."""

from samestep.bench.contenders.contender_spec import OURS, hear
from samestep.bench.contenders.contender_turns import Pipes


def main(ask: str, answer: str) -> None:
    part, pipes = hear(), Pipes(ask, answer)
    if part.kind == OURS:
        from samestep.bench.contenders.own_contender import run_ours

        run_ours(part.request, pipes)
    else:
        from samestep.bench.contenders.peers import run_peer

        run_peer(part, pipes)
