"""`python -m tests.chaos.check HISTORY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.chaos.check import check
from tests.chaos.history import History

report = check(History(Path(sys.argv[1])).catch_up())
print(json.dumps(vars(report), indent=2))
sys.exit(0 if report.faultless else 1)
