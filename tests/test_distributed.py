"""The scripts for clusters, and the calculation in docs/distributed.md."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.test_docs import check_training
from vig_jax.train.launch import STOPPED_STATUS
from vig_jax.train.processes import find_member
from vig_jax.train.supervise import LOST_STATUS

DOCS = Path(__file__).parents[1] / "docs"
SBATCH = DOCS / "distributed" / "train.sbatch"
JOBSET = DOCS / "distributed" / "jobset.yaml"
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")  # of an object of Kubernetes (RFC 1123)


def options(words):
    return dict(w.removeprefix("--").partition("=")[::2] for w in words if w.startswith("--"))


def test_sbatch_script():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    text = SBATCH.read_text()
    header = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert header.keys() >= {"nodes", "gpus-per-node", "signal", "requeue", "time"}
    assert header["ntasks-per-node"] == "1"  # so that one process has all GPUs of a host
    code = re.search(r"^srun (.*?) \|\|", text.replace("\\\n", " "), re.MULTILINE)[1]
    words = shlex.split(code)
    assert words[:2] == [".venv/bin/python", "train.py"]
    check_training([w for w in words if w.startswith("--config")], str(SBATCH))
    variables = {"SLURM_STEP_TASKS_PER_NODE": f"1(x{header['nodes']})"}
    assert find(variables, options(words)).all_devices
    requeued = re.search(r"^ *([\d |]+)\)$", text, re.MULTILINE)[1]
    assert set(map(int, requeued.split("|"))) == {LOST_STATUS, STOPPED_STATUS, 137}


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (76, 3, True), (75, 100, False)],
)
def test_sbatch_script_requeues_what_can_continue(tmp_path, status, restarts, requeued):
    for name, code in {"srun": f"exit {status}", "scontrol": f"echo $* > {tmp_path}/log"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    environment["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run([shutil.which("bash"), SBATCH], env=environment, check=False)
    assert done.returncode == status
    assert (tmp_path / "log").exists() == requeued
    assert not requeued or (tmp_path / "log").read_text() == "requeue 7\n"


def find(environment, given):
    return find_member(
        distributed="distributed" in given or None,
        coordinator=given.get("coordinator"),
        num_processes=int(given["num_processes"]) if "num_processes" in given else None,
        process_id=None,
        environment=environment,
    )


def test_jobset_manifest():
    manifest = yaml.safe_load(JOBSET.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    (group,) = manifest["spec"]["replicatedJobs"]
    assert group["replicas"] == 1
    for name in (manifest["metadata"]["name"], group["name"]):
        assert NAME.fullmatch(name)
    job = group["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > 30  # Kubernetes' default
    (container,) = pod["containers"]
    given = options(container["command"])
    assert container["command"][:2] == ["python", "train.py"]
    check_training([w for w in container["command"] if w.startswith("--config")], str(JOBSET))
    assert int(given["num_processes"]) == job["parallelism"] == job["completions"]

    # What Kubernetes would put into the environment of the second pod.
    names = {"jobset-name": manifest["metadata"]["name"], "replicatedjob-name": group["name"]}
    annotations = {f"jobset.sigs.k8s.io/{key}": value for key, value in names.items()}
    environment = {"JOB_COMPLETION_INDEX": "1"}
    for variable in container["env"]:
        path = variable["valueFrom"]["fieldRef"]["fieldPath"]
        key = re.fullmatch(r"metadata\.annotations\['(.*)'\]", path)[1]
        environment[variable["name"]] = annotations[key]
    member = find(environment, given)
    assert member.coordinator == "vig-b-hosts-0-0.vig-b:55527"
    assert (member.count, member.index, member.all_devices) == (2, 1, True)
    (port,) = container["ports"]
    assert member.coordinator.endswith(f":{port['containerPort']}")

    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    shared = next(name for name, path in mounts.items() if path == "/dev/shm")
    assert volumes[shared]["emptyDir"]["medium"] == "Memory"
    for key in ("config.data.path", "workdir"):
        assert any(given[key].startswith(f"{path}/") for path in mounts.values()), key


def read(page):
    return (DOCS / page).read_text()


def test_calculated_exchange():
    """The rows of the table follow from the assumptions above it."""
    rows = re.findall(r"^\| (ViG-.) \| (.*) \|$", read("distributed.md"), re.MULTILINE)
    training = r"^\| (ViG-.) \| training \| 224 \| 256 \| [\d,]+ \| ([\d.]+)"
    steps = dict(re.findall(training, read("performance.md"), re.MULTILINE))
    assert len(rows) == 9
    for name, cells in rows:
        values = [float(cell.removesuffix(" %")) for cell in cells.split(" | ")]
        megabytes, gpus, exchange, step, share, images = values
        card = re.search(rf"`{name.lower().replace('-', '_')}` \| ([\d,]+)", read("models.md"))
        gradient = 4 * int(card[1].replace(",", ""))
        hosts = gpus / 8
        within = 2 * 7 / 8 * gradient / 450e9
        between = 2 * (hosts - 1) / hosts * gradient / 8 / 50e9
        milliseconds = 1000 * (within + between)
        assert megabytes == pytest.approx(gradient / 1e6, abs=0.05)
        assert exchange == pytest.approx(milliseconds, abs=0.005)
        assert step == float(steps[name])
        assert share == pytest.approx(100 * milliseconds / step, abs=0.05)
        assert images == pytest.approx(256 * milliseconds / (0.1 * step), abs=0.5)
