"""scripts/install on a fresh Debian: what it makes, the quick start on it, again, upwards, and away."""

from __future__ import annotations

import json
import re

from tests.systemd.conftest import Boot
from tests.systemd.machine import ROOT

README = (ROOT / "README.rst").read_text("utf-8")
INSTALL = "/netwatch/scripts/install --wheels /wheels"


def quick_start() -> list[str]:
    """The commands of the README's first page, each as it stands there."""
    blocks = re.findall(r"^    \$ ((?:.*\n)(?:      .*\n)*)", README.partition("The promise\n")[0], re.MULTILINE)
    return [re.sub(r"\n      ", "", block).strip() for block in blocks]


def test_install_and_one_enable_then_the_quick_start_works_as_written(make_machine: Boot) -> None:
    host = make_machine().boot()
    said = host.run(INSTALL)
    assert "systemctl enable --now netwatch" in said
    host.run("systemctl enable --now netwatch")
    post, read = quick_start()
    assert post.startswith("curl ")
    answer = json.loads(host.run(f"cd /var/lib/netwatch && {post.replace('curl ', 'curl --silent --fail-with-body ')}"))
    assert answer["accepted"] == 1
    host.run("cd /var/lib/netwatch && netwatch probe http://127.0.0.1:8080/livez")
    host.run("systemctl kill --signal USR1 --kill-whom main netwatch")
    host.wait_for("ls /var/lib/netwatch/data/reports/*/*.zst")
    lines = [json.loads(line) for line in host.run(f"cd /var/lib/netwatch && {read}").splitlines()]
    assert lines[0]["id"] == answer["id"]
    assert len(lines) == 2
