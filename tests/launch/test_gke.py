"""launch/gke.sh: the JobSet that it would apply."""

import pytest
import yaml

ARGUMENTS = (
    "--config=configs/v2_vitg.py",
    "--workdir=/mnt/vmae/my run",
    "--config.masking.encoder=('tube',0.75)",
    "--x=$NAME & $(HOME) # é: \\n",
)
OPTIONS = {
    "name": "run1",
    "image": "europe-docker.pkg.dev/p/r/vmae_jax:tpu",
    "claim": "videos",
    "accelerator": "tpu-v6e-slice",
    "topology": "4x8",
}


def _options(**changes):
    return [f"--{name}={value}" for name, value in (OPTIONS | changes).items() if value is not None]


@pytest.fixture
def jobset(launch):
    result = launch("gke.sh", "--dry_run", *_options(), "--", *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    first, *text, last = result.stdout.splitlines()
    assert (first, last) == ("kubectl apply --filename=- <<'END'", "END")
    return yaml.safe_load("\n".join(text))


def test_fields_are_filled_in(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    train = pod["containers"][0]
    assert jobset["metadata"]["name"] == "run1"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 10
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (8, 8, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert train["image"] == OPTIONS["image"]
    assert train["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "videos"}


def test_arguments_arrive_whole(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    args = job["template"]["spec"]["containers"][0]["args"]
    # Kubernetes makes $( of $$(, and would replace what stands between the brackets otherwise.
    assert [word.replace("$$(", "$(") for word in args] == ["--platform=tpu", *ARGUMENTS]
    assert args[-1].count("$$(HOME)") == 1


def test_a_preemption_and_a_saved_stop_are_not_counted_as_failures(jobset):
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {
        "name": "takenAwayOrSaved",  # required; letters, digits and _
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    preempted, saved = job["podFailurePolicy"]["rules"]
    assert preempted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert saved["onExitCodes"]["values"] == [143]
    assert saved["onExitCodes"]["containerName"] == "train"
    assert job["template"]["spec"]["containers"][0]["name"] == "train"
    # Kubernetes accepts a podFailurePolicy with this alone.
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_job_is_valid_and_the_jobset_around_it_has_only_known_fields(jobset):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    replicated = jobset["spec"]["replicatedJobs"][0]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "slice"},
        "spec": replicated["template"]["spec"],
    }
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    # JobSet is no part of Kubernetes, so no schema of it is at hand. Source: its API, v1alpha2.
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert jobset["spec"].keys() == {"failurePolicy", "replicatedJobs"}
    assert jobset["spec"]["failurePolicy"].keys() == {"maxRestarts", "rules"}
    assert replicated.keys() == {"name", "replicas", "template"}


def test_it_is_handed_to_kubectl(launch, programs, tmp_path):
    calls = programs(kubectl='cat >"$HOME/applied"')
    result = launch("gke.sh", *_options(), "--", *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    assert calls.read_text() == "kubectl\tapply\t--filename=-\n"
    printed = launch("gke.sh", "--dry_run", *_options(), "--", *ARGUMENTS).stdout
    assert (tmp_path / "applied").read_text() in printed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"claim": None}, "--claim=... is missing"),
        ({"name": "My_run"}, "--name=My_run: Kubernetes wants small letters"),
        ({"topology": "16"}, "--topology=16 is not of the form 4x4"),
        ({"topology": "3x3"}, "has 9 chips, which hosts of 4 (--chips_per_host) cannot make up"),
        ({"chips_per_host": "0"}, "hosts of 0"),
        ({"restarts": "-1"}, "--restarts=-1 is not a whole number"),
    ],
)
def test_mistakes_are_named(launch, changes, words):
    result = launch("gke.sh", "--dry_run", *_options(**changes), "--", *ARGUMENTS)
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == ""
