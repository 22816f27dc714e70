"""``python -m griffin_np`` is ``griffin-np``."""

from griffin_np.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
