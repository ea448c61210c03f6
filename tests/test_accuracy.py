"""Scores and baselines: hand-made sequences for the arithmetic, small footage by FFmpeg for the rules we are measured
against."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from pipeline import accuracy, baselines, trial, truth
from pipeline.accuracy import IncidentScore, Opened, Score, score_frames, score_incidents, track
from pipeline.model import InputError, UnavailableError
from pipeline.truth import Fault, Truth
from tests.support import plain_frame

pytestmark = pytest.mark.any_python

T, F, N = True, False, None


@pytest.mark.parametrize(
    ("verdicts", "known", "expected"),
    [
        pytest.param([T, T, F, F], [T, T, F, F], Score(hits=2, right=2), id="all right"),
        pytest.param([T, T, F, F], [N, T, N, F], Score(hits=1, right=1), id="null truth is left out"),
        pytest.param([N, N], [T, F], Score(misses=1, right=1, unknown=2), id="unknown is not raised, and counted"),
        pytest.param([N, T], [N, N], Score(), id="unknown where nobody knows"),
        pytest.param([T, T, T], [F, F, F], Score(false_positives=3, alarms=1), id="a run is one alarm"),
        pytest.param([T, F, T], [F, F, F], Score(false_positives=2, right=1, alarms=2), id="two alarms"),
        pytest.param([T, T, T], [F, N, F], Score(false_positives=2, alarms=1), id="null does not interrupt"),
        pytest.param([T, T, T], [F, T, F], Score(hits=1, false_positives=2, alarms=2), id="what is right does"),
        pytest.param([], [], Score(), id="nothing"),
    ],
)
def test_frames_are_counted(verdicts: list[bool | None], known: list[bool | None], expected: Score) -> None:
    score = score_frames(verdicts, known, 5)
    assert score == expected._replace(hours=len(known) / 5 / 3600 if set(known) - {N} else 0)


def test_one_verdict_per_frame() -> None:
    with pytest.raises(ValueError):
        score_frames([T], [T, F], 5)


def test_precision_recall_and_f1() -> None:
    score = Score(hits=6, false_positives=2, misses=4, right=8, unknown=5, alarms=3, hours=0.5)
    assert (score.precision, score.recall, score.unknown_share) == (0.75, 0.6, 0.25)
    assert score.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert score.alarms_per_hour == 6
    assert score.plus(score).f1 == score.f1


def test_what_cannot_be_said_is_none() -> None:
    nothing = Score(right=5)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.alarms_per_hour) == (None, None, None, 0.0)
    assert Score().unknown_share is None


def case(frames: int, *faults: Fault) -> Truth:
    return Truth(fps=1, freeze=(F,) * frames, black=(F,) * frames, faults=faults)


BLACK_12_S, FREEZE_32_S = Fault("black", "black", 5, 16), Fault("freeze", "noise", 5, 36)


@pytest.mark.parametrize(
    ("fault", "opened", "expected"),
    [
        pytest.param(BLACK_12_S, Opened("black", 5, 16), IncidentScore(hits=1), id="found"),
        pytest.param(BLACK_12_S, Opened("black", 16, 20), IncidentScore(hits=1), id="found at its end"),
        pytest.param(BLACK_12_S, Opened("black", 17, 20), IncidentScore(misses=1, false=1), id="too late"),
        pytest.param(BLACK_12_S, Opened("freeze", 5, 16), IncidentScore(misses=1), id="another condition"),
        pytest.param(Fault("black", "zap", 5, 13), Opened("freeze", 0, 1), IncidentScore(), id="may be missed"),
        pytest.param(Fault("black", "zap", 5, 13), Opened("black", 5, 13), IncidentScore(), id="may be found"),
        pytest.param(Fault("black", "zap", 5, 9), Opened("black", 5, 9), IncidentScore(false=1), id="too short"),
        pytest.param(FREEZE_32_S, Opened("black", 5, 16), IncidentScore(), id="a fault explains another condition"),
    ],
)
def test_incidents_are_counted(fault: Fault, opened: Opened, expected: IncidentScore) -> None:
    assert score_incidents([opened], case(60, fault), "black")[:3] == expected[:3]


def test_an_incident_where_nobody_knows_is_neither_right_nor_wrong() -> None:
    unsure = Truth(fps=1, freeze=(F,) * 60, black=(F,) * 20 + (N,) * 20 + (F,) * 20)
    assert score_incidents([Opened("black", 20, 39)], unsure, "black").false == 0
    assert score_incidents([Opened("black", 19, 39)], unsure, "black").false == 1


def test_the_tracker_of_the_service_opens_incidents_for_any_rule() -> None:
    black = [F] * 10 + [T] * 12 + [F] * 10
    freeze = [F] * 10 + [T] * 12 + [F] * 10
    assert track({"black": black, "freeze": freeze}, 1) == [Opened("black", 10, 21)]
    assert track({"black": [F] * 45, "freeze": [F] * 10 + [T] * 35}, 1) == [Opened("freeze", 10, 44)]
    assert track({"black": [F, T] * 20, "freeze": [F] * 40}, 1) == []


def test_lenient_truth_leaves_out_what_stands_by_right() -> None:
    strict = Truth(fps=5, freeze=(T, T, F, F, T), black=(F,) * 5, still=((0, 1),), pause=((3, 3),))
    assert strict.lenient().freeze == (N, N, F, N, T)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, r"truth\.json: No such file.*; a labelled case has its truth there"),
        ("{", r"truth\.json: .*truncated.*; see pipeline/truth\.py"),
        ('{"fps": 0, "freeze": [], "black": []}', r"truth\.json: .*fps"),
        ('{"fps": 5, "freeze": [1], "black": [true]}', r"truth\.json: .*freeze"),
        ('{"fps": 5, "freeze": [true, null], "black": [true]}', "2 entries in freeze, 1 in black"),
        ('{"fps": 5, "freeze": [true], "black": [true], "still": [[0, 1]]}', r"\[0, 1\] is not within frames 0 to 0"),
        ('{"fps": 5, "freeze": [true], "black": [true], "frozen": []}', "frozen"),
    ],
)
def test_a_wrong_truth_is_refused_in_one_line(tmp_path: Path, text: str | None, error: str) -> None:
    if text is not None:
        (tmp_path / truth.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^[^\n]*{error}[^\n]*$"):
        truth.read(tmp_path)


def test_a_directory_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        truth.cases(tmp_path / "none")
    with pytest.raises(InputError, match="no case in it"):
        truth.cases(tmp_path)
    (tmp_path / "one").mkdir()
    truth.write(tmp_path / "one", case(3))
    assert truth.cases(tmp_path, "tuning") == {"one": case(3)}
    with pytest.raises(InputError, match="no case of split validation"):
        truth.cases(tmp_path, "validation")


# --- the rules we are measured against, on footage by FFmpeg: 3 s live, 4 s frozen, 3 s live, 4 s black, 2 s live ---

LIVE, FROZEN, AGAIN, BLACK, END = range(0, 15), range(15, 35), range(35, 50), range(50, 70), range(70, 80)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One labelled case; a freeze is true from its fourth picture on, the last live one being its first."""
    directory = tmp_path_factory.mktemp("footage")
    (directory / "one").mkdir()
    graph = (
        "testsrc2=r=5:d=3:s=320x180,tpad=stop_mode=clone:stop_duration=4[a];testsrc=r=5:d=3:s=320x180[b];"
        "color=black:r=5:d=4:s=320x180[c];testsrc2=r=5:d=2:s=320x180[d];[b]setsar=1,format=yuv420p[e];"
        "[a][e][c][d]concat=n=4,setpts=N/5/TB"
    )
    command = ["ffmpeg", "-v", "error", "-filter_complex", graph, "-q:v", "3", "-r", "5"]
    done = subprocess.run([*command, "capture_%09d.jpg"], cwd=directory / "one", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    freeze = [F] * 14 + [N] * 3 + [T] * 18 + [F] * 15 + [N] * 20 + [F] * 10
    black = [at in BLACK for at in range(80)]
    faults = (Fault("freeze", "bytes", 14, 34), Fault("black", "black", 50, 69))
    truth.write(directory / "one", Truth(fps=5, freeze=tuple(freeze), black=tuple(black), faults=faults))
    return directory


def test_every_rule_is_right_on_plain_footage(footage: Path) -> None:
    results = trial.judge_all(footage, truth.cases(footage), processes=1)
    for condition in truth.CONDITIONS:
        rules = results[0].scores[condition]
        for rule in (trial.STILLWATCH, trial.OLD, trial.UPSTREAM, trial.DEFAULTS[condition]):
            assert (rules[rule].f1, rules[rule].alarms) == (1.0, 0), (condition, rule, rules[rule])
    assert results[0].scores["freeze"][trial.OLD].hits == 18
    assert results[0].scores["black"][trial.OLD].hits == 20
    assert results[0].incidents["freeze"][trial.STILLWATCH][:3] == (0, 0, 0)  # 4 s: neither had to be found


def test_macroblocks_are_scored_where_somebody_looked_and_knows(footage: Path, tmp_path: Path) -> None:
    known = truth.read(footage / "one")
    assert trial.judge_case(footage / "one", known).scores["macroblocks"][trial.STILLWATCH] == Score()
    looked = msgspec.structs.replace(known, macroblocks=(F,) * 80)
    score = trial.judge_case(footage / "one", looked, [trial.STILLWATCH]).scores["macroblocks"][trial.STILLWATCH]
    assert (score.unknown, score.hours) == (0, 80 / 5 / 3600)
    assert 20 <= score.right <= 30  # a look each 0.4 s of 16, but for black, the start and what stands
    truth.write(tmp_path, looked)
    assert truth.read(tmp_path) == looked
    truth.write(tmp_path, msgspec.structs.replace(known, macroblocks=(F,) * 79))
    with pytest.raises(InputError, match="79 in macroblocks"):
        truth.read(tmp_path)


def test_ffmpeg_gives_one_verdict_per_frame_from_start_to_end(footage: Path) -> None:
    frames = [data for data, _ in trial.read_frames(footage / "one", truth.read(footage / "one"))]
    verdicts = baselines.ffmpeg_verdicts(frames, 5)
    black = [at in BLACK for at in range(80)]
    assert verdicts["black"]["pic_th=0.98 pix_th=0.1 d=2.0"] == black
    freeze = verdicts["freeze"]["n=0.001 d=2.0"]
    assert freeze[:15] == [F] * 14 + [T] and all(freeze[at] for at in (*FROZEN, *BLACK)) and not freeze[40]
    assert len(verdicts["freeze"]) == len(baselines.FREEZE_SETTINGS)
    cut = baselines.ffmpeg_verdicts(frames[:60], 5)  # black to the end
    assert cut["black"]["pic_th=0.98 pix_th=0.1 d=2.0"] == black[:60]


def test_ffmpeg_that_loses_a_frame_is_not_believed() -> None:
    with pytest.raises(UnavailableError, match="of 2 frames"):
        baselines.ffmpeg_verdicts([plain_frame(0), b"not a frame"], 5)


def test_frames_and_truth_must_fit(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "capture_000000001.jpg").write_bytes(plain_frame(0))
    with pytest.raises(InputError, match="1 frames, but truth of 2"):
        trial.read_frames(tmp_path / "case", case(2))
    (tmp_path / "case" / "capture_000000002.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match="a frame cannot be read: truncated"):
        trial.read_frames(tmp_path / "case", case(2))


def test_groups_add_up(footage: Path) -> None:
    results = trial.judge_all(footage, truth.cases(footage), [trial.STILLWATCH], processes=1)
    again = [*results, results[0]._replace(truth=results[0].truth.lenient(), name="two")]
    assert trial.totals(again, "black")[trial.STILLWATCH].hits == 40
    assert set(trial.groups(again)) == {"cases (plain)", "all plain", "all"}
    assert trial.worst(again, "black") == []
    assert trial.best_settings(again, "black") is None
    assert trial.as_dict(again)["totals"]["all"]["black"][trial.STILLWATCH]["f1"] == 1.0


def test_the_old_rule_sees_what_it_was_made_for() -> None:
    old, upstream = baselines.OldRule(), baselines.UpstreamRule()
    grey = baselines.decode(plain_frame(0))
    for _ in range(3):
        assert old.judge(grey) == {"freeze": None, "black": True}
        assert upstream.judge(grey) == {"freeze": None, "black": True}
    assert old.judge(grey)["freeze"] is True and upstream.judge(grey)["freeze"] is True
    limited = baselines.decode(plain_frame(16))
    assert old.judge(limited) == {"freeze": False, "black": False}
    assert upstream.judge(limited) == {"freeze": False, "black": False}
    assert accuracy.total([Score(hits=1), Score(hits=2)]).hits == 3
