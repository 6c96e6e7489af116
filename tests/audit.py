"""Known vulnerabilities of what is installed: ``python -m tests.audit``, or ``make audit``.

pip-audit says "none found" of packages that it could not ask about. Here that is said, and is a failure:
exit code 0 nothing is known, 1 something is, 2 the vulnerability service could not be asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

CALL = ["pip_audit", "--local", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
OTHERS = {"torch"}
"""Builds with a local version (torch's for CPUs) are on no index; their advisories are read by hand."""


def verdict(report: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Exit code and lines to print.

    Args:
        report: pip-audit's; None if it made none.
    """
    if report is None:
        return 2, ["the vulnerability service could not be reached: NOTHING was audited"]
    dependencies = report["dependencies"]
    found = [one for one in dependencies if one.get("vulns")]
    skipped = [one["name"] for one in dependencies if "skip_reason" in one and one["name"] not in OTHERS]
    asked = len(dependencies) - len(skipped)
    lines = [
        f"{one['name']} {one['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no version'}"
        for one in found
        for v in one["vulns"]
    ]
    if skipped:
        lines.append(
            f"{len(skipped)} of {len(dependencies)} packages could NOT be audited: {', '.join(skipped[:5])} ..."
        )
        lines.append("the vulnerability service does not know them, or could not be reached")
    lines.append(f"{asked} packages audited, {len(found)} with known vulnerabilities")
    return (1 if found else 2 if skipped else 0), lines


def main() -> int:
    done = subprocess.run([sys.executable, "-m", *CALL], capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        report = None
        print(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip-audit said nothing")
    code, lines = verdict(report)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
