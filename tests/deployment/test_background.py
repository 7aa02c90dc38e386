"""A run that outlives what started it, with a script in the place of the kit's."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.converters.kit import background
from edgekit.converters.kit.problem import Problem


def kit(folder, script):
    """A folder whose run.pyz is this script."""
    (folder / "run.pyz").write_text("import os, sys, time\nfrom pathlib import Path\n" + script)
    return folder


def ended(folder):
    end = time.monotonic() + 20
    while background.is_running(folder):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_log_and_the_exit_code_are_kept(code, tmp_path, capfdbinary):
    script = f"print('at work', *sys.argv[1:])\nsys.stderr.write('loud\\n')\nsys.exit({code})"
    folder = kit(tmp_path, script)
    assert background.start(folder, ["--background", "--iterations", "5"]) == 0
    assert background.follow(folder) == code
    assert b"at work --iterations 5\n" in capfdbinary.readouterr().out
    assert background.follow(folder) == code  # once more, when it has ended
    assert {b"loud", b"at work --iterations 5"} == set(capfdbinary.readouterr().out.splitlines())


def test_a_second_start_joins(tmp_path, capfd):
    gate = tmp_path / "gate"
    waits = f"while not Path('{gate}').exists(): time.sleep(.02)"
    folder = kit(tmp_path, f"open('{tmp_path}/runs', 'a').write('x')\n{waits}")
    assert background.start(folder, ["--background"]) == 0
    assert background.start(folder, ["--background"]) == 0
    assert "Joining the run" in capfd.readouterr().out
    with pytest.raises(Problem, match="other options"):
        background.start(folder, ["--background", "--rebuild"])
    gate.touch()
    assert background.follow(folder) == 0
    assert (tmp_path / "runs").read_text() == "x"
    assert background.start(folder, ["--rebuild"]) == 0  # the first one has ended
    assert background.follow(folder) == 0


def test_a_run_that_is_killed_is_told(tmp_path):
    folder = kit(tmp_path, "os.kill(os.getpid(), 9)")
    background.start(folder, [])
    with pytest.raises(Problem, match="signal 9") as caught:
        background.follow(folder)
    assert "memory" in caught.value.why


def test_a_run_can_be_stopped(tmp_path, capfd):
    folder = kit(tmp_path, "time.sleep(600)")
    background.start(folder, [])
    assert background.is_running(folder)
    assert background.stop(folder) == 0
    assert not background.is_running(folder)
    with pytest.raises(Problem, match="without an exit code"):
        background.follow(folder)
    assert background.stop(folder) == 0
    assert "No run is going on." in capfd.readouterr().out


def test_it_outlives_who_started_it_and_keeps_the_lock_alone(tmp_path):
    """The keeper may be killed: the run goes on, and is still known to."""
    folder = kit(tmp_path, f"while not Path('{tmp_path}/gate').exists(): time.sleep(.02)")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from kit import background; background.start(Path(sys.argv[2]), [])"
    )
    rooms = Path(background.__file__).parents[1]
    command = [sys.executable, "-c", code, str(rooms), str(folder)]
    subprocess.run(command, check=True, timeout=30, stdout=subprocess.DEVNULL)
    assert background.is_running(folder)
    (tmp_path / "gate").touch()
    assert background.follow(folder) == 0


def test_there_is_nothing_to_follow(tmp_path):
    with pytest.raises(Problem, match="Nothing was started"):
        background.follow(tmp_path)
