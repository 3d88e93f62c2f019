"""The command line: help everywhere, honest exit codes, one sentence for a user's mistake."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.cli.options import check_outputs
from his2lip.errors import ConfigError

HEAVY = ("torch", "ray", "mlflow", "optuna", "numpy", "pandas", "pydantic", "pyarrow")


def his2lip(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "his2lip", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def _commands(group: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = getattr(group, "commands", None)
    if below is None:
        return [path]
    return [path] + [p for name, command in below.items() for p in _commands(command, (*path, name))]


@pytest.mark.parametrize("path", _commands(typer.main.get_command(app)), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['his2lip', '--help']\n"
        "from his2lip.cli import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_a_users_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = his2lip("train", "no-such.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no-such.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback_of_a_users_mistake(tmp_path: Path) -> None:
    done = his2lip("--debug", "train", "no-such.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_misspelt_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {shards: x}\noptim: {weight_decya: 1}\n")
    done = his2lip("train", "a.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "optim.weight_decya" in done.stderr
    assert "'weight_decay'" in done.stderr
    (tmp_path / "a.yaml").write_text("data: {shards: x}\n")
    done = his2lip("train", "a.yaml", "optim.warmupp=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "optim.warmupp" in done.stderr
    assert "'warmup'" in done.stderr


def test_an_unusable_mlflow_store_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {shards: x}\n")
    done = subprocess.run(
        [sys.executable, "-m", "his2lip", "train", "a.yaml"],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120,
        env=os.environ | {"MLFLOW_TRACKING_URI": "nonsense://store"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "nonsense://store" in done.stderr
    assert "Traceback" not in done.stderr


def test_address_is_taken_out_of_the_command_that_is_submitted() -> None:
    from his2lip.cli.jobs import without_address

    given = [
        "benchmark",
        "b.yaml",
        "--address",
        "http://h:1",
        "--models",
        "tiny",
        "--address=http://h:2",
        "a=1",
    ]
    assert without_address(given) == ["benchmark", "b.yaml", "--models", "tiny", "a=1"]


def test_version_needs_no_command() -> None:
    done = his2lip("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("his2lip ")


def _main_that_raises(error: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line with a `data list` that ends in `error`."""
    script = (
        "import sys, his2lip.cli, his2lip.data.cards as cards\n"
        f"def fail(): raise {error}\n"
        f"cards.list_cards = fail; sys.argv = {['his2lip', *arguments, 'data', 'list']!r}\n"
        "his2lip.cli.main()"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_a_second_ctrl_c_while_the_first_is_at_work_ends_without_a_traceback() -> None:
    script = (
        "import os, signal, time, his2lip.cli, his2lip.data.cards as cards, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # else ignored in a background job
        "def fail():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "cards.list_cards = fail; sys.argv = ['his2lip', 'data', 'list']\n"
        "his2lip.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 130
    assert done.stderr == "Stopped; the same command resumes from here.\n"


def test_ctrl_c_says_how_to_go_on_and_ends_with_130() -> None:
    done = _main_that_raises("KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr == "Stopped; the same command resumes from here.\n"


def test_a_place_that_cannot_be_written_to_is_one_sentence_and_exit_code_2() -> None:
    done = _main_that_raises("PermissionError(13, 'Permission denied', '/runs')")
    assert (done.returncode, done.stderr) == (2, "his2lip: permission denied (/runs).\n")
    done = _main_that_raises("IsADirectoryError(21, 'Is a directory', '/runs')")
    assert (done.returncode, done.stderr) == (2, "his2lip: is a directory (/runs).\n")
    assert "Traceback" in _main_that_raises("PermissionError(13, 'Denied', '/runs')", "--debug").stderr


def test_a_benchmark_that_could_not_keep_its_results_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = his2lip("benchmark", "benchmarks/zero_shot.yaml", f"storage={tmp_path}/file", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/file" in done.stderr
    assert "set storage to a folder that you can write to" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("--debug",)])
@pytest.mark.parametrize("kind", ["RuntimeError", "sys.modules['his2lip.errors'].DatasetError"])
def test_no_error_that_ends_a_command_shows_the_secrets_of_an_address(
    kind: str, arguments: tuple[str, ...]
) -> None:
    done = _main_that_raises(f"{kind}('s3://KEY:SECRET@bucket/x is gone')", *arguments)
    assert done.returncode in (1, 2)
    assert "s3://KEY:***@bucket/x is gone" in done.stderr
    assert "SECRET" not in done.stderr


def test_an_error_of_ours_keeps_its_traceback_and_ends_with_1() -> None:
    done = _main_that_raises("KeyError('ours')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_ui_on_a_port_in_use_is_refused_and_announces_nothing(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = his2lip("ui", "--port", str(port), "--store", f"sqlite:///{tmp_path}/mlflow.db")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_of_the_ui_ends_with_it_also_where_its_terminal_is_closed(how: signal.Signals) -> None:
    server = "print('up', flush=True); import subprocess; subprocess.run(['sleep', '60'])"
    script = (
        "import signal, sys; from his2lip.cli import ui\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # where the tests run under nohup, it is ignored
        f"with ui._running([sys.executable, '-c', {server!r}]) as process:\n"
        "    print(process.pid, flush=True)\n"
        "    process.wait()"
    )
    command = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    told = [command.stdout.readline().strip() for _ in range(2)]
    (group,) = (int(line) for line in told if line != "up")
    command.send_signal(how)
    assert command.wait(30) == 128 + how
    with contextlib.suppress(ProcessLookupError):
        for _ in range(300):  # the system may take a moment to take killed processes away
            os.killpg(group, 0)
            time.sleep(0.1)
        pytest.fail("the server is still there")


def test_the_ui_of_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = his2lip("ui", "--store", f"sqlite:///{tmp_path}/typo/mlflow.db", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no MLflow store here" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "ui --cluster cluster.yaml *--study=s",
        "ui --cluster cluster.yaml *--store=sqlite:///s.db",
        "ui --study s *--store=sqlite:///s.db",
        "models promote runs/train/x/best --alias champion *--force",
        "models promote runs/train/x/best --alias champion *--by=mean",
        "report b --verify *--samples=s",
        "report b --verify *--baseline=tiny",
        "report b images --verify *--out=o",
        "captions merge p copy *--reviewer=ann",
        "captions merge p copy *--allowed=1",
        "prompts import constants.py *--out=o.yaml",
    ],
)
def test_an_option_that_nothing_would_use_is_refused(line: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from his2lip.errors import ConfigError

    (option,) = re.findall(r"\*(--[a-z-]+)", line)
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, line.replace("*", "").split(), catch_exceptions=False)
    assert refused.value.key == option


@pytest.mark.parametrize(
    "text",
    ["README.md", "docs/cluster.md", "tune/README.md", "train/train_tiny.yaml", "tune/loss_weights.yaml"],
)
def test_options_in_the_pages_are_options_of_the_commands(text: str) -> None:
    root = typer.main.get_command(app)
    known = {path: _options_of(root, path) for path in _commands(root)}
    lines = (Path(__file__).parent.parent / text).read_text().replace("\\\n", " ").splitlines()
    for line in lines:
        words = line.split("his2lip ", 1)[-1].split() if "his2lip " in line else []
        path = max((p for p in known if tuple(words[: len(p)]) == p), key=len)
        for word in words:
            option = word.strip("`.,;:)|").partition("=")[0]
            if path and re.fullmatch(r"--[a-z][a-z-]+", option):
                assert option in known[path], f"{text}: {line.strip()}"


def _options_of(command: Any, path: tuple[str, ...]) -> set[str]:
    for name in path:
        command = command.commands[name]
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize("place", ["folder", "file/rows.csv", "/proc/rows.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    lines = (
        ("classify", "file", "--model", "tiny", "--csv", place),
        ("retrieve", "brown", "--model", "tiny", "--index", "nowhere", "--page", place),
        ("calibrate", "tiny", "--shards", "nowhere", "--out", place),
    )
    for line in lines:
        ended = his2lip(*line, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, ""), line[0]
        assert f"({place})" in ended.stderr, "not the model or the index, which are read later"
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (("classify", "a.png", "--model", "tiny", "--csv", "./a.png"), "--csv"),
        (("classify", ".", "--model", "tiny", "--csv", "link"), "--csv"),
        (("classify", "a.png", "--model", "tiny", "--calibration", "c.json", "--csv", "c.json"), "--csv"),
        (("retrieve", "a.png", "--model", "tiny", "--index", "nowhere", "--page", "a.png"), "--page"),
        (("retrieve", "nuclei", "--model", "tiny", "--index", "d", "--csv", "r", "--page", "./r"), "--page"),
        (("calibrate", "tiny", "--shards", "nowhere", "--prompts", "c.json", "--out", "c.json"), "--out"),
        (("prompts", "import", "c.json", "--name", "x", "--out", "c.json"), "--out"),
        (("data", "prepare", "captions", "--root", ".", "--out", "Tumor/Ki67.txt"), "--out"),
    ],
)
def test_an_output_does_not_replace_a_file_that_is_read_or_another_output(
    line: tuple[str, ...], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ("a.png", "c.json", "Tumor/Ki67.txt")
    Path("Tumor").mkdir()
    for name in files:
        Path(name).write_text("precious")
    Path("link").symlink_to("a.png")
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, line, catch_exceptions=False)
    assert refused.value.key == key
    assert [Path(name).read_text() for name in files] == ["precious"] * 3


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (("captions", "draft", "p", "--shards", "nowhere", "--model", "tiny", "--root", "lost"), "--root"),
        (("models", "promote", "tiny", "--alias", "a", "--storage", "lost"), "--storage"),
    ],
)
def test_a_missing_folder_that_would_only_leave_things_out_is_refused(
    line: tuple[str, ...], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, line, catch_exceptions=False)
    assert (refused.value.key, str(refused.value.where)) == (key, "lost")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (("train", "train/demo_train.yaml", "storage=/proc/x"), "storage"),
        (("tune", "tune/demo_sweep.yaml", "storage=/proc/x"), "storage"),
        (("demo", "--out", "/proc/x"), "--out"),
        (("prompts", "import", "nowhere.py", "--name", "x", "--out", "/proc/x/a.yaml"), "--out"),
    ],
)
def test_a_folder_that_even_root_cannot_create_is_refused_before_the_work(
    line: tuple[str, ...], key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, line, catch_exceptions=False)
    assert refused.value.key == key
    assert str(refused.value.where).startswith("/proc/x")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (("classify", "", "--model", "tiny"), "argument"),
        (("classify", "a.png", "--model", "tiny", "--csv="), "--csv"),
        (("data", "prepare", "mihic", "--root", "", "--out", "out"), "--root"),
        (("gc", "--storage", "", "--remove"), "--storage"),
    ],
)
def test_an_empty_value_is_refused_and_does_not_mean_the_present_folder(
    line: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").touch()
    ended = his2lip(*line, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1
    assert named in ended.stderr
    assert "empty" in ended.stderr


def test_an_output_that_is_a_link_into_a_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "lost.csv").symlink_to(tmp_path / "nowhere/rows.csv")
    (tmp_path / "new.csv").symlink_to(tmp_path / "rows.csv")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for name, folders in (("lost.csv", False), ("lost", True), ("lost/below", True), ("lost/a.csv", False)):
        with pytest.raises(ConfigError) as refused:
            check_outputs({"--out": tmp_path / name}, folders=folders)
        assert refused.value.key == "--out"
    check_outputs({"--out": tmp_path / "new.csv"})


def test_slides_are_not_read_before_the_folder_of_their_heat_maps_is_known_to_be_writable(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    ended = his2lip("classify", "file", "--slide", "--model", "nowhere", "--out", "file/maps", cwd=tmp_path)
    assert (ended.returncode, ended.stdout, "(file/maps)" in ended.stderr) == (2, "", True), ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_calibrate_refuses_prompts_that_the_staining_of_a_biomarker_would_not_use(tmp_path: Path) -> None:
    line = ("calibrate", "tiny", "--shards", "nowhere", "--prompts", "mine.yaml", "--biomarker", "Ki67")
    ended = his2lip(*line, cwd=tmp_path)
    assert (ended.returncode, "--prompts is for the tissue type" in ended.stderr) == (2, True), ended.stderr


def test_a_query_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    data = his2lip("data", "synthesize", "--out", "d", "--datasets", "hnscc", "--scale", "0.02", cwd=tmp_path)
    assert data.returncode == 0, data.stderr
    ended = his2lip("retrieve", "empty.png", "--model", "tiny", "--index", "d/hnscc", cwd=tmp_path)
    assert (ended.returncode, "(empty.png)" in ended.stderr) == (2, True)


def test_a_folder_that_does_not_exist_any_more_is_one_sentence(tmp_path: Path) -> None:
    script = (
        "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    (tmp_path / "gone").mkdir()
    line = [sys.executable, "-c", script, "-m", "his2lip", "doctor"]
    to = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(line, cwd=tmp_path / "gone", env=to, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


def test_an_output_that_can_be_no_path_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        check_outputs({"storage": Path("a\0b")}, folders=True)
    assert refused.value.key == "storage"
