"""The YAML + --set configuration that every job shares."""

from pathlib import Path

import pytest
from pydantic import Field

from placeray.config import Config, load_config, parse_job, run_main
from placeray.errors import ConfigError


class Inner(Config):
    size: int = Field(default=3, ge=1, description="how many")


class Outer(Config):
    name: str = "a"
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("name: b\ninner: {size: 5}\nmany: [{size: 1}, {size: 2}]\n")
    return path


def test_file_then_overrides(file: Path) -> None:
    config = load_config(Outer, file, ["inner.size=7", "many.1.size=9", "name=c=d"])
    assert config == Outer(name="c=d", inner=Inner(size=7), many=(Inner(size=1), Inner(size=9)))


def test_override_that_is_no_yaml_is_a_plain_string() -> None:
    assert load_config(Outer, None, ["name=@here"]).name == "@here"


def test_override_of_a_missing_group_creates_it() -> None:
    assert load_config(Outer, None, ["inner.size=4"]).inner.size == 4


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("inner.sise=4", "inner.sise: no such key"),
        ("inner.size=0", "inner.size"),
        ("name.deep=1", "name is a plain value"),
        ("many.7.size=1", "not a position in a list of 2"),
        ("nothing", "not of the form key=value"),
    ],
)
def test_wrong_override_is_one_clear_sentence(file: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(Outer, file, [override])
    assert "\n" not in str(caught.value)


def test_misspelt_key_names_file_and_path(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("inner: {sze: 5}\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: inner\.sze: no such key"):
        load_config(Outer, path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\xff"])
def test_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(Outer, path)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot read the config nowhere"):
        load_config(Outer, "nowhere.yaml")


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "x"  # type: ignore[misc]


def test_command_line_prints_and_stops(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_job(Outer, "doc", ["--config", str(file), "--set", "name=z", "--print"])
    assert ended.value.code == 0
    assert "name: z" in capsys.readouterr().out


def test_command_line_ends_with_one_line_on_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_job(Outer, "doc", ["--set", "nme=z"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_command_line_gives_the_job(file: Path) -> None:
    assert parse_job(Outer, "doc", ["--config", str(file)]).inner.size == 5


def test_expected_error_ends_a_script_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ConfigError("the root is missing")

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(": the root is missing\n")
