"""Show where a model looks: each photo beside heat maps of the frozen backbone, the float branch and the code.

    python jobs/heatmap.py --set checkpoint=FILE --set inputs=PHOTO_OR_FOLDER --set output=FOLDER

Red patches count most in a descriptor, blue ones least.
"""

import io
import time
from pathlib import PurePosixPath

from placeray import storage
from placeray.config import parse_job, run_main
from placeray.errors import DataError
from placeray.jobspecs.heatmap import HeatMapJob
from placeray.model.checkpoint import load_checkpoint
from placeray.model.heatmaps import draw_heat_maps, heat_maps
from placeray.model.inputs import list_photos, read_photo
from placeray.model.preprocess import decode, to_input
from placeray.tracking.registry import locate_checkpoint


def main() -> None:
    job = parse_job(HeatMapJob, __doc__)
    started, rejected = time.monotonic(), list[str]()
    storage.check_can_write(storage.join(job.output, "0000.png"))
    loaded = load_checkpoint(locate_checkpoint(job.checkpoint, job.tracking).uri)
    photos = list_photos(job.inputs)
    for number, uri in enumerate(photos):
        try:
            photo = decode(read_photo(uri))
        except DataError as error:
            print(f"heatmap: rejected {uri}: {error}")
            rejected.append(str(error))
            continue
        maps = heat_maps(loaded.model, to_input(photo, job.preprocess or loaded.preprocess)[None])
        picture = io.BytesIO()
        draw_heat_maps(photo, maps, 0).save(picture, "PNG")
        name = f"{number:04d}-{PurePosixPath(uri).stem}.png"
        storage.write_bytes(storage.join(job.output, name), picture.getvalue())
    kept = len(photos) - len(rejected)
    if not kept:
        raise DataError(f"no photo of {job.inputs} could be drawn; the first: {rejected[0]}")
    print(
        f"heatmap: read {len(photos)}, kept {kept}, rejected {len(rejected)}, wrote {job.output} "
        f"(model {loaded.model_id[:12]}) in {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    run_main(main)
