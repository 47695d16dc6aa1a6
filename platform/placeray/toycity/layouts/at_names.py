"""File names whose fields stand between '@', as VPR-datasets-downloader's util.py writes them."""


def at_name(
    *,
    east_m: float,
    north_m: float,
    zone: str,
    lat: float,
    lon: float,
    panorama: str = "",
    tile: str = "",
    heading: str = "",
    captured: str = "",
    note: str = "",
) -> str:
    """`@E@N@zone@letter@lat@lon@panorama@tile@heading@pitch@roll@height@captured@note@.jpg`."""
    number, letter = zone[:-1], zone[-1]
    position = f"{east_m:010.2f}@{north_m:010.2f}@{int(number):02d}@{letter}@{lat:09.5f}@{lon:010.5f}"
    return f"@{position}@{panorama}@{tile}@{heading}@@@@{captured}@{note}@.jpg"
