"""Say what a checkpoint holds; with `output`, write it in another form.

python jobs/convert.py --set checkpoint=SelaVPRplusplus.pth
python jobs/convert.py --set checkpoint=SelaVPRplusplus.pth --set output=checkpoints/published
python jobs/convert.py --set checkpoint=runs/toy/checkpoints/hash --set output=mine.pth --set form=published
"""

from placeray import storage
from placeray.config import parse_job, run_main
from placeray.jobspecs.convert import ConvertJob
from placeray.model.card import WEIGHTS_FILE, bare_card
from placeray.model.checkpoint import (
    LoadedModel,
    load_checkpoint,
    published_weights,
    save_checkpoint,
    write_weights,
)
from placeray.model.inspect import inspect
from placeray.tracking.registry import locate_checkpoint


def main() -> None:
    job = parse_job(ConvertJob, __doc__)
    if job.output is not None:
        is_folder = job.form == "folder"
        storage.check_can_write(storage.join(job.output, WEIGHTS_FILE) if is_folder else job.output)
    loaded = load_checkpoint(locate_checkpoint(job.checkpoint, job.tracking).uri)
    print("\n".join(inspect(loaded)))
    if job.output is None:
        return
    model_id = loaded.model_id
    if job.form == "folder":
        model_id = save_checkpoint(job.output, loaded.model, card_for(loaded, job))
    else:
        write_weights(job.output, published_weights(loaded.model), data_parallel=job.form == "hub")
    print(f"convert: read {job.checkpoint}, wrote {job.output} ({job.form}; model {model_id[:12]})")


def card_for(loaded: LoadedModel, job: ConvertJob) -> dict[str, object]:
    """The checkpoint's own card, or that of a model whose training is not known."""
    preprocess = job.preprocess or loaded.preprocess
    return {**(loaded.card or bare_card(preprocess.id)), "preprocessing": preprocess.id}


if __name__ == "__main__":
    run_main(main)
