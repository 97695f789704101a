"""What Slurm prints, read: outputs of Slurm 22.05 as they were, and words of other versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.farm import slurm
from grange.farm.errors import SchedulerRefused
from grange.farm.slurm import Job
from grange.farm.transport import Completed


def printed(text: str, *, status: int = 0, error: str = "") -> Completed:
    return Completed(status, text.encode(), error.encode())


@pytest.mark.parametrize(
    "text",
    [
        "17\n",
        "17;lumi\n",
        "Submitted batch job 17\n",
        "Submitted batch job 17 on cluster lumi\n17\n",
        "Welcome to lumi, 4 jobs are waiting\n17\n",
    ],
)
def test_the_number_of_a_job(text: str) -> None:
    assert slurm.read_submitted("lumi", printed(text)) == "17"


_FAILED = "sbatch: error: Batch job submission failed: "
_QOS = _FAILED + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("error", "retryable", "unanswered"),
    [
        ("sbatch: error: invalid partition specified: nope\n" + _FAILED + "Invalid partition name specified",
         False, False),
        (_FAILED + "Invalid account or account/partition combination specified", False, False),
        (_FAILED + "Invalid qos specification", False, False),
        ("sbatch: error: Invalid generic resource (gres) specification", False, False),
        ("sbatch: error: Memory specification can not be satisfied\n" + _FAILED
         + "Requested node configuration is not available", False, False),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit\n" + _QOS, False, False),
        ("sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\" for more information", False, False),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\n" + _QOS, True, False),
        ("sbatch: error: AssocGrpSubmitJobsLimit\n" + _QOS, True, False),
        (_FAILED + "Socket timed out on send/recv operation", True, True),
        (_FAILED + "Zero Bytes were transmitted or received", True, True),
        (_FAILED + "Unable to contact slurm controller (connect failure)", True, False),
        (_FAILED + "Required partition not available (inactive or drain)", True, False),
        ("sbatch: error: Munge encode failed: Failed to access \"/run/munge/munge.socket.2\"", True, False),
    ],
)  # fmt: skip
def test_why_a_job_was_not_taken(error: str, retryable: bool, unanswered: bool) -> None:
    with pytest.raises(SchedulerRefused) as caught:
        slurm.read_submitted("lumi", printed("", status=1, error=error))
    assert (caught.value.retryable, caught.value.unanswered) == (retryable, unanswered)
    assert str(caught.value).startswith("lumi: sbatch: ")
    assert error.splitlines()[-1].removeprefix("sbatch: error: ") in str(caught.value)


def test_a_submission_without_a_number_is_none() -> None:
    with pytest.raises(SchedulerRefused, match="sbatch: ended with status 0"):
        slurm.read_submitted("lumi", printed(""))


# squeue --noheader --array --states=all --name=…
QUEUE = """\
Last login: Tue Nov 24 from somewhere@else
grange-job@3@PENDING@Dependency@2@4@0:00@2:00@grange-abc
grange-job@12_2@PENDING@None@2@4@0:00@UNLIMITED@grange-abc
grange-job@5@CANCELLED@PartitionConfig@40@80@0:00@2:00@grange-abc
grange-job@17@RUNNING@None@2@8@1-02:03:04@59:51@grange-305d119a33a0
grange-job@18@COMPLETED@None@2@4@0:20@1:40@grange-abc
grange-job@8@FAILED@BadConstraints@2@4@0:00@2:00@grange-abc
grange-job@13@FAILED@JobLaunchFailure@1K@2.5K@0:00@1:00@a name@with that
grange-job@14@NEW_WORD@Nodes required are DOWN, DRAINED@1@2@INVALID@N/A@x
"""


def test_the_queue() -> None:
    assert slurm.read_queue("lumi", printed(QUEUE)) == [
        Job("3", "grange-abc", "queued", "PENDING", "Dependency", 2, 4, 0, 120),
        Job("12_2", "grange-abc", "queued", "PENDING", "", 2, 4, 0, None),
        Job("5", "grange-abc", "cancelled", "CANCELLED", "PartitionConfig", 40, 80, 0, 120),
        Job("17", "grange-305d119a33a0", "running", "RUNNING", "", 2, 8, 93784, 3591),
        Job("18", "grange-abc", "ended", "COMPLETED", "", 2, 4, 20, 100),
        Job("8", "grange-abc", "failed", "FAILED", "BadConstraints", 2, 4, 0, 120),
        Job("13", "a name@with that", "failed", "FAILED", "JobLaunchFailure", 1024, 2560, 0, 60),
        Job("14", "x", "running", "NEW_WORD", "Nodes required are DOWN, DRAINED", 1, 2, 0, None),
    ]
    assert slurm.read_queue("lumi", printed("")) == []


def test_a_queue_that_does_not_answer_is_not_an_empty_one() -> None:
    error = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    with pytest.raises(SchedulerRefused, match="squeue: slurm_load_jobs error") as caught:
        slurm.read_queue("lumi", printed("", status=1, error=error))
    assert caught.value.retryable


def test_what_became_of_jobs() -> None:
    text = (
        "2|COMPLETED|0:0|00:00:20|2|4|grange-a\n3|CANCELLED by 1000|0:15|1-00:00:00|1|2|grange-b\n"
        "4|FAILED|2:0|00:00:01|1|2|grange-c|d\n5|NODE_FAIL|1:0|00:10:00|4|8|grange-e\nnot a job\n|||||||\n"
    )
    assert slurm.read_ended(printed(text)) == [
        Job("2", "grange-a", "ended", "COMPLETED", "", 2, 4, 20, None),
        Job("3", "grange-b", "cancelled", "CANCELLED", "exit code 0:15", 1, 2, 86400, None),
        Job("4", "grange-c|d", "failed", "FAILED", "exit code 2:0", 1, 2, 1, None),
        Job("5", "grange-e", "failed", "NODE_FAIL", "exit code 1:0", 4, 8, 600, None),
    ]
    assert slurm.read_ended(printed("", status=1, error="Slurm accounting storage is disabled")) == []


def test_cancelling_what_has_ended_is_no_error() -> None:
    for error in (
        "scancel: error: Kill job error on job id 999: Invalid job id specified",
        "scancel: error: Kill job error on job id 7: Job/step already completing or completed",
    ):
        slurm.read_cancelled("lumi", printed("", status=1, error=error))
    error = "scancel: error: Kill job error on job id 7: Access/permission denied"
    with pytest.raises(SchedulerRefused, match="Access/permission denied"):
        slurm.read_cancelled("lumi", printed("", status=1, error=error))


def test_what_is_asked_passes_a_restricted_account() -> None:
    asked = [
        slurm.submit_argv("job.sh"),
        slurm.queue_argv(["grange-a", "grange-b"], user="rita"),
        slurm.ended_argv(["1", "2"]),
    ]
    assert [argv[0] for argv in asked] == ["sbatch", "squeue", "sacct"]
    for word in (word for argv in asked for word in argv):
        assert not set(word) & set("|;&'\"\\$` ")
        assert ".." not in word


def test_a_queue_is_never_asked_for_everybodys_jobs() -> None:
    with pytest.raises(ValueError, match="expected which jobs"):
        slurm.queue_argv()


@given(st.integers(1, 10**7))
def test_a_time_comes_back_as_it_was(seconds: int) -> None:
    assert slurm.parse_time(slurm.time_text(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:20", 20), ("59:51", 3591), ("1:02:03", 3723), ("1-02:03:04", 93784), ("2-12", 216000),
        ("1-00:30", 88200), ("90", 5400), ("UNLIMITED", None), ("N/A", None), ("INVALID", None), ("", None),
        ("1:2:3:4", None),
    ],
)  # fmt: skip
def test_times_of_slurm(text: str, seconds: int | None) -> None:
    assert slurm.parse_time(text) == seconds
