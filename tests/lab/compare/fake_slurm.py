"""`fake_slurm.py COMMAND ARGUMENTS`: what submitit needs of sbatch, srun, sacct, scancel and scontrol, on this machine.

Each job is a folder of $FAKE_SLURM: `script`, `group` and `task` (process ids), `cancelled`, `requeued`. A file `full`
beside the jobs keeps new ones in the queue. A signal reaches the task alone, not what the task started.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    if "--partition=nowhere" in text:
        sys.exit("sbatch: invalid partition specified: nowhere")
    number = 1
    while True:
        with suppress(FileExistsError):
            (STATE / str(number)).mkdir()
            break
        number += 1
    shutil.copy(script, STATE / str(number) / "script")
    if not (STATE / "full").exists():
        begin(str(number))
    print(f"Submitted batch job {number}")


def begin(job: str) -> None:
    context = {
        "SLURM_JOB_ID": job,
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_NODEID": "0",
        "SLURM_LOCALID": "0",
    }
    group = subprocess.Popen(
        ["bash", str(STATE / job / "script")],
        env={**os.environ, **context, "SLURM_JOB_NUM_NODES": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (STATE / job / "group").write_text(str(group.pid))


def srun(*arguments: str) -> None:
    job = os.environ["SLURM_JOB_ID"]
    names = [text.replace("%j", job).replace("%t", "0") for text in arguments]
    for flag, number in (("--output", 1), ("--error", 2)):
        os.dup2(os.open(names[names.index(flag) + 1], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    (STATE / job / "task").write_text(str(os.getpid()))
    command = names[names.index("--error") + 2 :]
    os.execvp(command[0], command)


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for job in sorted({text for text in arguments if text.isdigit()}):
        print(f"{job}|{state(STATE / job)}|here")


def state(job: Path) -> str:
    if (job / "cancelled").exists():
        return "CANCELLED"
    if not (job / "group").exists():
        return "PENDING"
    process = Path("/proc") / (job / "group").read_text() / "stat"
    alive = process.exists() and process.read_text().rpartition(")")[2].split()[0] != "Z"
    return "RUNNING" if alive else "COMPLETED"


def scancel(job: str) -> None:
    (STATE / job / "cancelled").touch()
    if (STATE / job / "group").exists():
        with suppress(ProcessLookupError):
            os.killpg(int((STATE / job / "group").read_text()), signal.SIGKILL)


def scontrol(verb: str, job: str) -> None:
    assert verb == "requeue"
    (STATE / job / "requeued").touch()
    begin(job)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
