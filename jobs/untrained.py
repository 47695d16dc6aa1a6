"""Write a model as training would start it: the baseline that shows what training brings.

python jobs/untrained.py --config jobs/configs/untrained/toy.yaml
"""

from placeray import storage
from placeray.config import parse_job, run_main
from placeray.errors import ConfigError
from placeray.jobspecs.untrained import UntrainedJob
from placeray.model.card import CARD_FILE, bare_card
from placeray.model.checkpoint import save_checkpoint
from placeray.model.selavpr import build_model


def main() -> None:
    job = parse_job(UntrainedJob, __doc__)
    if already_finished(job):
        print(f"untrained: already finished: {storage.resolve(job.output)}; nothing to do")
        return
    model_id = save_checkpoint(job.output, build_model(job.model), bare_card(job.preprocess.id))
    print(f"untrained: wrote model {model_id[:12]} to {storage.resolve(job.output)}")


def already_finished(job: UntrainedJob) -> bool:
    """Whether the output holds this very model; another one there is an error."""
    card_uri = storage.join(job.output, CARD_FILE)
    if not storage.exists(card_uri):
        return False
    card = storage.read_json(card_uri)
    wanted = (None, job.preprocess.id, job.model.model_dump(mode="json"))
    if (card["recipe"], card["preprocessing"], card["model"]) != wanted:
        raise ConfigError(
            f"{storage.resolve(job.output)} holds another model; choose another output or move that folder away"
        )
    return True


if __name__ == "__main__":
    run_main(main)
