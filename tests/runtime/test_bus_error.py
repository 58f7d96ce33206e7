"""A mapped file that is cut off just while it is read ends the process in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from deconfound.runtime import bus_error

READ = """
import os, sys, threading
import numpy as np
from deconfound.runtime import bus_error
with bus_error.explained():
    images = np.load(sys.argv[1], mmap_mode="r", allow_pickle=False)
    os.truncate(sys.argv[1], 4096)
    read = lambda: images.sum()
    if len(sys.argv) > 2:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    else:
        read()
print("read")
"""


def test_the_process_ends_with_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "images 1.npy"
    for thread in ([], ["thread"]):
        np.save(file, np.ones(200_000, np.uint8))
        words = [sys.executable, "-c", READ, str(file), *thread]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        line = f"{file}: cut off while it was read; restore it or make it again"
        assert done.stderr == f"deconfound: {line}\n"


def test_only_files_shorter_than_their_maps_are_named(tmp_path: Path) -> None:
    for name, size in (("whole", 8192), ("page", 5000), ("cut", 4096)):
        (tmp_path / name).write_bytes(bytes(size))
    maps = "".join(
        f"7f0000000000-7f0000002000 r--s 00000000 08:01 42   {tmp_path / name}\n"
        for name in ("whole", "page", "cut", "gone")
    )
    maps += "7f0000000000-7f0000002000 rw-p 00000000 00:00 0    [heap]\n"
    maps += "7f0000000000-7f0000002000 rw-p 00000000 00:00 0 \n"
    assert bus_error.cut_off(maps) == [str(tmp_path / "cut")]
