"""Where tinylm keeps what it fetched or compiled: the user's cache folder."""

import os
import sys
from pathlib import Path


def home() -> Path:
    """`$TINYLM_HOME`, else the system's usual cache folder of this user. It may not exist yet."""
    override = os.environ.get("TINYLM_HOME")
    if override:
        return Path(override).expanduser()
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = str(Path.home() / "Library" / "Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "tinylm"
