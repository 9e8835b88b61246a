"""Where results go: one run a folder, and nothing lost that could be written."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import read_json, vanishjax
from vanishjax import files, model_file, training
from vanishjax.files import locked, write_atomically
from vanishjax.model_file import load_model
from vanishjax.report import plots

TRAIN = ["train", "--hidden", "4", "--epochs", "1", "--out", "run"]
FILES = ["curves.png", "model.safetensors", "train.json"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- files


def test_a_leftover_of_any_name_is_in_nobodys_way(here, monkeypatch):
    names = iter(["aa", "aa", "bb"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: next(names))
    Path(".a.txt.aa.tmp").write_text("another's")
    write_atomically("a.txt", b"whole")
    assert Path("a.txt").read_bytes() == b"whole"
    assert sorted(os.listdir()) == [".a.txt.aa.tmp", "a.txt"]
    assert Path(".a.txt.aa.tmp").read_text() == "another's"


def test_files_have_the_permissions_that_the_umask_leaves(here):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            write_atomically("a.txt", b"")
        finally:
            os.umask(before)
        assert os.stat("a.txt").st_mode & 0o777 == mode


def test_a_failed_write_names_the_file_and_leaves_the_old_one(here, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    Path("a.txt").write_text("old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: 'a.txt'"):
        write_atomically("a.txt", b"new")
    assert (Path("a.txt").read_text(), os.listdir()) == ("old", ["a.txt"])


def test_a_lock_ends_with_its_process(here):
    code = "import time; from vanishjax.files import locked\n"
    code += "with locked('.'): print(1, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        with pytest.raises(BlockingIOError, match="another run is writing there"), locked("."):
            pass
        other.kill()
    with locked(".") as alone:
        assert alone
    assert os.listdir() == []


def test_a_drive_that_locks_only_files_gets_one(here, monkeypatch):
    def flock(descriptor, operation):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(9, "Bad file descriptor")
        return real(descriptor, operation)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(".") as alone:
        assert alone
        with pytest.raises(BlockingIOError), locked("."):
            pass
    assert os.listdir() == [".lock"]


def test_where_nothing_can_be_locked_the_run_says_so(here, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    ran = vanishjax(*TRAIN)
    assert ran.status == 0
    assert ran.err.splitlines()[0] == (
        "vanishjax: --out run: can't be locked; see to it that no other run writes there"
    )


# --- runs


@pytest.mark.parametrize("command", ["train", "compare", "atlas", "cure", "diagnose"])
def test_a_second_writer_is_refused_before_it_does_anything(here, command):
    Path("run").mkdir()
    with locked("run"):
        ran = vanishjax(command, "--out", "run", "--overwrite")
    assert ran.status == 2
    assert ran.error == (
        "vanishjax: error: --out run: another run is writing there; name another folder with --out"
    )
    assert os.listdir("run") == []


def test_of_two_runs_at_once_one_is_whole(here):
    command = [sys.executable, "-m", "vanishjax", *TRAIN, "--checkpoint-every", "5"]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = {run.communicate(timeout=120)[1]: run.returncode for run in runs}
    assert sorted(ended.values()) == [0, 2]
    (refused,) = (said.splitlines() for said, status in ended.items() if status)
    assert len(refused) == 1
    # Which of the two it is depends on how long the other took to begin.
    assert "another run is writing there" in refused[0] or "already holds" in refused[0]
    load_model("run/model.safetensors")


@pytest.mark.parametrize("made", [True, False])
def test_only_a_folder_that_was_made_here_is_taken_away(here, made):
    if not made:
        Path("run").mkdir()
    ran = vanishjax(*TRAIN, "--resume", "--devices", "99")
    assert ran.status == 2
    assert Path("run").exists() != made


def test_what_can_be_written_is_written(here, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "run/model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "save_model", full)
        ran = vanishjax(*TRAIN)
    assert (ran.status, ran.err.splitlines()[-1]) == (
        1,
        "vanishjax: error: run/model.safetensors: No space left on device",
    )
    assert sorted(os.listdir("run")) == ["curves.png", "train.json"]
    assert read_json("run/train.json")["test_loss"] > 0
    monkeypatch.setattr(plots, "learning_curves", full)
    assert vanishjax(*TRAIN, "--overwrite").status == 1
    assert sorted(os.listdir("run")) == FILES


def test_a_score_that_fails_loses_no_model(here, monkeypatch):
    def no_memory(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(training, "make_evaluate", lambda *a, **o: no_memory)
    ran = vanishjax(*TRAIN)
    assert ran.status == 1
    assert "out of memory" in ran.err.splitlines()[-1]
    assert sorted(os.listdir("run")) == FILES
    assert read_json("run/train.json")["test_loss"] is None
    load_model("run/model.safetensors")
