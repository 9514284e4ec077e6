"""The explanation as one HTML page: no script, no external resources, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape

from samestep.plan.prediction import in_ms
from samestep.planner.explain.charts import parts_chart
from samestep.planner.explain.explanation import Explanation
from samestep.planner.explain.layer_choices import sized
from samestep.planner.explain.plan_comparison import compare_to_pick
from samestep.planner.explain.timeline import timeline_svg
from samestep.planner.search.decision import Decision

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #d8d8d8; --soft: #595959;
  --compute: #3b6fb6; --communication: #d9822b; --bubble: #b9b9b9; --overhead: #8a6fb0; --update: #3f9a63;
  --resharding: #c4486a; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #17181a; --line: #3c3e42; --soft: #a8a8a8;
  --compute: #6c9fe3; --communication: #e8a25c; --bubble: #6a6a6a; --overhead: #ae95d4; --update: #6bc48d;
  --resharding: #e47a98; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; max-width: 1000px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
pre, .wide { overflow-x: auto; } pre { border: 1px solid var(--line); padding: .8rem; font-size: 13px; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: var(--soft); }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; }
.chart { width: 100%; height: auto; font: 13px system-ui, sans-serif; } .chart text { fill: var(--ink); }
""" + "\n".join(f".{part} {{ fill: var(--{part}); }}" for part in (
    "compute", "communication", "bubble", "overhead", "update", "resharding"
))  # fmt: skip


def page(decision: Decision, found: Explanation, plan: str, needs: Sequence[str], answer: str = "") -> str:
    """The page. plan: the plan's text. needs: lines about memory and traffic. answer: to `--why-not`."""
    title = f"{decision.profile.job or 'job'}: {found.name}"
    chart = parts_chart([compare_to_pick(decision, decision.pick), *found.runners_up])
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(found.prediction.text())}: {escape(found.prediction.split_text())}.</p>",
        *section("Timeline", f'<div class="wide">{timeline_svg(decision.pick.estimate, "The predicted step")}</div>'),
        *section("The pick and the runners-up", chart, items(one.text() for one in found.runners_up)),
        *(section("Short runs", items(found.measured)) if found.measured else ()),
        *(section("Why not", f"<p>{escape(answer)}</p>") if answer else ()),
        *section("Layers", layer_table(found)),
        *section("What would flip the choice", items(flip.text for flip in found.flips) or "<p>Nothing was found.</p>"),
        *section("Other numerics", items(found.numerics)),
        *section("The plan", f"<pre>{escape(plan)}</pre>", items(needs)),
        *section("Where it was measured", f"<p>{escape(conditions_text(decision))}</p>"),
    ]  # fmt: skip
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style></head><body><main>",
            *body,
            "</main></body></html>",
        ]
    )


def section(title: str, *parts: str) -> list[str]:
    return [f"<section><h2>{title}</h2>", *parts, "</section>"]


def items(lines: Iterable[str]) -> str:
    found = [f"<li>{escape(line)}</li>" for line in lines]
    return "\n".join(["<ul>", *found, "</ul>"]) if found else ""


def layer_table(found: Explanation) -> str:
    heads = [("layer", ""), ("", ""), ("weights", "number"), ("activations", "number"), ("the other way", "number")]
    rows = [
        "<tr>"
        f"<td>{escape(line.name)}</td><td>{'sliced' if line.is_sliced else 'whole'}</td>"
        f'<td class="number">{sized(line.weights)}</td><td class="number">{sized(line.activations)}</td>'
        f'<td class="number">{"" if line.flipped is None else f"{in_ms(line.flipped)} ms"}</td>'
        f"<td>{escape(line.why)}</td></tr>"
        for line in found.layers
    ]
    head = "".join(f'<th class="{kind}">{words}</th>' for words, kind in [*heads, ("why", "")])
    return "\n".join(
        [
            '<div class="wide"><table>',
            "<caption>Activations: what layers take and give in a step. The other way: the step's time then.</caption>",
            f"<thead><tr>{head}</tr></thead><tbody>",
            *rows,
            "</tbody></table></div>",
        ]
    )


def conditions_text(decision: Decision) -> str:
    conditions = decision.profile.conditions
    return (
        f"On {conditions.machine}, torch {conditions.torch}, {conditions.threads} threads, {conditions.shards} shards, "
        f"{conditions.precision}; up to {conditions.workers} workers at once."
    )
