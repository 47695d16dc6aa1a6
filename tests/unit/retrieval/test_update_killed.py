"""An update killed at any moment and run again gives one new version, with the bytes of an undisturbed one."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placeray.retrieval.manifest import current_version, versions

Make = Callable[..., Any]
SCRIPT = """
import sys
from placeray.retrieval.update import UpdateConfig, run_update
print("ready", flush=True)
run_update(sys.argv[1], UpdateConfig(remove=("photo-000001", "photo-000030")), sys.argv[2])
"""


def contents(root: Path) -> dict[str, bytes]:
    files = (
        path for folder in ("shards", "tombstones") for path in (root / folder).rglob("*") if path.is_file()
    )
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_updates_end_in_one_version(
    make_descriptors: Make, make_map: Make, draw_random: Make, tmp_path: Path
) -> None:
    codes, floats = draw_random(np.random.default_rng(0), 900, 64, 8)
    clean = Path(make_map(make_descriptors(codes[:50], floats[:50]), rows_per_shard=20))
    names = {"image_id": [f"photo-{row:06d}" for row in range(50, 900)]}
    folder = make_descriptors(codes[50:], floats[50:], more=names)
    killed = tmp_path / "killed"
    shutil.copytree(clean, killed)
    subprocess.run([sys.executable, "-c", SCRIPT, str(clean), folder], check=True, capture_output=True)
    took_part = 0
    for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15):
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(killed), folder], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay_s)
            took_part += process.poll() is None
            process.kill()
    assert took_part > 0  # some were killed in the middle
    subprocess.run([sys.executable, "-c", SCRIPT, str(killed), folder], check=True, capture_output=True)
    assert (versions(str(killed)), current_version(str(killed))) == (["v0001", "v0002"], "v0002")
    assert contents(killed) == contents(clean)
