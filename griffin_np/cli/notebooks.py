"""Copy the notebooks that teach Griffin into a folder of yours.

griffin-np notebooks                 into griffin-notebooks
griffin-np notebooks learn/griffin   elsewhere

What is in the folder stays: a notebook that you have run or changed is not written over. Exit
code 0: the folder has all notebooks; 2: wrong usage.
"""

import argparse
import os
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from griffin_np.cli.common import say
from griffin_np.errors import GriffinError

FOLDER = "griffin-notebooks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default=FOLDER, metavar="FOLDER",
                        help=f"made if need be ({FOLDER})")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    folder = Path(args.folder)
    copied, kept = copy_notebooks(folder)
    print(f"{copied} notebooks copied to {folder}")
    for name in kept:
        say(f"kept {folder / name}, which is not as it was copied; for ours name another folder")
    if find_spec("jupyterlab") is None or find_spec("matplotlib") is None:
        print('First:  pip install "griffin-np[notebooks]"')
    print(f"Open them:  jupyter lab {folder}\nRun them all:  pytest --nbmake {folder}")
    return 0


def copy_notebooks(folder: Path) -> tuple[int, list[str]]:
    """Copy the package's notebooks into a folder.

    Parameters
    ----------
    folder : Path
        Made if need be.

    Returns
    -------
    copied : int
        Notebooks that were not there before.
    kept : list of str
        Names of files that were there and are not the same as ours.

    Raises
    ------
    GriffinError
        If it is a file, or cannot be written.
    OSError
        If it cannot be made.
    """
    from griffin_np.checkpoints.files import replacing

    ours = sorted(
        (entry for entry in files("griffin_notebooks").iterdir() if entry.name.endswith(".ipynb")),
        key=lambda entry: entry.name,
    )
    if folder.exists() and not folder.is_dir():
        raise GriffinError(f"{folder} is a file; the notebooks need a folder: name another")
    folder.mkdir(parents=True, exist_ok=True)
    copied, kept = 0, []
    for entry in ours:
        path, wanted = folder / entry.name, entry.read_bytes()
        if not os.path.lexists(path):
            with replacing(path) as partial:
                partial.write_bytes(wanted)
            copied += 1
        elif not path.is_file() or path.read_bytes() != wanted:
            kept.append(entry.name)
    return copied, kept
