"""Promotion: the alias `champion` moves to a version that was judged no worse, as the last thing that happens.

Before it, evidence is written: the judged version's tags and the run of the job. A promotion that is interrupted at
any moment leaves the old champion in place; the same command again goes on.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from placeray.errors import PlacerayError
from placeray.evaluation.verdict import Verdict
from placeray.jobspecs.tracking import StoreConfig
from placeray.tracking.registry import TAG, Version, alias_holder, find_version, set_alias, unpacked
from placeray.tracking.store import explained, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient


class PromotionError(PlacerayError):
    """A challenger is not promoted."""


class Side(NamedTuple):
    """One version and the folder of its checkpoint."""

    version: Version
    checkpoint: str


@dataclass(frozen=True)
class Contest:
    """Who wants to replace whom. `champion` is None when nobody holds the alias yet."""

    client: "MlflowClient"
    alias: str
    challenger: Side
    champion: Side | None

    @property
    def decided(self) -> bool:
        """Whether the challenger is the champion already."""
        return self.champion is not None and self.champion.version == self.challenger.version

    @property
    def key(self) -> str:
        """Names the contest: the run of an interrupted promotion is found by it."""
        return f"promote-{self.challenger.version}-{self.champion.version if self.champion else 'nobody'}"

    def record(self, verdict: Verdict, run_id: str | None) -> None:
        """Write the evidence to the challenger's version."""
        version = self.challenger.version
        facts = {
            "judged_against": self.champion.version.version if self.champion else "nobody",
            "judged_by": verdict.metric,
            "judged_recall": f"{verdict.recall:.6f}",
            "judged_queries": str(verdict.num_queries),
            "judged_run": run_id or "",
            "verdict": "passed" if verdict.passed else "refused",
            "verdict_sentence": verdict.sentence,
        }
        with explained(f"record the verdict on {version}"):
            for name, value in facts.items():
                self.client.set_model_version_tag(version.name, version.version, f"{TAG}{name}", value)

    def promote(self) -> None:
        """Move the alias: one statement of the store, after which everybody sees the new champion.

        Raises:
            PromotionError: another version became champion in the meantime.
        """
        version = self.challenger.version
        holder = alias_holder(self.client, version.name, self.alias)
        judged = self.champion.version if self.champion else None
        if holder != judged:
            raise PromotionError(
                f"{version} was judged against {judged or 'nobody'}, but models:/{version.name}@{self.alias} is now "
                f"{holder or 'gone'}: run the same job again"
            )
        set_alias(self.client, version, self.alias)


def open_contest(name: str, challenger: str, champion: str, store: StoreConfig) -> Contest:
    """Look up both versions of a registered model, and where their checkpoints are.

    Args:
        challenger: an alias, or a version number.
        champion:   an alias.

    Raises:
        TrackingError: there is no such model or challenger.
    """
    client = open_store(store.uri)
    mark = "/" if challenger.isdigit() else "@"
    wanted = find_version(client, f"models:/{name}{mark}{challenger}")
    holder = alias_holder(client, name, champion)
    return Contest(
        client,
        champion,
        Side(wanted, unpacked(client, wanted, store)),
        Side(holder, unpacked(client, holder, store)) if holder else None,
    )
