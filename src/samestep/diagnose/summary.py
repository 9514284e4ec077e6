"""Summary of a run's traces: predicted and measured times, the slowest worker, waits between workers, advice."""

from collections.abc import Iterator, Sequence

from samestep.diagnose.advice import advice
from samestep.diagnose.trace_medians import TraceMedians, trace_medians
from samestep.plan.prediction import Prediction, in_ms
from samestep.trace.worker_trace import WorkerTrace

SHOWN = 0.01  # share of a step below which waiting is left out


def trace_summary(traces: Sequence[WorkerTrace], prediction: Prediction | None = None) -> str:
    """The summary as text. traces: of all workers, in the order of ranks."""
    seen = trace_medians(traces)
    lines = [f"{seen.steps} steps, {in_ms(seen.seconds)} ms each (median)"]
    if prediction is not None:
        lines.append(prediction.graded(seen.seconds))
    lines += [*kinds_table(seen, prediction), *slowest_line(seen), *waits_lines(seen)]
    lines += [f"advice: {text}" for text in advice(seen, prediction)]
    return "\n".join(lines)


def kinds_table(seen: TraceMedians, prediction: Prediction | None) -> Iterator[str]:
    """Busy milliseconds per step, all workers together; ratio is measured over predicted."""
    kinds = sorted({kind for own in seen.busy for kind in own}, key=lambda kind: -seen.total(kind))
    width = max(map(len, kinds))
    columns = "measured" if prediction is None else "predicted  measured  ratio"
    yield f"{'busy, ms':{width}}  {columns}"
    for kind in kinds:
        found = f"{in_ms(seen.total(kind)):>8}"
        if prediction is not None:
            expected = sum(own.get(kind, 0.0) for own in prediction.actions)
            ratio = f"{seen.total(kind) / expected:5.2f}" if expected else "    -"
            found = f"{in_ms(expected):>9}  {found}  {ratio}"
        yield f"{kind:{width}}  {found}"


def slowest_line(seen: TraceMedians) -> Iterator[str]:
    if seen.workers > 1:
        busy = sum(seen.busy[seen.slowest].values())
        yield f"the slowest is worker {seen.slowest}: busy {in_ms(busy)} ms, {busy / seen.seconds:.0%} of the step"


def waits_lines(seen: TraceMedians) -> Iterator[str]:
    for (rank, cause), seconds in sorted(seen.waits.items(), key=lambda item: -item[1]):
        if seconds > SHOWN * seen.seconds:
            yield f"worker {rank} waits {in_ms(seconds)} ms for worker {cause} ({seconds / seen.seconds:.0%})"
    for rank, own in enumerate(seen.under_way):
        seconds = sum(own.values())
        if seconds > SHOWN * seen.seconds:
            most = max(own, key=own.__getitem__)
            share = f"{seconds / seen.seconds:.0%}"
            yield f"worker {rank} waits {in_ms(seconds)} ms for bytes under way ({share}), most in {most}"
    if seen.clock_error > 0:
        yield f"clocks of the hosts agree to within {seen.clock_error * 1e6:.0f} us"
