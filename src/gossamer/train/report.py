"""A run's report: one HTML file that needs nothing else, made from ``metrics.jsonl`` and ``config.yaml``.

It can be made at any moment of a run's life: before the first step, in mid-flight, after a divergence, at the end.
Everything that comes from outside (names, configuration, a model's output) is escaped, and the page's own policy
forbids it to load anything.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.train.metrics import read_metrics, write_atomically

if TYPE_CHECKING:
    from gossamer.train.curves import Axis, Chart

__all__ = ["REPORT_FILE", "loss_curve_png", "write_report"]

REPORT_FILE = "report.html"
CONFIG_FILE = "config.yaml"

_AXES: tuple[Axis, ...] = ("tokens", "elapsed")
_SAMPLES = 24  # shown at most, evenly over the run; all are in metrics.jsonl
_EVALUATIONS = 60
_SAMPLE_CHARACTERS = 6000
_WIDE, _NARROW = (1040, 330), (440, 270)  # sizes of the pictures, CSS pixels

# Characters that HTML forbids or that would act on the text around them are shown as pictures of themselves.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}

Event = dict[str, Any]


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder, replacing an older one whole, and return its path.

    Raises:
        UserError: the folder has no ``metrics.jsonl``, or a damaged one.
    """
    events = read_metrics(run)
    # Imported here, as they bring NumPy and matplotlib: other verbs than `report` must not wait for them.
    from jinja2 import Environment, StrictUndefined

    from gossamer.train.curves import PALETTE

    charts = _charts(events)
    template = files("gossamer.train").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    config, config_text = _configuration(run / CONFIG_FILE)
    page = environment.from_string(template).render(
        name=run.resolve().name,
        description=config.pop("description", None),
        start=_last(events, "start"),
        date=_date(events),
        state=_state(events, config),
        facts=_facts(events),
        warning=_warning(events),
        charts=[_drawn(chart, _ends(events), wide=index == 0) for index, chart in enumerate(charts)],
        evaluations=_spread(_evaluations(events), _EVALUATIONS),
        samples=_samples(events),
        sample_count=sum(event["event"] == "sample" for event in events),
        config=_sections(config),
        config_text=config_text,
        palette=PALETTE,
        count=count,
        duration=duration,
        number=number,
    )
    path = run / REPORT_FILE
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def loss_curve_png(run: Path, path: Path) -> None:
    """Write a picture of training and validation loss over tokens, titled with the run's name and size, for a README.

    Raises:
        UserError: the folder has no ``metrics.jsonl``, or a damaged one.
    """
    events = read_metrics(run)
    from gossamer.train.curves import draw_png

    start, measured = _last(events, "start"), _last(events, "end", "eval")
    parts = []
    if _known(start.get("parameters")):
        parts.append(f"{count(start['parameters'])} parameters")
    if _known(start.get("active_parameters")):
        parts.append(f"{count(start['active_parameters'])} active")
    if _known(measured.get("loss")):
        parts.append(f"validation loss {number(measured['loss'])}")
    if _known(measured.get("bits_per_byte")):
        parts.append(f"{number(measured['bits_per_byte'])} bits per byte")
    picture = draw_png(_charts(events)[0], _ends(events)["tokens"], run.resolve().name[:60], " · ".join(parts))
    write_atomically(path, picture)


def count(value: Any) -> str:
    """Write a number of things: 57012345 -> "57.0M", small ones in full, "–" for none."""
    from gossamer.train.curves import human

    if not _known(value):
        return "–"
    return f"{value:,.0f}" if abs(value) < 10_000 and value == int(value) else human(value, keep_zeros=True)


def number(value: Any, digits: int = 4) -> str:
    """Write a measurement with so many significant digits, "–" for none."""
    return f"{value:#.{digits}g}".rstrip(".") if _known(value) else "–"


def duration(seconds: Any) -> str:
    """Write a time with its two largest units: 3725 -> "1 h 2 min"."""
    if not _known(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hour, "h"), (minute, "min"), (second, "s"))]
    first = next(index for index, value in enumerate((days, hour, minute, second)) if value)
    return " ".join(part for part in parts[first : first + 2] if not part.startswith("0 "))


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _last(events: list[Event], *kinds: str) -> Event:
    """The newest event of these kinds, or an empty one."""
    return next((event for event in reversed(events) if event["event"] in kinds), {})


