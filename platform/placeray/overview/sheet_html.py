"""The sheet of samples as HTML: one strip of photos per place or query."""

import base64
import html
from collections.abc import Sequence

from placeray.overview.sheet import SheetPhoto, SheetRow


def draw_sheet(rows: Sequence[SheetRow]) -> str:
    """All strips, one card each."""
    return f'<div class="sheet">{"".join(map(_card, rows))}</div>' if rows else ""


def _card(row: SheetRow) -> str:
    where = "" if row.position is None else f" · {row.position[0]:.5f}, {row.position[1]:.5f}"
    more = f" · {row.more} more" if row.more else ""
    remark = f" · {row.remark}" if row.remark else ""
    return (
        f"<article><h3>{html.escape(row.title)} <small>{html.escape(row.source + where + more + remark)}</small></h3>"
        f'<div class="strip">{"".join(map(_photo, row.photos))}</div></article>'
    )


def _photo(photo: SheetPhoto) -> str:
    facts = [_time(photo.captured)] if photo.captured else []
    if photo.frame is not None:
        facts.append(f"frame {photo.frame}")
    if photo.heading_deg is not None:
        arrow = f'<span class="north" style="transform:rotate({photo.heading_deg:.0f}deg)">↑</span>'
        facts.append(f"{arrow} {photo.heading_deg:.0f}°")
    note = f"<b>{html.escape(photo.note)}</b> " if photo.note else ""
    shown = " · ".join(f'<span class="fact">{fact}</span>' for fact in facts)
    alt = html.escape(f"Photo {photo.image_id[:12]}")
    if photo.image is None:
        picture = f'<span class="missing" role="img" aria-label="{alt}">photo not available</span>'
    else:
        picture = (
            f'<img src="data:image/jpeg;base64,{base64.b64encode(photo.image).decode("ascii")}" alt="{alt}">'
        )
    return (
        f'<figure class="photo" title="{html.escape(photo.image_id)}">{picture}'
        f"<figcaption>{note}{shown}</figcaption></figure>"
    )


def _time(captured: str) -> str:
    """2016-06-12T09:30:15+02:00 -> 2016-06-12 09:30."""
    return html.escape(captured[:16].replace("T", " "))
