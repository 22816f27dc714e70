"""Checks of the notebooks' exercises: ``check.ex_3_1(your_function)`` says whether it is right.

Each draws cases, and explains the smallest on which an answer fails.
"""

import importlib
import pkgutil
import re

from griffin_notebooks import solutions
from griffin_notebooks.exercise import Exercise

__all__ = ["every_exercise"]


def every_exercise() -> dict[str, Exercise]:
    """All exercises by number, in their order."""
    found = {}
    for module in pkgutil.iter_modules(solutions.__path__):
        found |= {e.number: e for e in _exercises_of(module.name)}
    return dict(sorted(found.items(), key=lambda item: [int(n) for n in item[0].split(".")]))


def _exercises_of(module: str) -> list[Exercise]:
    values = vars(importlib.import_module(f"{solutions.__name__}.{module}")).values()
    return [value for value in values if isinstance(value, Exercise)]


def __getattr__(name: str) -> Exercise:
    told = re.fullmatch(r"ex_(\d+)_(\d+)", name)
    if told:
        prefix = f"n{int(told[1]):02d}_"
        for module in pkgutil.iter_modules(solutions.__path__):
            if module.name.startswith(prefix):
                for found in _exercises_of(module.name):
                    if found.__name__ == name:
                        return found
    raise AttributeError(f"there is no exercise {name!r}; there are {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return [exercise.__name__ for exercise in every_exercise().values()]
