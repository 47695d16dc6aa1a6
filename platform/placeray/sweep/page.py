"""One self-contained HTML page about a sweep: what was best, every trial, the pictures, what was run."""

import base64
import html
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from placeray.evaluation.page import POLICY
from placeray.sweep.config import Sweep
from placeray.sweep.importance import MIN_TRIALS
from placeray.sweep.ledger import Trial
from placeray.sweep.objectives import best_trial, recall_at_1
from placeray.sweep.words import short_paths, short_value, size

_STATES = {
    "finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "running", "waiting": "not begun"
}  # fmt: skip
_CSS = """
.trials td, .trials th { text-align: left; padding: 6px 12px; vertical-align: top; white-space: nowrap; }
.trials td.number { text-align: right; }
.trials tr.best > * { font-weight: 700; background: var(--right-tint); }
.trials .why { display: inline-block; width: 28em; white-space: normal; }
.trials .why { color: var(--soft); font-weight: 400; font-size: 13px; }
.trials .failed { color: var(--wrong); }
.wide { overflow-x: auto; }
.picture { background: #fff; border: 1px solid var(--rule); border-radius: 8px; padding: 10px; max-width: 1000px; }
.picture { overflow-x: auto; }
.picture img { display: block; width: 100%; min-width: 640px; height: auto; }
.facts td { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class SweepPage:
    """What the page shows. `facts` are rows of its last table."""

    title: str
    sweep: Sweep
    trials: Sequence[Trial]
    pictures: Mapping[str, bytes]
    facts: Mapping[str, str] = field(default_factory=dict)


def render_sweep_page(page: SweepPage) -> str:
    """The whole page as text; write it as UTF-8 with the ending .html."""
    sections = [_opening(page), _section("Every trial", _trial_words(page), _trial_table(page))]
    for name, title, words in _PICTURES:
        if name in page.pictures:
            sections.append(_section(title, words, _picture(page.pictures[name], title)))
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in page.facts.items()
    )
    sections.append(_section("What was run", "", f'<table class="facts">{rows}</table>'))
    style = importlib.resources.files("placeray.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(page.title)}</title><style>{style}{_CSS}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


_PICTURES = (
    (
        "curves.png",
        "How they learned",
        "Blue is the best trial. A round end ran to its last epoch, a square one was stopped early, "
        "a cross failed; the number is the trial's.",
    ),
    (
        "pareto_front.png",
        "What recall costs",
        "A trial on the blue line is beaten by no other in both directions: upwards is better, leftwards is cheaper. "
        "The time of a step is what the trial would take alone, however many rode together.",
    ),
    (
        "parallel_coordinates.png",
        "Which values went with which score",
        "A line is a trial, the darker the better; its number stands at its score.",
    ),
    (
        "importance.png",
        "What mattered",
        "How much of the spread of the scores goes with each value: squared rank correlation for ranges, variance "
        "between groups beyond chance for lists. With few trials, or trials stopped early, this is a hint, no proof.",
    ),
)  # fmt: skip


def _opening(page: SweepPage) -> str:
    best = best_trial(list(page.trials))
    if best is None:
        headline = "No trial came to a checkpoint"
    else:
        headline = (
            f"Trial {best.number} is the best of {len(page.trials)}: it finds {_percent(recall_at_1(best))}"
        )
        headline += " of the validation queries at the first answer"
    varied = ", ".join(f"{path}" for path in page.sweep.space)
    lead = (
        f"Varied: {varied}. Trials are compared by R@1 + R@5 (0 to 2) on "
        f"{', '.join(item.name for item in page.sweep.train.validation.sets)}, the figure that also picks the best "
        "epoch of each."
    )
    return (
        f'<header><p class="kicker">{html.escape(page.title)}</p><h1>{html.escape(headline)}.</h1>'
        f'<p class="lead">{html.escape(lead)}</p>{_note(page)}{_tiles(page, best)}</header>'
    )


def _note(page: SweepPage) -> str:
    failed = [trial for trial in page.trials if trial.state == "failed"]
    missing = page.sweep.num_trials - sum(trial.ended for trial in page.trials)
    notes = []
    if failed:
        names = ", ".join(str(trial.number) for trial in failed)
        notes.append(f"{len(failed)} of {len(page.trials)} trials failed ({names}); the table says why.")
    if missing:
        notes.append(
            f"{missing} of {page.sweep.num_trials} trials were not trained: the sweep's time was up."
        )
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _tiles(page: SweepPage, best: Trial | None) -> str:
    states = [trial.state for trial in page.trials]
    shown = [
        (str(states.count("finished")), "trained to the end", f"{states.count('stopped')} stopped early"),
        (str(states.count("failed")), "failed", f"of {len(states)} trials"),
    ]
    if best is not None:
        shown.insert(
            0, (_percent(recall_at_1(best)), "R@1 of the best trial", f"score {best.score or 0.0:.3f}")
        )
        shown.append((size(best.map_bytes), "a photo in its map", f"a step takes {_step(best)}"))
    saved = _epochs_saved(page)
    if saved is not None:
        shown.append((f"{100 * saved:.0f} %", "of all epochs saved", "by stopping early"))
    cells = "".join(
        f"<div class=\"tile\"><strong>{html.escape(figure)}</strong><span>{html.escape(what)}</span>"
        f"<small>{html.escape(detail)}</small></div>"
        for figure, what, detail in shown
    )  # fmt: skip
    return f'<div class="tiles">{cells}</div>'


def _epochs_saved(page: SweepPage) -> float | None:
    ended = [trial for trial in page.trials if trial.state in ("finished", "stopped")]
    whole = sum(page.sweep.spec(trial.number, trial.values).train.epochs for trial in ended)
    return 1 - sum(len(trial.epochs) for trial in ended) / whole if whole else None


def _trial_words(page: SweepPage) -> str:
    words = "Best first. R@1 and score are those of the trial's best epoch."
    if len([trial for trial in page.trials if trial.score is not None]) < MIN_TRIALS:
        words += " Too few trials to say which value mattered."
    return words


def _trial_table(page: SweepPage) -> str:
    names, best = short_paths(list(page.sweep.space)), best_trial(list(page.trials))
    heads = ["trial", *names.values(), "R@1", "score", "epochs", "in the map", "a step", "ended"]
    rows = "".join(
        _trial_row(trial, list(page.sweep.space), best=trial is best)
        for trial in sorted(page.trials, key=lambda trial: (-(trial.score or -1.0), trial.number))
    )
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    return f'<div class="wide"><table class="trials"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _trial_row(trial: Trial, paths: list[str], best: bool) -> str:
    figures = [
        _percent(recall_at_1(trial)),
        f"{trial.score:.3f}" if trial.score is not None else "–",
        str(len(trial.epochs)),
        size(trial.map_bytes) if trial.map_bytes else "–",
        _step(trial) if trial.step_s else "–",
    ]
    cells = [f"<td>{html.escape(short_value(trial.values[path]))}</td>" for path in paths]
    cells += [f'<td class="number">{html.escape(figure)}</td>' for figure in figures]
    why = f'<br><span class="why">{html.escape(trial.why)}</span>' if trial.why else ""
    cells.append(f'<td class="{trial.state}">{_STATES[trial.state]}{why}</td>')
    kind = ' class="best"' if best else ""
    return f'<tr{kind}><th scope="row">{trial.number}</th>{"".join(cells)}</tr>'


def _section(title: str, text: str, body: str) -> str:
    paragraph = f'<p class="explain">{html.escape(text)}</p>' if text else ""
    return f"<section><h2>{title}</h2>{paragraph}{body}</section>"


def _picture(png: bytes, title: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    alt = f"{title}; the table above holds the same figures"
    return f'<div class="picture"><img src="data:image/png;base64,{data}" alt="{html.escape(alt)}"></div>'


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _step(trial: Trial) -> str:
    return f"{1000 * trial.step_s:.0f} ms" if trial.step_s < 10 else f"{trial.step_s:.1f} s"
