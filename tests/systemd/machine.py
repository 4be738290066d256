"""A Debian of its own in a container, with a real systemd: what it is made of, booted, cut off, looked into.

The roots and the wheels are made once and kept in a cache directory: $XDG_CACHE_HOME/netwatch, by default
~/.cache/netwatch. Each machine is an overlay over a root, so that a boot takes less than a second and leaves no trace.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "netwatch"
PACKAGES: Final = "systemd,systemd-sysv,python3,zstd,jq,curl,procps"
PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}
HIERARCHIES: Final = tuple(Path("/sys/fs/cgroup", name) for name in ("unified", "", "systemd"))
"""Where cgroups stand: version 2's on a host of the mixed layout, and on any other; systemd's own in the former."""
MIB: Final = 1024 * 1024
BOOT_S: Final = 30.0
RUN_S: Final = 60.0


def wait_until(look: Callable[[], object], timeout_s: float) -> None:
    """Wait until `look` finds something true."""
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s, f"not so after {timeout_s} s"
        time.sleep(0.1)


class CannotBoot(Exception):
    """This host cannot run a container; the reason is the message."""


@contextmanager
def _made_once(path: Path) -> Iterator[Path | None]:
    """A directory to fill that becomes `path` in one step; None when `path` stands already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        half = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield half
            half.chmod(0o755)
            half.rename(path)
        finally:
            shutil.rmtree(half, ignore_errors=True)


def _run(*command: str | Path, timeout_s: float = 300.0) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise CannotBoot(f"{' '.join(map(str, command[:3]))} …: {done.stdout.strip()[-2000:]}")
    return done.stdout


def debian(release: str) -> Path:
    """The root of a small Debian, from the mirror that this host's own apt uses."""
    root = CACHE / f"{release}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    with _made_once(root) as half:
        if half:
            _run("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", release, half, _mirror())
    return root


