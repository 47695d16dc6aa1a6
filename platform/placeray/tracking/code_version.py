"""Which code made a run."""

import subprocess
from pathlib import Path

import placeray


def code_version() -> str:
    """`0.1.0, commit 1a2b3c4d5e6f` in a git checkout, with `, changed` where files differ; the version elsewhere."""
    root = Path(placeray.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return placeray.__version__
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = ", changed" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.SubprocessError):
        return placeray.__version__  # a copy of a checkout without git's data, or no git
    return f"{placeray.__version__}, commit {commit}{changed}"


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=20
    )
    return answer.stdout.strip()
