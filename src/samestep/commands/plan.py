"""`samestep plan`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from samestep.commands.exit_codes import exit_codes
from samestep.commands.options import JOB, PLANNING, make_request, options
from samestep.commands.tune_numerics import tune_numerics
from samestep.errors import PlanRefused, Refused
from samestep.launch.request.request import plan_text
from samestep.launch.run.launcher import Launcher
from samestep.plan.cluster import Cluster
from samestep.plan.plan import parse_fields
from samestep.plan.plan_summary import PlanSummary


@click.command()
@JOB
@options(*PLANNING)
@click.option("--why-not", metavar="PLAN", help="Hold a plan against the pick: data, slices, hybrid, pipeline or FILE.")
@click.option("--draw", is_flag=True, help="Draw the step: who computes what when.")
@click.option("--cluster", type=click.Path(dir_okay=False), help="Plan for the hosts in this file, not for this one.")
@click.option("--described", is_flag=True, help="For --cluster: costs from FLOPs and bytes, not measured here.")
@click.option("--tune-numerics", "tune", is_flag=True, help="Choose shards, threads and slices for this machine.")
@click.option("--lock", is_flag=True, help="Keep them in a file beside the job, which train and plan read.")
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the drawing as SVG.")
@click.option("--html", type=click.Path(dir_okay=False), help="Write all of it as one page.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one JSON object.")
def plan(
    job: str,
    settings: tuple[str, ...],
    why_not: str | None,
    draw: bool,
    svg: str | None,
    html: str | None,
    as_json: bool,
    tune: bool,
    lock: bool,
    cluster: str | None,
    **given: Any,
) -> None:
    """Show the plan that `train` would run with these options, why, what it moves, and its schedule."""
    with exit_codes():
        there = None if cluster is None else str(Cluster.read(cluster))
        if there is None and given["described"]:
            raise Refused("--described takes costs from what a cluster's file says: add --cluster FILE")
        request = make_request(job, settings, {**given, "cluster": there, "tune": tune})
        if tune or lock:
            tune_numerics(request, lock=lock)
            return
        text = other_plan(why_not)
        check_writable(svg, html)
        with Launcher() as launcher:
            found = PlanSummary(**launcher.outline(request))
        if found.grounds is None:
            if why_not is not None or html is not None:
                raise PlanRefused(
                    "--why-not and --html explain a choice, and with these options nothing is chosen: leave --plan, "
                    "--assign, --hosts, --transport and --memory-limit out"
                )
            shown = json.dumps(fields_of(found)) if as_json else found.text(draw=draw)
        else:
            found, shown = explained(found, found.grounds, (why_not, text), draw=draw, html=html, as_json=as_json)
        print(shown)
        if svg is not None:
            Path(svg).write_text(found.svg)


def other_plan(name: str | None) -> str | None:
    """Text of the file that `--why-not` names. Raises PlanRefused if it is no plan."""
    if name is None:
        return None
    text = plan_text(name, "--why-not")
    if text is not None:
        parse_fields(text, f"--why-not {name}")
    return text


def check_writable(*files: str | None) -> None:
    """Raise Refused, before measuring, for files that cannot be written."""
    for file in files:
        if file is not None and not Path(file).parent.is_dir():
            raise Refused(f"{file} cannot be written: {Path(file).parent} must be a folder")


def explained(
    found: PlanSummary,
    grounds: Mapping[str, Any],
    other: tuple[str | None, str | None],
    *,
    draw: bool,
    html: str | None,
    as_json: bool,
) -> tuple[PlanSummary, str]:  # fmt: skip
    """The outline with the predicted step drawn, and the text to print. Writes the page."""
    from dataclasses import replace

    from samestep.planner.explain.explanation import explain
    from samestep.planner.explain.page import page
    from samestep.planner.explain.timeline import timeline_svg, timeline_text
    from samestep.planner.explain.why_not import why_not
    from samestep.planner.search.decision import Decision

    decision = Decision.from_json(grounds)
    pick = decision.pick.estimate
    found = replace(found, drawing=timeline_text(pick), svg=timeline_svg(pick, "The predicted step"))
    explanation = explain(decision)
    name, text = other
    answer = None if name is None else why_not(decision, name, text)
    if html is not None:
        needs = found.text(draw=False).removeprefix(found.plan).strip().splitlines()
        Path(html).write_text(page(decision, explanation, found.plan, needs, answer.text if answer else ""))
    if as_json:
        extra = {"explanation": explanation.as_json(), "why_not": None if answer is None else asdict(answer)}
        return found, json.dumps(fields_of(found) | extra)
    sections = [found.text(draw=draw), explanation.text(), *([f"why not {answer.text}"] if answer else [])]
    return found, "\n\n".join(sections)


def fields_of(found: PlanSummary) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name not in ("drawing", "svg", "grounds")}
