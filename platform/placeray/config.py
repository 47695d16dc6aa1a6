"""Configuration: one flat YAML per run becomes one frozen, validated object.

Every job understands `--config FILE`, `--set a.b=value` (repeatable) and `--print`. A key that the class does
not know fails and is named with its file. There is no inheritance between files and no class path in them.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from placeray.errors import ConfigError, PlacerayError


class Config(BaseModel):
    """Base of all configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


C = TypeVar("C", bound=Config)


def load_config(cls: type[C], file: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file, apply `a.b=value` overrides, validate.

    Raises:
        ConfigError: the file cannot be read, an override is no `key=value`, or a key or value does not fit;
            the message names the file and every path in it that fails.
    """
    values = _read_yaml(Path(file)) if file is not None else {}
    for override in overrides:
        _apply(values, override)
    where = str(file) if file is not None else "the command line"
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, cls, where)) from None


def parse_job(cls: type[C], doc: str | None, argv: Sequence[str] | None = None) -> C:
    """The command line that all jobs share; ends the process with one sentence when the config is wrong."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the whole configuration of the run")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="replace one value, with dots between levels; the value is read as YAML; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--print", action="store_true", dest="show", help="print the resolved config and stop"
    )
    arguments = parser.parse_args(argv)
    try:
        job = load_config(cls, arguments.config, arguments.overrides)
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if arguments.show:
        yaml.safe_dump(job.model_dump(mode="json"), sys.stdout, sort_keys=False)
        parser.exit(0)
    return job


def run_main(main: Callable[[], None]) -> None:
    """Run a job script; an expected error becomes one sentence on stderr and exit status 1.

    What the terminal cannot show, such as a file name that is no UTF-8, is printed as `\\udce9`, as stderr does anyway.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except PlacerayError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}; a config is a mapping of keys to values")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one value in place; numbers in the path index lists (`sources.0.root=...`)."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text  # a plain string that is no YAML, such as one that starts with '@'
    *parents, last = key.split(".")
    node: Any = values
    for parent in parents:
        node = _child(node, parent, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, name: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, name, override)]
    if node.get(name) is None:
        node[name] = {}
    if not isinstance(node[name], dict | list):
        raise ConfigError(f"--set {override!r}: {name} is a plain value, it has no keys inside")
    return node[name]


def _position(items: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise ConfigError(f"--set {override!r}: {name!r} is not a position in a list of {len(items)}")
    return int(name)


def _explain(error: ValidationError, cls: type[Config], where: str) -> str:
    problems = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"]) or cls.__name__
        if item["type"] == "extra_forbidden":
            problems.append(f"{path}: no such key in {cls.__name__}")
        else:
            problems.append(f"{path}: {item['msg'].removeprefix('Value error, ')}")
    return f"{where}: " + "; ".join(problems)
