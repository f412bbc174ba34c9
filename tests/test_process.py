"""Importing the library changes nothing of somebody else's process; what is set for moments is put back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from quick_processes import quick_processes
from quickstudy.process import (
    default_variable,
    granted_cores,
    own_process,
    own_processes,
    starting_own_process,
    usable_cores,
)

LOOK = """
import json, locale, os, pkgutil, signal, sys, warnings

def state():
    import numpy
    mask = os.umask(0); os.umask(mask)
    return {
        "environment": dict(os.environ),
        "filters": [str(one) for one in warnings.filters],
        "showwarning": repr(warnings.showwarning),
        "umask": mask,
        "signals": {str(n): repr(signal.getsignal(n)) for n in signal.valid_signals()},
        "numpy": numpy.geterr(),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
        "hook": repr(sys.excepthook),
        "folder": os.getcwd(),
    }

def differences(before):
    after = state()
    return {name: [before[name], after[name]] for name in before if before[name] != after[name]}
"""


def found_by(code: str) -> Any:
    run = [sys.executable, "-c", LOOK + code]
    return json.loads(subprocess.run(run, check=True, timeout=300, capture_output=True, text=True).stdout)


def test_public_names_and_every_module_leave_the_process_as_it_was() -> None:
    """For modules, the libraries that they need come first: what those do at their import is their own."""
    code = """
import importlib
import sklearn.base  # it has its deprecations shown by a filter of its own
before = state()
import quickstudy
for name in quickstudy.__all__:
    getattr(quickstudy, name)
