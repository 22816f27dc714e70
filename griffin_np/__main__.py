"""``python -m griffin_np`` is ``griffin-np``."""

from griffin_np.cli import main

raise SystemExit(main())
