"""``python -m sb3_pg_ext``: the command ``sb3-pg``, where the folder of scripts is not on the path."""

import sys

from sb3_pg_ext.experiments.cli import main

sys.exit(main())
