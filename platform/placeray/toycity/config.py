"""What a toy city consists of: how large each layout is, how hard the photos are, which faults are planted."""

from typing import Self, TypeVar

from pydantic import Field, model_validator

from placeray.config import Config
from placeray.toycity.districts import GSV_TOWNS, MSLS_TOWNS

C = TypeVar("C", bound=Config)


def _known(config: C, names: tuple[str, ...], towns: dict[str, tuple[float, float]]) -> C:
    unknown = [name for name in names if name not in towns]
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"cities={list(names)}: each city once, out of {', '.join(towns)}")
    return config


class DifficultyConfig(Config):
    """How much two photos of one place differ, per kind of change: 0 = hardly at all, 1 = very much."""

    light: float = Field(default=0.3, ge=0, le=1, description="weather, time of day, nights with lit windows")
    season: float = Field(default=0.3, ge=0, le=1, description="months of the year, leaves, snow")
    camera: float = Field(default=0.3, ge=0, le=1, description="exposure, white balance, gamma, noise, blur")
    viewpoint: float = Field(
        default=0.3, ge=0, le=1, description="steps along and across, heading, focal length"
    )
    occluders: float = Field(
        default=0.3, ge=0, le=1, description="cars, vans and people in front of the camera"
    )


class GsvConfig(Config):
    """GSV-Cities: places named by a CSV per city, 100 m and more apart."""

    cities: tuple[str, ...] = Field(
        default=("London", "Melbourne"), description="city codes, see districts.py"
    )
    places_per_city: int = Field(default=90, ge=0, description="0 leaves the layout out")

    @model_validator(mode="after")
    def _cities_are_known(self) -> Self:
        return _known(self, self.cities, GSV_TOWNS)


class SfXlConfig(Config):
    """SF-XL: '@' names below processed/train, places are cells of 10 m and 60 degrees."""

    places: int = Field(default=120, ge=0, description="places in the first group, the one the protocol uses")
    other_places: int = Field(
        default=8, ge=0, description="places in other groups: read, but part of no place"
    )
    paths_list: bool = Field(default=True, description="write train_images_paths.txt next to the folder")


class PittsConfig(Config):
    """Pitts30k: panoramas cut into tiles, places are cells of 15 m and 60 degrees."""

    places: int = Field(default=72, ge=0, description="train places; 0 leaves the layout out")
    held_out_places: int = Field(default=8, ge=0, description="places of val, and as many of test")
    groups: int = Field(default=2, ge=1, le=18, description="domains the train places are spread over")


class MslsConfig(Config):
    """MSLS: folders per city with four CSVs, train cities become cells of 15 m and 60 degrees."""

    train_cities: tuple[str, ...] = Field(default=("helsinki",), description="see districts.py")
    val_cities: tuple[str, ...] = Field(default=("cph",), description="see districts.py")
    places_per_city: int = Field(default=105, ge=0, description="of a train city; 0 leaves the layout out")
    places_per_val_city: int = Field(default=40, ge=1, description="of a val city")
    groups: int = Field(
        default=3, ge=1, le=18, description="domains the places of a train city are spread over"
    )

    @model_validator(mode="after")
    def _cities_are_known(self) -> Self:
        return _known(self, (*self.train_cities, *self.val_cities), MSLS_TOWNS)


class HeldOutConfig(Config):
    """The evaluation set: streets that no training layout shows."""

    places: int = Field(default=150, ge=0, description="places with queries; 0 leaves the set out")
    database_photos: int = Field(default=2, ge=1, description="of each place, by other lights than its query")
    queries: int = Field(default=1, ge=1, description="of each place")
    distractor_places: int = Field(
        default=100, ge=0, description="places in the database that no query shows"
    )


class ToyCityConfig(Config):
    """A whole toy city. The same config gives the same bytes, on any machine and with any number of processes."""

    seed: int = Field(default=7, ge=0, description="another seed is another city")
    width_px: int = Field(default=148, ge=32, le=4096, description="of photos 4:3; SF-XL photos are square")
    height_px: int = Field(default=112, ge=32, le=4096, description="of all photos")
    photos_per_place: tuple[int, int] = Field(
        default=(4, 7), description="fewest and most photos of a training place"
    )
    jpeg_quality: tuple[int, int] = Field(
        default=(60, 92), description="worst and best JPEG quality of a camera"
    )
    difficulty: DifficultyConfig = DifficultyConfig()
    faults: bool = Field(default=False, description="plant the faults of real data sets, see toycity.json")
    gsv_cities: GsvConfig = GsvConfig()
    sf_xl: SfXlConfig = SfXlConfig()
    pitts30k_mat: PittsConfig = PittsConfig(places=48, groups=1)
    pitts30k: PittsConfig = PittsConfig()
    msls: MslsConfig = MslsConfig()
    evaluation: HeldOutConfig = HeldOutConfig()

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("photos_per_place", "jpeg_quality"):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= 100:
                raise ValueError(
                    f"{name}=({low}, {high}) has to be two numbers between 1 and 100, the lower first"
                )
        return self
