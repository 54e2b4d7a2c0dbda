"""What axe-core finds fault with in a page."""

from axe_playwright_python.sync_playwright import Axe


def serious_faults(page):
    """Violations of serious or critical impact: the rule, and what breaks it."""
    violations = Axe().run(page).response["violations"]
    return [
        (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]
