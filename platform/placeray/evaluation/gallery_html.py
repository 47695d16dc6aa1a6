"""The gallery as HTML: the photo that was asked about, what each system found, right or wrong, and a map."""

import base64
import html

from placeray.evaluation import words
from placeray.evaluation.map_svg import Projection, example_map
from placeray.evaluation.page_data import Answer, AnswerRow, Example, Ground


def gallery(examples: tuple[Example, ...], ground: Ground | None, projection: Projection | None) -> str:
    """All examples, one card each."""
    cards = "".join(
        _card(number, example, ground, projection) for number, example in enumerate(examples, start=1)
    )
    return f'<div class="gallery">{cards}</div>'


def _card(number: int, example: Example, ground: Ground | None, projection: Projection | None) -> str:
    first = example.rows[0].answers[0] if example.rows and example.rows[0].answers else None
    right = first is not None and first.right
    verdict = "found" if right else "not found" if example.num_positives else "not in the map"
    drawing = example_map(example, ground, projection) if ground and projection else ""
    picture = _picture(example.image, f"Query photo {number}")
    truth = (
        f"{example.num_positives} photo{'s' if example.num_positives != 1 else ''} of the map would be right"
        if example.num_positives
        else "no photo of the map is near"
    )
    return (
        f'<article class="card"><div class="asked"><h3>Query {number} '
        f'<span class="badge {"right" if right else "wrong"}">{verdict}</span></h3>'
        f'<figure class="photo query">{picture}<figcaption title="{html.escape(example.image_id)}">{truth}'
        f'</figcaption></figure></div><div class="rows">{"".join(map(_row, example.rows))}</div>'
        f'<div class="where">{drawing}</div></article>'
    )


def _row(row: AnswerRow) -> str:
    sure = (
        ""
        if row.confidence is None
        else f' <span class="sure">first answer {row.confidence * 100:.0f} % sure</span>'
    )
    photos = "".join(_answer(rank, row.label, answer) for rank, answer in enumerate(row.answers, start=1))
    return (
        f'<section class="row"><h4>{html.escape(row.label.capitalize() or "Found")}{sure}</h4>'
        f'<div class="answers">{photos or "<p>nothing was found</p>"}</div></section>'
    )


def _answer(rank: int, label: str, answer: Answer) -> str:
    kind = "right" if answer.right else "wrong"
    far = _gap(answer)
    alt = f"Answer {rank} of {label or 'the map'}: {kind}{', ' + far if far else ''}"
    details = f"similarity {answer.similarity:.3f}"
    if answer.hamming is not None:
        details += f", {answer.hamming} bits differ"
    return (
        f'<figure class="photo {kind}" title="{html.escape(f"{answer.image_id}: {details}")}">'
        f"{_picture(answer.image, alt)}<figcaption><b>{'✓' if answer.right else '✗'}</b> {far} "
        f'<span class="similarity">{answer.similarity:.3f}</span></figcaption></figure>'
    )


def _gap(answer: Answer) -> str:
    if answer.distance_m is not None:
        return words.metres(answer.distance_m)
    if answer.frame_gap is not None:
        return f"{answer.frame_gap} frame{'s' if answer.frame_gap != 1 else ''}"
    return ""


def _picture(image: bytes | None, alt: str) -> str:
    if image is None:
        return f'<span class="missing" role="img" aria-label="{html.escape(alt)}">photo not available</span>'
    data = base64.b64encode(image).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(alt)}">'
