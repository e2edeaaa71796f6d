"""How often what may strike at any moment is tried: a few times among the long proofs, more often where it is asked."""

import os

MOMENTS = int(os.environ.get("MOMENTS", "3"))