def _mirror() -> str:
    """Where this host's apt has its Debian from."""
    wanted = ("--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    for _ in range(2):
        for line in _run("apt-get", "indextargets", *wanted).splitlines():
            if line.startswith("Debian main "):
                return line.split()[2]
        _run("apt-get", "--quiet", "update")  # a fresh machine has the name of the mirror, and not yet whose it is
    raise CannotBoot("apt knows no mirror of Debian")


def wheels(release: str) -> Path:
    """What netwatch needs, in the versions of this environment, for the Python of `release`; and the newest pip."""
    frozen = _run(sys.executable, "-m", "pip", "freeze", "--exclude-editable")
    python = PYTHONS[release]
    key = hashlib.sha256((frozen + (ROOT / "setup.cfg").read_text()).encode()).hexdigest()[:12]
    directory = CACHE / f"wheels-{python}-{key}"
    with _made_once(directory) as half:
        if half:
            constraints = half / "constraints.txt"
            constraints.write_text(frozen)
            own = _own_wheel(half)
            only = (
                () if python == f"{sys.version_info.major}.{sys.version_info.minor}" else ("--python-version", python)
            )
            _pip(
                "download",
                "--dest",
                half,
                "--constraint",
                constraints,
                "--only-binary=:all:",
                *only,
                f"{own}[s3]",
                "pip",
            )
            own.unlink()
    return directory


def copy_source(directory: Path) -> None:
    """What netwatch is built from: a build leaves files beside the source."""
    shutil.copytree(ROOT / "netwatch", directory / "netwatch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, directory)


def make_wheel(source: Path, directory: Path) -> Path:
    """netwatch as a wheel."""
    _pip("wheel", "--no-deps", "--wheel-dir", directory, source)
    (wheel,) = directory.glob("netwatch-*.whl")
    return wheel


def _own_wheel(directory: Path) -> Path:
    """netwatch as it stands in the work tree, as a wheel."""
    with tempfile.TemporaryDirectory() as source:
        copy_source(Path(source))
        return make_wheel(Path(source), directory)


def _pip(*arguments: str | Path) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def wheelhouse(release: str, directory: Path) -> Path:
    """All that `scripts/install --wheels` needs, with the netwatch of the work tree."""
    directory.mkdir()
    for wheel in wheels(release).glob("*.whl"):
        shutil.copy(wheel, directory)
    _own_wheel(directory)
    return directory


class Machine:
    """A Debian on `layers` (the lowest first), which are never changed; what it writes goes to `directory`."""

    def __init__(self, layers: Sequence[Path], directory: Path, binds: Sequence[str] = ()) -> None:
        self.layers = [*layers]
        self.upper = directory / "upper"
        self.root = directory / "root"
        self._directory = directory
        self._binds = binds
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._cgroups: list[Path] = []
        for name in ("upper", "work", "root"):
            (directory / name).mkdir(parents=True)
        lower = ":".join(str(layer) for layer in reversed(self.layers))
        options = f"lowerdir={lower},upperdir={self.upper},workdir={directory / 'work'}"
        _run("mount", "-t", "overlay", "netwatch-test", "-o", options, self.root)

    def boot(self) -> Machine:
        """Boot it; returns when its systemd has started what it starts."""
        log = (self._directory / "console.log").open("ab")
        command = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._make_cgroup() / "cgroup.procs")]
        command += ["systemd-nspawn", "--quiet", "--directory", str(self.root), "--register=no", "--keep-unit"]
        command += ["--private-network", "--hostname=host1", "--console=pipe", *self._binds, "--boot"]
        environ = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        self._nspawn = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        deadline_s = time.monotonic() + BOOT_S
        state = ""
        while time.monotonic() < deadline_s and self._nspawn.poll() is None:
            if self._find_leader():
                state = self.try_("systemctl is-system-running").strip()
                if state in ("running", "degraded"):
                    return self
            time.sleep(0.05)
        console = (self._directory / "console.log").read_text(errors="replace")[-1500:]
        self.cut_off()
        raise CannotBoot(f"systemd in a container does not come up here ({state or 'no answer'}): {console}")

    def _make_cgroup(self) -> Path:
        """One for each boot, or the services of two machines would share theirs, and neither could end them."""
        ours = re.findall(r"^0::/?(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)[0]
        self._cgroups.append(Path(ours, f"netwatch-test-{uuid.uuid4()}"))
        cgroup = next(path for path in HIERARCHIES if path.is_dir()) / self._cgroups[-1]
        cgroup.mkdir()
        return cgroup

    def _find_leader(self) -> bool:
        """Its process 1, as this host sees it."""
        assert self._nspawn
        with suppress(OSError, ValueError):
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            for pid in children:
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    self._leader = int(pid)
                    return True
        return False

    @property
    def inside(self) -> list[str]:
        """The command that runs another one in the machine."""
        return ["nsenter", "--target", str(self._leader), "--all", "--"]

    @property
    def network(self) -> list[str]:
        """The command that runs another one of this host's in the machine's network."""
        return ["nsenter", "--target", str(self._leader), "--net", "--"]

    def run(self, script: str, timeout_s: float = RUN_S) -> str:
        """What a shell script in the machine prints; it must end with 0."""
        done = self._shell(script, timeout_s)
        assert done.returncode == 0, f"{script!r} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def fail(self, script: str, timeout_s: float = RUN_S) -> str:
        """What a shell script prints that must not end with 0."""
        done = self._shell(script, timeout_s)
        assert done.returncode != 0, f"{script!r} ended with 0:\n{done.stdout}"
        return done.stdout

    def try_(self, script: str, timeout_s: float = RUN_S) -> str:
        """The same, however it ends."""
        return self._shell(script, timeout_s).stdout

    def _shell(self, script: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [*self.inside, "bash", "-c", script],
            env=environ | {"HOME": "/"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )

    def wait_for(self, script: str, timeout_s: float = RUN_S) -> float:
        """Wait until a script ends with 0; how long that took."""
        start_s = time.monotonic()
        while (done := self._shell(script, timeout_s)).returncode:
            assert time.monotonic() - start_s < timeout_s, (
                f"{script!r} never ended with 0:\n{done.stdout}\n{self.journal()}"
            )
            time.sleep(0.05)
        return time.monotonic() - start_s

    def journal(self, unit: str = "netwatch", lines: int = 60) -> str:
        """The last that a unit logged, for the message of a failure."""
        return self.try_(f"journalctl --no-pager --output=short-monotonic --unit {unit} --lines {lines}")

    def power_off(self) -> None:
        """Shut it down in order."""
        if self._nspawn:
            self.try_("systemctl poweroff")
            try:
                self._nspawn.wait(30)
            finally:
                self.cut_off()

    def cut_off(self) -> None:
        """Take its power: every process gone at once, and nothing written any more."""
        if self._nspawn:
            with suppress(ProcessLookupError):
                if self._leader:
                    os.kill(self._leader, signal.SIGKILL)  # process 1: all others of its namespace go with it
            self._nspawn.kill()
            self._nspawn.wait()
            self._nspawn = None
            self._leader = 0

    def end(self) -> None:
        """Cut it off and take its file system away; what it wrote stays in `upper`."""
        self.cut_off()
        for _ in range(50):
            if subprocess.run(["umount", str(self.root)], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "--lazy", str(self.root)], check=False)
        wait_until(self._have_cgroups_gone, 30)

    def _have_cgroups_gone(self) -> bool:
        """Remove them: none can go before its last process was reaped."""
        tops = [root / cgroup for root in HIERARCHIES for cgroup in self._cgroups]
        for directory in (path for top in tops for path, _, _ in os.walk(top, topdown=False)):
            with suppress(OSError):
                os.rmdir(directory)
        return not any(top.exists() for top in tops)
