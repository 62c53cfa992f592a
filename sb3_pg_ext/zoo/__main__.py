"""``python -m sb3_pg_ext.zoo``."""

import sys

from sb3_pg_ext.zoo.command import main

sys.exit(main())
