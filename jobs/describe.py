"""Describe photos with a checkpoint: float descriptors and packed codes as numpy arrays.

    python jobs/describe.py --set checkpoint=FILE --set inputs=PATH --set output=OUT.npz

The checkpoint is a folder that train wrote, models:/name@alias, or a published file, whose variant is recognised.
The inputs are a photo, a folder of photos, or a .npy of normalised float32 (N, 3, H, W).
"""

import sys
import time

from placeray import storage
from placeray.config import parse_job, run_main
from placeray.jobspecs.describe import DescribeJob
from placeray.model.checkpoint import load_checkpoint
from placeray.model.describe import describe_inputs, save_described
from placeray.model.inputs import open_inputs
from placeray.tracking.registry import locate_checkpoint


def main() -> None:
    job = parse_job(DescribeJob, __doc__)
    started = time.monotonic()
    storage.check_can_write(job.output)
    loaded = load_checkpoint(locate_checkpoint(job.checkpoint, job.tracking).uri)
    inputs = open_inputs(job.inputs, job.preprocess or loaded.preprocess)

    def show(rows: int) -> None:
        print(f"describe: {rows} of {len(inputs)}", file=sys.stderr)

    described = describe_inputs(loaded.model, inputs, job.embed, show)
    save_described(job.output, described, inputs.accepted)
    for uri, reason in inputs.rejected:
        print(f"describe: rejected {uri}: {reason}")
    print(
        f"describe: read {len(inputs)}, kept {len(inputs.accepted)}, rejected {len(inputs.rejected)}, "
        f"wrote {job.output} ({described.summary()}; model {loaded.model_id[:12]}) "
        f"in {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    run_main(main)
