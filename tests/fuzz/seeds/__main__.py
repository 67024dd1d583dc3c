"""``python -m tests.fuzz.seeds FORMAT FOLDER``: write the seeds of a format as fuzzing inputs."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from tests.fuzz.packing import pack
from tests.fuzz.seeds import seeds_of

for files in seeds_of(sys.argv[1]):
    data = pack(files)
    (Path(sys.argv[2]) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
