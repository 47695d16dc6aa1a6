"""Make a checkpoint a new version of a registered model, with a card; the challenger until it is promoted.

    python jobs/register.py --config jobs/configs/register/toy.yaml
    python jobs/register.py --set checkpoint=SelaVPRplusplus.pth --set name=selavpr

The checkpoint is a folder that train wrote, or a published file. A version that is there already is not made again.
"""

import time

from placeray.config import parse_job, run_main
from placeray.errors import ConfigError
from placeray.jobspecs.register import RegisterJob
from placeray.tracking.registering import find_same, register_checkpoint
from placeray.tracking.registry import set_alias
from placeray.tracking.runs import tracked_run
from placeray.tracking.store import open_store


def main() -> None:
    job, started = parse_job(RegisterJob, __doc__), time.monotonic()
    if not job.tracking.enabled:
        raise ConfigError("registering writes to the tracking store: leave tracking.enabled at true")
    client = open_store(job.tracking.uri)
    version, state = find_same(client, job.name, job.checkpoint), "already registered:"
    if version is None:
        config, state = job.model_dump(mode="json"), "wrote"
        with tracked_run(f"register-{job.name}", config, job.tracking) as run:
            version = register_checkpoint(
                client, job.checkpoint, job.name, str(run.id), statement=job.statement, alias=None
            )
    if job.alias is not None:
        set_alias(client, version, job.alias)
    named = f", models:/{job.name}@{job.alias}" if job.alias else ""
    print(
        f"register: read {job.checkpoint}, {state} {version} (model {version.model_id[:12]}){named} "
        f"in {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    run_main(main)
