"""The verdict on a model that wants to replace another: one figure of two reports, and a margin stated beforehand."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from placeray.config import Config
from placeray.errors import ConfigError
from placeray.evaluation import words
from placeray.evaluation.report import METHOD_TITLES, EvalReport, Method

# 0.8 - 0.7 is a little less than 0.1; no set has so many queries that one is a share of this size.
_ROUNDING = 1e-9
Judged = Literal["best", "binary", "two_stage", "exhaustive"]


class JudgeConfig(Config):
    """Which figure decides, and how much better it has to be."""

    method: Judged = Field(
        default="best",
        description="best: of each model what a user would run, two-stage where it has both branches",
    )
    k: int = Field(default=1, ge=1, description="recall@k; one of the evaluation's ks")
    margin: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="how much the challenger's recall (0..1) must exceed the champion's; 0 lets an equal one pass, "
        "a negative margin one that is so much worse",
    )
    at_least: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="recall below this is refused, also where there is no champion yet",
    )


@dataclass(frozen=True)
class Verdict:
    """What was decided and on which figures."""

    passed: bool
    sentence: str  # `two-stage R@1 is 77.3 %, the champion's 71.3 %: ...`
    metric: str  # such as two_stage/recall_at_1
    recall: float
    champion_recall: float | None  # None without a champion
    num_queries: int

    @property
    def figures(self) -> dict[str, float]:
        """For a tracker."""
        champion = {} if self.champion_recall is None else {"champion/recall": self.champion_recall}
        return {"challenger/recall": self.recall, **champion, "passed": float(self.passed)}


def judge(challenger: EvalReport, champion: EvalReport | None, config: JudgeConfig) -> Verdict:
    """Decide whether the challenger may replace the champion.

    Args:
        challenger, champion: reports on the same queries and map photos; no champion: only `at_least` counts.

    Raises:
        ConfigError: a report has not the figure that decides.
    """
    method, recall = _figure(challenger, config)
    queries = challenger.num_queries
    said = f"{METHOD_TITLES[method].lower()} R@{config.k} is {words.percent(recall)} of {queries} queries"
    metric = f"{method}/recall_at_{config.k}"
    if recall < config.at_least:
        sentence = f"{said}, at least {words.percent(config.at_least)} is asked for"
        return Verdict(False, sentence, metric, recall, None, queries)
    if champion is None:
        return Verdict(True, f"{said}, and there is no champion yet", metric, recall, None, queries)
    other, reached = _figure(champion, config)
    name = "" if other == method else f" ({METHOD_TITLES[other].lower()})"
    said += f", the champion's{name} {words.percent(reached)}"
    enough = recall - reached >= config.margin - _ROUNDING
    sentence = (
        f"{said}; a gain of {words.points(recall - reached)}, asked for is {words.points(config.margin)}"
    )
    return Verdict(enough, sentence, metric, recall, reached, queries)


def _figure(report: EvalReport, config: JudgeConfig) -> tuple[Method, float]:
    method = report.best_method if config.method == "best" else config.method
    if method not in report.methods:
        raise ConfigError(
            f"{report.label} has no {method} search, its model lacks a branch; it has {', '.join(report.methods)}: "
            "choose another judge.method"
        )
    recall = report.methods[method].recall
    if config.k not in recall.ks:
        raise ConfigError(f"judge.k={config.k} is not among the measured ks {list(recall.ks)}")
    return method, recall.at(config.k)
