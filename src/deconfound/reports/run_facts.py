"""The table of one run in a report: images, pixels, checkpoints, device."""

from deconfound.data.simulation.inject import clean_name
from deconfound.reports.sources import RunSource


def facts(run: RunSource) -> list[tuple[str, str]]:
    """Names and values for the table of a run."""
    provenance = run.provenance
    counts = {part: count for part, count in run.fold["counts"].items() if count}
    commit = str(provenance.get("commit") or "")[:10]
    if commit and provenance.get("git_clean") is False:
        commit += " (with changes)"
    chosen = [] if run.dial is None else [(f"{run.dial.option} auto", run.dial.text())]
    return [
        *chosen,
        ("images", ", ".join(f"{part} {count:,}" for part, count in counts.items())),
        ("pixels", _pixels(run)),
        ("checkpoint", _checkpoints(run)),
        ("device", f"{provenance.get('device')}, {provenance.get('precision')}"),
        ("training", _duration(float(provenance.get("training_seconds", 0)))),
        ("finished", str(provenance.get("finished"))),
        ("commit", commit or "–"),
    ]


def _pixels(run: RunSource) -> str:
    """What was done to the pixels, at ingest and before the network."""
    made = run.fold["screen_provenance"]
    size = (made.get("resize") or {}).get("size")
    crop = (made.get("options") or {}).get("crop")
    done = [f"cut to {crop} px"] if crop else []
    done += [f"resized to {size} px"] if size else []
    done += [f"technical effects injected into {clean}"] if (clean := clean_name(made)) else []
    by = run.run.percentile_by
    done.append(f"transform {run.run.transform}" + (f" of each {by[-1]}" if by else ""))
    if run.run.standardise_by:
        data = run.run.config.data
        over = "" if data.standardise_with == "all" else " of controls"
        columns = " / ".join(run.run.standardise_by)
        done.append(f"standardised by {columns} ({data.standardise}{over})")
    return ", ".join([*done, f"scaling {run.config['data']['scaling']}"])


def _checkpoints(run: RunSource) -> str:
    found = []
    for stage, how in run.selection["used"].items():
        step = run.selected_step(stage)
        found.append(f"{stage}: {'last' if step is None else f'step {step:.0f} ({how})'}")
    return ", ".join(found)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
