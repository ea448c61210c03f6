"""The launcher, ./stillwatch, driven as a user drives it: in a copied checkout, with a PATH that is known.

What would need root or a network is played by stand-ins: `python3` (the real one, but its venvs get the
stand-ins `pip` and `pytest`), `apt-get` and `dpkg`. Each notes its call in `calls`, so that tests can count.
The launcher, the venv, the interpreter inside it, cmp, flock and the signals are real. One test, at the end,
makes a venv without any stand-in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.any_python

LAUNCHER = Path(__file__).parent.parent / "stillwatch"
NOBODY = 65534
# Every program that the launcher may use. One that is missing here is "command not found" there.
TOOLS = ("cmp", "cp", "flock", "grep", "mkdir", "readlink", "rm", "sync", "tail")

PIPELINE = """\
import json, os, sys
if sys.argv[1:2] == ["exit"]:
    sys.exit(int(sys.argv[2]))
if sys.argv[1:2] == ["cat"]:
    sys.stdout.write(sys.stdin.read())
    sys.exit()
try:
    stdin = os.readlink("/proc/self/fd/0")
except OSError:
    stdin = "closed"
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "pid": os.getpid(), "prefix": sys.prefix,
                  "main": __file__, "json": json.__file__, "stdin": stdin,
                  "lock": os.path.exists("/proc/self/fd/9"), "prepare": os.environ.get("STILLWATCH_PREPARE")}))
"""

PIP = """\
import os, sys, time
with open(os.environ["CALLS"], "a") as calls:
    calls.write("pip " + " ".join(sys.argv[1:]) + "\\n")
sys.stdin.read()  # whoever may, eats the command's
try:
    time.sleep(float(os.environ.get("PIP_SLEEPS", "0")))
except KeyboardInterrupt:  # pip catches it too
    sys.exit("ERROR: Operation cancelled by user")
print(os.environ.get("PIP_SAYS", ""))
sys.exit(int(os.environ.get("PIP_EXITS", "0")))
"""

PYTEST = """\
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "path": sys.path}))
"""

# $1 is -I throughout. PYTHON_IS and NO_ENSUREPIP change what the launcher's own question finds out.
PYTHON = """\
#!/bin/bash
echo "python3 $2 $3" | head -n 1 >>"$CALLS"
if [[ $2 == -c ]]; then
    exec {python} -I -c "import sys