def _newest(events: list[Event], key: str) -> Any:
    """The newest finite value of ``key`` in any event."""
    return next((event[key] for event in reversed(events) if _known(event.get(key))), None)


def _date(events: list[Event]) -> str | None:
    moment = next((event["time"] for event in events if _known(event.get("time"))), None)
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _evaluations(events: list[Event]) -> list[Event]:
    """Every measurement on held-out text, one a step: the last one of a run comes with its ``end``."""
    found = {event["step"]: event for event in events if event["event"] in ("eval", "end") and "loss" in event}
    return [event | {"event": "eval"} for event in found.values()]


def _state(events: list[Event], config: dict[str, Any]) -> dict[str, Any]:
    """How far the run is: done when nothing was trained after its newest ``end``."""
    done = _last(events, "end", "train", "resume").get("event") == "end"
    step = max((event["step"] for event in events), default=0)
    steps: Any = _last(events, "start").get("steps")
    training = config.get("training")
    if isinstance(training, dict) and _known(training.get("steps")):
        steps = training["steps"]  # the newer figure: a resume may have prolonged the run
    share = min(step / steps, 1.0) if _known(steps) and steps > 0 else None
    resumes = sum(event["event"] == "resume" for event in events)
    return {"done": done, "step": step, "steps": steps, "share": share, "resumes": resumes}


def _facts(events: list[Event]) -> list[tuple[str, str, str]]:
    """The figures at the head of the page: what it is, the figure, and a remark; those not measured are left out."""
    start, measured = _last(events, "start"), _last(events, "end", "eval")
    tokens, elapsed = _newest(events, "tokens"), _newest(events, "elapsed")
    evaluations = [event for event in _evaluations(events) if _known(event["loss"])]
    facts = []
    if _known(measured.get("loss")):
        best = min(evaluations, key=lambda event: event["loss"], default=measured)
        better = best["loss"] < measured["loss"]
        remark = f"best {number(best['loss'])} at step {best['step']:,}" if better else "nats a token"
        facts.append(("validation loss", number(measured["loss"]), remark))
    elif (average := _training_loss(events)) is not None:
        facts.append(("training loss", number(average), "nats a token, smoothed"))
    if _known(measured.get("bits_per_byte")):
        loss: Any = measured.get("loss")
        remark = f"perplexity {number(math.exp(loss))}" if _known(loss) and loss < 100 else ""
        facts.append(("bits per byte", number(measured["bits_per_byte"]), remark))
    if _known(tokens):
        step = start.get("tokens_per_step")
        facts.append(("tokens", count(tokens), f"{count(step)} a step" if _known(step) else ""))
    if _known(elapsed):
        speed = f"{count(round(tokens / elapsed))} tokens/s" if _known(tokens) and elapsed > 0 else ""
        facts.append(("training time", duration(elapsed), speed))
    if _known(start.get("parameters")):
        active = start.get("active_parameters")
        remark = f"{count(active)} active a token" if _known(active) else ""
        facts.append(("parameters", count(start["parameters"]), remark))
    if _known(start.get("flops_per_token")) and _known(tokens):
        flops = start["flops_per_token"] * tokens
        rate = f"{_flops(flops / elapsed)}/s" if _known(elapsed) and elapsed > 0 else ""
        facts.append(("compute", _flops(flops), rate))
    return facts


