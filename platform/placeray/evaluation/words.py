"""How figures are written for a reader: shares, distances, bytes, durations, the positive rule."""

from collections.abc import Mapping
from typing import Any


def percent(share: float) -> str:
    """0.8324 -> '83.2 %'; whole only when it is exactly none or all."""
    return f"{share * 100:.0f} %" if share in (0.0, 1.0) else f"{share * 100:.1f} %"


def points(difference: float) -> str:
    """0.783 -> '+78.3 pt', percentage points with a sign."""
    return f"{difference * 100:+.1f} pt".replace("-", "\u2212")


def metres(distance_m: float) -> str:
    """4.2 -> '4 m', 12345 -> '12.3 km'."""
    return f"{distance_m / 1000:.1f} km" if distance_m >= 1000 else f"{distance_m:.0f} m"


def milliseconds(spent_ms: float) -> str:
    """Three significant digits."""
    return f"{spent_ms:.0f} ms" if spent_ms >= 100 else f"{spent_ms:.3g} ms"


def size(num_bytes: float) -> str:
    """Bytes in decimal units: 2116 -> '2.1 kB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def rule(positive_rule: Mapping[str, Any]) -> str:
    """What counts as right, to follow 'An answer is right when the photo found ...'."""
    if positive_rule["kind"] == "radius":
        return f"was taken within {positive_rule['radius_m']:g} m of the query"
    if positive_rule["kind"] == "frames":
        return f"lies within {positive_rule['window']} frames of the query on the same walk"
    return "is the counterpart of the query"