sys._base_executable = '$0'
if '$PYTHON_IS': sys.version_info = tuple(map(int, '$PYTHON_IS'.split('.')))
if '$NO_ENSUREPIP': sys.modules['ensurepip'] = None
$3"
fi
{python} -I -m venv --without-pip "${{@:4}}"
for site in "${{@: -1}}"/lib/python*/site-packages; do cp {stand_ins}/* "$site/"; done
if [[ $PYTHON_IS ]]; then mkdir -p "${{@: -1}}/lib/python${{PYTHON_IS%.*}}"; fi
"""

# Like a fresh machine: knows no package before the first `update`.
APT_GET = """\
#!/bin/bash
echo "apt-get $DEBIAN_FRONTEND $*" >>"$CALLS"
case "$*" in
    update) touch {lists} ;;
    *install*)
        if [[ $APT_SAYS ]]; then echo "$APT_SAYS"; exit 100; fi
        if [[ ! -e {lists} ]]; then echo "E: Unable to locate package ffmpeg"; exit 100; fi
        ln -sf /bin/true {bin}/ffmpeg ;;
esac
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of the launcher with a small pipeline beside it, and the only directory on its PATH."""

    top: Path

    @property
    def root(self) -> Path:
        return self.top / "check out"  # a space: every path must be quoted

    @property
    def bin(self) -> Path:
        return self.top / "bin"

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def elsewhere(self) -> Path:
        return self.top / "else" / "where"

    def calls(self, start: str) -> list[str]:
        return [line for line in (self.top / "calls").read_text().splitlines() if line.startswith(start)]

    def popen(
        self, *args: str, launcher: Path | None = None, user: int | None = None, **env: str
    ) -> subprocess.Popen[str]:
        paths = {"PATH": self.bin, "HOME": self.top / "home", "CALLS": self.top / "calls"}
        return subprocess.Popen(
            [launcher or self.root / "stillwatch", *args],
            cwd=self.elsewhere,
            env={name: str(path) for name, path in paths.items()} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    def run(self, *args: str, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.popen(*args, **options)
        try:
            out, err = process.communicate(stdin, timeout=30)
        finally:
            process.kill()
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def said(self, *args: str, **options: Any) -> dict[str, Any]:
        """What the small pipeline (or the stand-in pytest) saw."""
        result = self.run(*args, **options)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer


def interpreters() -> Iterator[str]:
    yield str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    yield "/usr/bin/python3"


def runs_as(user: int, python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([python, "-I", "-c", check], user=user, group=user, extra_groups=[])
    except OSError:
        return False
    return done.returncode == 0


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def make_checkout(top: Path, python: str) -> Checkout:
    checkout = Checkout(top)
    for name in ("check out/pipeline", "bin", "else/where", "home", "stand_ins"):
        (top / name).mkdir(parents=True)
    top.chmod(0o755)
    (top / "calls").touch()
    (top / "calls").chmod(0o666)
    (top / "stand_ins" / "pip.py").write_text(PIP)
    (top / "stand_ins" / "pytest.py").write_text(PYTEST)
    shutil.copy2(LAUNCHER, checkout.root)
    (checkout.root / "requirements.txt").write_text("# none\n")
    (checkout.root / "requirements-dev.txt").write_text("# none either\n")
    (checkout.root / "pipeline" / "__init__.py").touch()
    (checkout.root / "pipeline" / "__main__.py").write_text(PIPELINE)
    for tool in (*TOOLS, "head", "touch", "ln"):
        found = shutil.which(tool)
        assert found, tool
        (checkout.bin / tool).symlink_to(found)
    (checkout.bin / "ffmpeg").symlink_to("/bin/true")
    write_script(checkout.bin / "python3", PYTHON.format(python=python, stand_ins=top / "stand_ins"))
    write_script(checkout.bin / "apt-get", APT_GET.format(lists=top / "lists", bin=checkout.bin))
    write_script(checkout.bin / "dpkg", '#!/bin/bash\necho "dpkg $*" >>"$CALLS"\n')
    return checkout


@pytest.fixture
def top() -> Iterator[Path]:
    """Not tmp_path: another user must be able to reach it."""
    directory = Path(tempfile.mkdtemp(prefix="launcher-"))
    yield directory
    subprocess.run(["chmod", "-R", "u+rwX", directory], check=True)
    shutil.rmtree(directory)


@pytest.fixture
def checkout(top: Path) -> Checkout:
    return make_checkout(top, next(interpreters()))


@dataclass(frozen=True)
class Stranger:
    """A user who may read the checkout and not write it."""

    checkout: Checkout
    user: int | None

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.checkout.run(*args, user=self.user, **env)


@pytest.fixture
def stranger(top: Path) -> Stranger:
    user = NOBODY if os.geteuid() == 0 else None
    python = next((python for python in interpreters() if user is None or runs_as(user, python)), None)
    if python is None:
        pytest.skip("no Python 3.11 here that another user may run")
    checkout = make_checkout(top, python)
    if user is None:
        checkout.root.chmod(0o555)
    else:
        os.chown(top / "home", user, user)
        os.chown(checkout.elsewhere, user, user)
    return Stranger(checkout, user)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="apt-get is for root only")


def wait_until(true: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def the_line(result: subprocess.CompletedProcess[str]) -> str:
    """The last line of stderr, which names the error; what comes before may only be progress."""
    *progress, last = result.stderr.splitlines()
    for line in progress:
        assert line.startswith(("stillwatch: making ", "stillwatch: installing "))
    assert last.startswith("stillwatch: ")
    return last


# The first call, and the later ones


def test_first_call_installs_and_then_runs_the_command(checkout: Checkout) -> None:
    result = checkout.run("status")
    assert json.loads(result.stdout)["argv"] == ["status"]
    assert json.loads(result.stdout)["prefix"] == str(checkout.venv)
    [pip] = checkout.calls("pip")
    assert pip.endswith(f"-r {checkout.root}/requirements.txt")
    assert result.stderr.splitlines() == [
        f"stillwatch: making {checkout.venv} with Python {sys.version_info[0]}.{sys.version_info[1]}",
        "stillwatch: installing requirements.txt (a minute or two, once)",
    ]


def test_later_calls_fork_nothing_but_cmp_and_become_python(checkout: Checkout) -> None:
    checkout.run("status")
    for path in checkout.bin.iterdir():
        if path.name != "cmp":
            path.unlink()
    process = checkout.popen("status")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["pid"] == process.pid


def test_changed_requirements_are_installed_once_into_the_same_venv(checkout: Checkout) -> None:
    checkout.run("status")
    (checkout.root / "requirements.txt").write_text("# changed\n")
    assert "making" not in checkout.run("status").stderr
    assert checkout.run("status").stderr == ""
    assert len(checkout.calls("pip")) == 2
    assert len(checkout.calls("python3 -m")) == 1


def test_called_through_a_symlink_and_by_a_relative_path(checkout: Checkout) -> None:
    link = checkout.elsewhere / "sw"
    link.symlink_to(Path("../..") / checkout.root.name / "stillwatch")
    assert checkout.said("status", launcher=link)["prefix"] == str(checkout.venv)
    relative = Path("../..") / checkout.root.name / "stillwatch"
    main = Path(checkout.said("status", launcher=relative)["main"])
    assert main.resolve() == checkout.root / "pipeline" / "__main__.py"
    assert checkout.said("test", launcher=relative)["cwd"] == str(checkout.root)
    assert len(checkout.calls("python3 -m")) == 1


def test_nothing_in_the_current_directory_shadows_ours(checkout: Checkout) -> None:
    for name in ("pipeline", "json", "venv", "pip", "os"):
        (checkout.elsewhere / name).mkdir()
        for file in ("__init__.py", "__main__.py"):
            (checkout.elsewhere / name / file).write_text("raise SystemExit('shadowed')\n")
    for _ in range(2):
        saw = checkout.said("status")
        assert saw["main"] == str(checkout.root / "pipeline" / "__main__.py")
        assert saw["cwd"] == str(checkout.elsewhere)
        assert not saw["json"].startswith(str(checkout.top))


def test_arguments_arrive_exactly(checkout: Checkout) -> None:
    args = ["replay", "a b", "", "two\nlines", "*", "--x=$HOME", "'\"`id`\\", "--", "-e"]
    assert checkout.said(*args)["argv"] == args
    assert checkout.said(*args)["argv"] == args


@pytest.mark.parametrize("code", [0, 1, 69, 78])
def test_exit_code_is_the_commands(checkout: Checkout, code: int) -> None:
    assert checkout.run("exit", str(code)).returncode == code


def test_stdin_is_the_commands_even_while_installing(checkout: Checkout) -> None:
    assert checkout.run("cat", stdin="frames\n").stdout == "frames\n"


def test_closed_stdin_becomes_dev_null(checkout: Checkout) -> None:
    closing = checkout.top / "closing"
    write_script(closing, f'#!/bin/bash\nexec "{checkout.root}/stillwatch" "$@" <&-\n')
    for _ in range(2):
        assert checkout.said("status", launcher=closing)["stdin"] == "/dev/null"


def test_the_lock_is_not_handed_to_the_command(checkout: Checkout) -> None:
    assert checkout.said("status")["lock"] is False


def test_two_first_calls_at_once_install_once(checkout: Checkout) -> None:
    first = checkout.popen("status", PIP_SLEEPS="0.5")
    wait_until(lambda: checkout.calls("pip"))
    second = checkout.run("status")
    assert second.returncode == 0
    assert second.stderr == "stillwatch: waiting for another call that is installing\n"
    assert first.wait(timeout=10) == 0
    first.communicate()
    assert len(checkout.calls("pip")) == 1


# Interruptions and failures


@pytest.mark.parametrize("during", ["first install", "update", "test"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_installation_is_made_anew(checkout: Checkout, during: str, number: int, code: int) -> None:
    if during != "first install":
        checkout.run("status")
    if during == "update":
        (checkout.root / "requirements.txt").write_text("# changed\n")
    before = len(checkout.calls("pip"))
    process = checkout.popen("test" if during == "test" else "status", PIP_SLEEPS="30")
    wait_until(lambda: len(checkout.calls("pip")) > before)
    half_made = checkout.venv / "half-made"
    half_made.touch()
    os.killpg(process.pid, number)
    assert process.communicate(timeout=10)[0] == ""
    assert process.returncode == code
    assert checkout.said("status")["prefix"] == str(checkout.venv)
    assert not half_made.exists()
    assert checkout.run("status").stderr == ""


def test_missing_interpreter_in_the_venv_is_repaired(checkout: Checkout) -> None:
    """What a system upgrade leaves: the interpreter that the venv links to is gone."""
    checkout.run("status")
    (checkout.venv / "bin" / "python").unlink()
    (checkout.venv / "bin" / "python").symlink_to("/gone/python3.9")
    assert checkout.said("status")["prefix"] == str(checkout.venv)


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        ("ERROR: No matching distribution found for x>=99", ": No matching distribution found for x>=99"),
        ("WARNING: Retrying after connection broken by 'X'\nERROR: No match", "check the network"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "free 500 MB"),
        ("ERROR: Exception:\nTraceback\nKeyError: 'x'", "KeyError: 'x'"),
    ],
)
def test_pip_failure_names_the_cause_and_the_log(checkout: Checkout, says: str, cause: str) -> None:
    result = checkout.run("status", PIP_SAYS=says, PIP_EXITS="1")
    assert (result.returncode, result.stdout) == (69, "")
    line = the_line(result)
    assert line.startswith("stillwatch: pip failed: ")
    assert cause in line
    log = line.rpartition("(log: ")[2].removesuffix(")")
    assert says in Path(log).read_text()
    assert checkout.run("status").returncode == 0


def test_failed_update_leaves_what_worked(checkout: Checkout) -> None:
    checkout.run("status")
    requirements = checkout.root / "requirements.txt"
    before = requirements.read_text()
    requirements.write_text("# not to be had\n")
    assert checkout.run("status", PIP_EXITS="1").returncode == 69
    requirements.write_text(before)
    assert checkout.run("status").stderr == ""
    assert len(checkout.calls("python3 -m")) == 1


def test_a_service_installs_nothing(checkout: Checkout) -> None:
    refused = checkout.run("run", STILLWATCH_PREPARE="0")
    assert (refused.returncode, refused.stdout) == (69, "")
    assert the_line(refused).endswith("install anew with systemd/install.sh")
    assert not checkout.calls("") and not checkout.venv.exists()
    checkout.run("run")
    assert checkout.said("run", STILLWATCH_PREPARE="0")["prepare"] is None, "it would be taken for a setting"


# The interpreter


def test_too_old_python_is_one_line(checkout: Checkout) -> None:
    result = checkout.run("status", PYTHON_IS="3.9.2")
    assert (result.returncode, result.stdout) == (69, "")
    assert the_line(result) == (
        "stillwatch: python3 is Python 3.9, 3.11 or newer is needed: set STILLWATCH_PYTHON to one"
    )
    assert not checkout.venv.exists()


@pytest.mark.parametrize("python", ["python3.99", "/bin/false"])
def test_unusable_python_is_one_line(checkout: Checkout, python: str) -> None:
    result = checkout.run("status", STILLWATCH_PYTHON=python)
    assert result.returncode == 69
    assert the_line(result).startswith(f"stillwatch: {python} cannot be run, Python 3.11 or newer is needed")


def test_venv_is_remade_only_for_another_version(checkout: Checkout) -> None:
    other = str(checkout.bin / "python3")
    checkout.run("status")
    checkout.run("status", STILLWATCH_PYTHON=other)
    assert len(checkout.calls("python3 -m")) == 1
    for _ in range(2):
        checkout.run("status", STILLWATCH_PYTHON=other, PYTHON_IS="3.99.0")
    assert len(checkout.calls("python3 -m")) == 2


# Packages of the system


def test_missing_venv_package_is_one_line_for_a_user(stranger: Stranger) -> None:
    (stranger.checkout.bin / "ffmpeg").unlink()
    result = stranger.run("status", NO_ENSUREPIP="1")
    assert result.returncode == 69
    command = "sudo apt-get install -y python3-venv ffmpeg"
    assert result.stderr == f"stillwatch: missing: python3-venv ffmpeg; install with: {command}\n"


@pytest.mark.parametrize(("command", "code"), [("demo", 69), ("test", 69), ("status", 0)])
def test_missing_ffmpeg_stops_only_what_needs_it(stranger: Stranger, command: str, code: int) -> None:
    (stranger.checkout.bin / "ffmpeg").unlink()
    result = stranger.run(command)
    assert result.returncode == code
    assert "stillwatch: missing: ffmpeg; install with: sudo apt-get install -y ffmpeg\n" in result.stderr
    assert stranger.checkout.calls("apt-get") == []


def test_ffmpeg_that_vanished_later_is_noticed_by_demo(stranger: Stranger) -> None:
    stranger.run("status")
    (stranger.checkout.bin / "ffmpeg").unlink()
    assert (stranger.run("status").returncode, stranger.run("status").stderr) == (0, "")
    assert stranger.run("demo").returncode == 69


@needs_root
def test_root_installs_packages_and_updates_the_lists_only_when_needed(checkout: Checkout) -> None:
    (checkout.bin / "ffmpeg").unlink()
    assert checkout.run("demo", NO_ENSUREPIP="1").returncode == 0
    install = "-o DPkg::Lock::Timeout=300 install -y --no-install-recommends"
    assert checkout.calls("apt-get") == [
        f"apt-get noninteractive {install} python3-venv ffmpeg",
        "apt-get  update",
        f"apt-get noninteractive {install} python3-venv ffmpeg",
    ]
    (checkout.bin / "ffmpeg").unlink()
    assert checkout.run("demo").returncode == 0
    assert checkout.calls("apt-get")[3:] == [f"apt-get noninteractive {install} ffmpeg"]


@needs_root
def test_failed_apt_get_names_the_cause(checkout: Checkout) -> None:
    (checkout.bin / "ffmpeg").unlink()
    result = checkout.run("demo", APT_SAYS="E: Could not get lock")
    assert result.returncode == 69
    assert the_line(result) == (
        "stillwatch: apt-get could not install ffmpeg: E: Could not get lock; mend that, "
        f"then: apt-get install -y ffmpeg (log: {checkout.venv}.log)"
    )


# Users who may not write the checkout


def test_read_only_checkout_uses_a_venv_in_the_cache_and_says_so_once(stranger: Stranger) -> None:
    result = stranger.run("status")
    prefix = json.loads(result.stdout)["prefix"]
    assert prefix.startswith(str(stranger.checkout.top / "home" / ".cache" / "stillwatch" / "venv-"))
    assert f"because {stranger.checkout.venv} cannot be written by this user" in result.stderr.splitlines()[0]
    assert not stranger.checkout.venv.exists()
    assert stranger.run("status").stderr == ""
    assert len(stranger.checkout.calls("pip")) == 1


def test_read_only_checkout_with_a_whole_venv_uses_that(stranger: Stranger) -> None:
    stranger.checkout.root.chmod(0o755)
    stranger.checkout.run("status")
    stranger.checkout.root.chmod(0o555)
    result = stranger.run("status")
    assert json.loads(result.stdout)["prefix"] == str(stranger.checkout.venv)
    assert result.stderr == ""


def test_nowhere_to_write_is_one_line(stranger: Stranger) -> None:
    result = stranger.run("status", XDG_CACHE_HOME="/proc/none")
    assert result.returncode == 69
    assert the_line(result).endswith("can be written: set XDG_CACHE_HOME to a directory of yours")


# The command that is the launcher's own


def test_test_installs_the_rest_and_runs_pytest_in_the_checkout(checkout: Checkout) -> None:
    checkout.run("status")
    saw = checkout.said("test", "-k", "a b", "tests/x.py")
    assert saw["argv"] == ["-k", "a b", "tests/x.py"]
    assert saw["cwd"] == str(checkout.root)
    assert saw["path"][0] == str(checkout.root)
    files = [f"-r {checkout.root}/requirements.txt", f"-r {checkout.root}/requirements-dev.txt"]
    assert checkout.calls("pip")[1].endswith(" ".join(files))
    checkout.said("test")
    checkout.said("status")
    assert len(checkout.calls("pip")) == 2


def test_an_installation_has_no_tests_and_says_so(checkout: Checkout) -> None:
    (checkout.root / "requirements-dev.txt").unlink()
    refused = checkout.run("test")
    assert (refused.returncode, checkout.calls("")) == (69, [])
    assert (
        the_line(refused) == f"stillwatch: {checkout.root} is an installation, without tests; call test in a checkout"
    )


def test_changed_requirements_make_test_look_again(checkout: Checkout) -> None:
    """What requirements.txt brings may not suit what requirements-dev.txt had chosen."""
    checkout.said("test")
    (checkout.root / "requirements.txt").write_text("# changed\n")
    checkout.said("status")
    checkout.said("test")
    assert [call.count(" -r ") for call in checkout.calls("pip")] == [2, 1, 2]


# All real


@pytest.mark.slow
def test_real_python_makes_a_real_venv(checkout: Checkout) -> None:
    python = next(interpreters())
    if subprocess.run([python, "-I", "-c", "import ensurepip"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this Python has no ensurepip")
    (checkout.bin / "python3").unlink()
    assert checkout.said("status", STILLWATCH_PYTHON=python)["prefix"] == str(checkout.venv)
    assert (checkout.venv / "bin" / "pip").exists()
    assert checkout.run("status", STILLWATCH_PYTHON=python).stderr == ""
    assert checkout.calls("") == []