found = [differences(before)]
for name in ("scipy", "torch", "torch.distributed", "torch.utils.tensorboard", "PIL.Image", "onnx", "pyarrow",
             "uvicorn", "starlette", "typer"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
before = state()
names = [one.name for one in pkgutil.walk_packages(quickstudy.__path__, "quickstudy.")]
for name in names:
    if name != "quickstudy.__main__":
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert not error.name.startswith("quickstudy"), error
assert len(names) > 100, names
print(json.dumps([*found, differences(before)]))
"""
    assert found_by(code) == [{}, {}]


def test_onnx_runtime_is_imported_without_a_trace_in_the_environment() -> None:
    code = """
before = state()
from quickstudy.backbones.graphs.runtime import import_onnxruntime
assert import_onnxruntime().__name__ == "onnxruntime"
print(json.dumps(differences(before)))
"""
    assert found_by(code) == {}


def test_a_variable_has_its_value_inside_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUICKSTUDY_TEST", raising=False)
    with default_variable("QUICKSTUDY_TEST", "a"):
        assert os.environ["QUICKSTUDY_TEST"] == "a"
        with default_variable("QUICKSTUDY_TEST", "a"):
            pass
        assert os.environ["QUICKSTUDY_TEST"] == "a"
    assert "QUICKSTUDY_TEST" not in os.environ
    with pytest.raises(ValueError), default_variable("QUICKSTUDY_TEST", "a"):
        raise ValueError
    assert "QUICKSTUDY_TEST" not in os.environ


def test_what_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKSTUDY_TEST", "theirs")
    with default_variable("QUICKSTUDY_TEST", "a"):
        assert os.environ["QUICKSTUDY_TEST"] == "theirs"
    assert os.environ["QUICKSTUDY_TEST"] == "theirs"


def test_threads_inside_at_once_all_have_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUICKSTUDY_TEST", raising=False)
    seen: list[str | None] = []

    def work() -> None:
        for _ in range(300):
            with default_variable("QUICKSTUDY_TEST", "a"):
                seen.append(os.environ.get("QUICKSTUDY_TEST"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["a"] * 2400
    assert "QUICKSTUDY_TEST" not in os.environ


def test_the_command_line_shows_none_of_pillow_s_warnings() -> None:
    code = """
from quickstudy.process import settle_own_process
settle_own_process()
warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
warnings.warn_explicit("could be a bomb", RuntimeWarning, "Image.py", 1, module="PIL.Image")
with warnings.catch_warnings(record=True) as caught:
    warnings.warn_explicit("of others", UserWarning, "other.py", 1, module="other")
print(json.dumps({"others": [str(one.message) for one in caught], "spin": [os.environ["GOMP_SPINCOUNT"]]}))
"""
    run = [sys.executable, "-c", LOOK + code]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "GOMP_SPINCOUNT")
    }
    done = subprocess.run(run, check=True, timeout=60, capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"others": ["of others"], "spin": ["20000"]}


def test_sigterm_ends_a_process_of_our_own_by_an_exception() -> None:
    """So that everybody cleans up, as after Ctrl-C."""
    code = """
import os, signal
from quickstudy.process import settle_own_process
settle_own_process()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
finally:
    print("cleaned up", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "cleaned up\n", "")


def test_a_signal_that_comes_while_a_process_starts_is_not_lost() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    inside = False
    with pytest.raises(KeyboardInterrupt), starting_own_process():
        signal.raise_signal(signal.SIGINT)  # at this thread; another one would take it at once
        inside = True
    assert inside
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def note_environment(file: Path) -> None:
    file.write_text(json.dumps({name: value for name, value in os.environ.items() if name.startswith("QUICKSTUDY_")}))


def test_a_process_of_our_own_has_the_environment_of_when_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of what it is forked from, which began before."""
    monkeypatch.setenv("QUICKSTUDY_ELSEWHERE", "1")
    quick_processes()
    monkeypatch.delenv("QUICKSTUDY_ELSEWHERE")
    for folder in ("one", "other"):
        monkeypatch.setenv("QUICKSTUDY_DATA", folder)
        process = own_process(note_environment, tmp_path / folder)
        with starting_own_process():
            process.start()
        process.join()
        found = json.loads((tmp_path / folder).read_text())
        assert (found.get("QUICKSTUDY_DATA"), "QUICKSTUDY_ELSEWHERE" in found) == (folder, False)


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/", {"cpu.max": "400000 100000\n"}, 4.0),  # as a container sees its own
        ("0::/", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/", {}, float("inf")),
        ("0::/job/step", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1.5),
        ("0::/docker/0123", {"cpu.max": "200000 100000\n"}, 2.0),  # a name that the machine knows it by
        ("4:memory:/\n3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
    ],
)
def test_a_container_has_as_many_cores_as_it_is_granted(
    group: str, files: dict[str, str], expected: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        place = tmp_path / "groups" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (tmp_path / "own").write_text(group + "\n")
    assert granted_cores(tmp_path / "groups", tmp_path / "own") == expected
    assert granted_cores(tmp_path / "groups", tmp_path / "none") == float("inf")


def test_the_cores_granted_are_those_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickstudy.process.granted_cores", lambda: 0.5)
    assert usable_cores() == 1


def test_processes_begin_anew_where_no_socket_can_have_so_long_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a_folder_for_temporary_files_of_one_job_among_many" / "0123456789" / "scratch"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert own_processes().get_start_method() == "spawn"
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert own_processes().get_start_method() == ("forkserver" if hasattr(os, "fork") else "spawn")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_asks_to_end_waits_until_a_module_is_imported(tmp_path: Path, number: signal.Signals) -> None:
    """Modules in C turn the exception into others, such as `import numpy failed`, or crash."""
    (tmp_path / "slow_module.py").write_text(f"import signal\nsignal.raise_signal({int(number)})\nwhole = True\n")
    code = (
        "import sys, time\n"
        "from quickstudy.process import settle_own_process\n"
        "settle_own_process()\n"
        "try:\n"
        "    import slow_module\n"
        "    time.sleep(60)\n"
        "except (KeyboardInterrupt, SystemExit) as error:\n"
        "    print(type(error).__name__, sys.modules['slow_module'].whole)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    expected = "KeyboardInterrupt" if number == signal.SIGINT else "SystemExit"
    assert (done.stdout, done.stderr) == (f"{expected} True\n", "")
