"""The folder for temporary files: on a CPU MLX compiles its loops there, and fails where it can't write."""

import os
import tempfile
from pathlib import Path

VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # of these C++ takes the first that is set, else /tmp
NEEDED = 1 << 20  # bytes: the source of some loops and what the compiler makes of it


def temporary_folder_fault() -> str:
    """Why nothing can be compiled in the folder for temporary files, with the remedy; "" where all is well."""
    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    folder = Path(os.environ[variable]) if variable else Path("/tmp")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(NEEDED))
            file.flush()
    except OSError as error:
        named = f"{variable}={folder}" if variable else str(folder)
        return f"{named}: no temporary files can be written there ({error.strerror}); set TMPDIR to a folder with room"
    return ""