def _training_loss(events: list[Event]) -> float | None:
    """The mean of the newest fiftieth of the training losses, NaN left out: one step alone says little."""
    losses = [event["loss"] for event in events if event["event"] == "train" and _known(event.get("loss"))]
    newest = losses[-max(1, len(losses) // 50) :]
    return math.fsum(newest) / len(newest) if newest else None


def _flops(value: float) -> str:
    power = min(max(int(math.log10(value)) // 3, 0), 8) if value >= 1 else 0
    return f"{number(value / 1000**power, 3)} {('', 'K', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y')[power]}FLOP"


def _warning(events: list[Event]) -> str | None:
    losses = [event for event in events if event["event"] == "train" and "loss" in event] + _evaluations(events)
    lost = sorted(event["step"] for event in losses if not _known(event["loss"]))
    if not lost:
        return None
    what = "1 measured loss is" if len(lost) == 1 else f"{len(lost):,} measured losses are"
    return f"{what} not finite, the first at step {lost[0]:,}."


def _charts(events: list[Event]) -> list[Chart]:
    """All charts of the page, the loss first; the others only where there is something to draw."""
    import numpy as np

    from gossamer.train.curves import Chart, curve

    def training(key: str, label: str, smoothed: bool = True) -> Any:
        return curve(events, "train", key, label, "train", smoothed=smoothed)

    def validation(key: str) -> Any:
        return curve(_evaluations(events), "eval", key, "validation", "validation", dots=True)

    charts = [
        Chart("Loss", "nats a token", (training("loss", "training"), validation("loss")), skip_start=True),
        Chart("Bits per byte", "validation", (validation("bits_per_byte"),), skip_start=True),
        Chart("Learning rate", "", (training("learning_rate", "learning rate", False),), from_zero=True),
        Chart("Gradient norm", "before clipping", (training("grad_norm", "gradient norm"),), logarithmic=True),
        Chart("Throughput", "tokens a second", (training("tokens_per_second", "tokens/s"),)),
        Chart("Multi-token prediction", "nats a token", (training("mtp_loss", "MTP loss"),), skip_start=True),
        Chart("Load balance", "auxiliary loss", (training("aux_loss", "auxiliary loss"),), skip_start=True),
    ]
    filled = [any(np.isfinite(item.values).any() for item in chart.curves) for chart in charts]
    return [chart for index, chart in enumerate(charts) if index == 0 or filled[index]]


def _ends(events: list[Event]) -> dict[Axis, float]:
    """Where the curves end, the same for all charts: a page is read along a common axis."""
    return {axis: max((event[axis] for event in events if _known(event.get(axis))), default=0.0) for axis in _AXES}


def _drawn(chart: Chart, ends: dict[Axis, float], wide: bool) -> dict[str, Any]:
    """A chart's pictures: over both axes and, if it is to span the page, also for a narrow one."""
    import numpy as np
    from markupsafe import Markup

    from gossamer.train.curves import draw_svg, table

    filled = tuple(item for item in chart.curves if np.isfinite(item.values).any())
    pictures = []
    for axis in _AXES if filled else ():
        for size, shape in ((_WIDE, "wide"), (_NARROW, "narrow")) if wide else ((_NARROW, ""),):
            picture = draw_svg(chart, axis, ends[axis], *size)
            pictures.append({"axis": axis, "shape": shape, "svg": Markup(picture.svg), "place": picture})
    return {"chart": chart, "wide": wide, "curves": filled, "pictures": pictures, "table": table(filled)}


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _samples(events: list[Event]) -> list[Event]:
    """The samples to show, newest first, with the tokens trained on by then."""
    found, tokens = [], None
    for event in events:
        tokens = event.get("tokens", tokens)
        if event["event"] == "sample":
            text = str(event.get("text", "")).rstrip().translate(_VISIBLE)
            shown = text[:_SAMPLE_CHARACTERS]
            found.append({"step": event["step"], "tokens": tokens, "text": shown, "more": len(text) - len(shown)})
    return _spread(found, _SAMPLES)[::-1]


def _configuration(path: Path) -> tuple[dict[str, Any], str]:
    """The merged configuration, parsed and as its text; what cannot be parsed is still shown as text."""
    import yaml

    if not path.is_file():
        return {}, ""
    text = path.read_text(encoding="utf-8", errors="replace").translate(_VISIBLE)
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}, text
    return (config if isinstance(config, dict) else {}), text


def _sections(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings by section: nested names joined by dots, values as YAML writes them."""
    plain = [(str(key), _shown(value)) for key, value in config.items() if not isinstance(value, dict)]
    nested = [(str(key), _flat(value)) for key, value in config.items() if isinstance(value, dict) and value]
    return ([("general", plain)] if plain else []) + nested


def _flat(section: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in section.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _shown(value)))
    return rows


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return str(value)
