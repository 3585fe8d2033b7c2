"""A verdict for a CI job: as JUnit's XML and as Markdown."""

from __future__ import annotations

from xml.etree import ElementTree

from hf_exposure.exposure.limits import Outcome, Verdict
from hf_exposure.utils.escapes import printable

_MEANING = {
    Outcome.PASSED: "All limits are kept.",
    Outcome.FAILED: "A limit is exceeded by more than chance explains.",
    Outcome.INCONCLUSIVE: "Whether the limits are kept cannot be told from this measurement.",
}


def to_junit(verdict: Verdict) -> str:
    """JUnit's XML, a test case for each check. An inconclusive one is an error, as of a test that
    could not be run; if the measurement is in doubt, a failed limit is one too."""
    void = any(check.voids for check in verdict.checks)
    failed = 0 if void else sum(check.outcome is Outcome.FAILED for check in verdict.checks)
    passed = sum(check.outcome is Outcome.PASSED for check in verdict.checks)
    counts = {
        "tests": f"{len(verdict.checks)}",
        "failures": f"{failed}",
        "errors": f"{len(verdict.checks) - passed - failed}",
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "hf-exposure gate", **counts})
    for check in verdict.checks:
        names = {"classname": "hf_exposure.gate", "name": check.name}
        case = ElementTree.SubElement(suite, "testcase", names)
        reason = printable(check.reason)
        if check.outcome is Outcome.PASSED:
            ElementTree.SubElement(case, "system-out").text = reason
            continue
        kind = "failure" if check.outcome is Outcome.FAILED and not void else "error"
        about = {"message": reason, "type": check.outcome.value}
        ElementTree.SubElement(case, kind, about).text = reason
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def to_markdown(verdict: Verdict) -> str:
    """A heading, what it means, and a table of the checks."""
    lines = [
        f"## Memorization gate: {verdict.outcome.value}",
        "",
        f"{_MEANING[verdict.outcome]} Limits for {verdict.limits}.",
        "",
        "| check | outcome | |",
        "|---|---|---|",
    ]
    for check in verdict.checks:
        reason = printable(check.reason).replace("|", "\\|")
        lines.append(f"| {check.name} | {check.outcome.value} | {reason} |")
    return "\n".join(lines) + "\n"
