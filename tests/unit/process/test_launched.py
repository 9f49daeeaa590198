"""Rank facts by the variables that each launcher sets."""

import os

import pytest

from ccts_dist.errors import ConfigError
from ccts_dist.process.launched import adopt_launcher, first_host
from ccts_dist.ranks import Ranks, rank_facts

SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_NTASKS": "7",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") or (
            name.startswith(
                ("OMPI_", "PMI_", "MPI_", "MV2_", "SLURM_", "CROSS_", "LOCAL_SIZE", "GROUP_", "ACCELERATE_")
            )
        ):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("reported", "adopted"),
    [
        pytest.param(
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            id="mpirun of Open MPI on one host",
        ),
        pytest.param(
            {
                "OMPI_COMM_WORLD_RANK": "5",
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
                "MASTER_ADDR": "node1",
            },
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node1"}
            | {"MASTER_PORT": "29500"},
            id="mpirun -x MASTER_ADDR on two hosts",
        ),
        pytest.param(
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            id="mpiexec of MPICH",
        ),
        pytest.param(
            {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "0"}
            | {"MV2_COMM_WORLD_LOCAL_SIZE": "2"},
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            id="mpirun of MVAPICH",
        ),
        pytest.param(
            SLURM,
            {"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "gpu07", "MASTER_PORT": str(20_000 + 1_234_567 % 20_000)},
            id="bare srun on uneven hosts",
        ),
        pytest.param(
            SLURM | {"PMI_RANK": "5", "PMI_SIZE": "7"},
            {"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "gpu07", "MASTER_PORT": str(20_000 + 1_234_567 % 20_000)},
            id="srun --mpi=pmi2",
        ),
        pytest.param(
            SLURM | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {}, id="torchrun below srun has its own word"
        ),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            {},
            id="a batch script that runs a command by itself",
        ),
        pytest.param(
            SLURM | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, {}, id="a shell within salloc of many tasks"
        ),
        pytest.param({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "job-master-0"}, {}, id="PyTorchJob"),
        pytest.param({}, {}, id="nobody"),
    ],
)
def test_variables_of_a_launcher_become_those_of_torch(reported, adopted):
    environ = dict(reported)
    adopt_launcher(environ)
    assert environ == reported | adopted
    adopt_launcher(environ)
    assert environ == reported | adopted, "a second time changes nothing"


def test_bare_srun_makes_ranks_and_not_so_many_trainings(monkeypatch: pytest.MonkeyPatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")  # so that monkeypatch takes away what is set
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert rank_facts() == Ranks(rank=5, num_ranks=7, local_rank=1, num_nodes=1)
    assert os.environ["MASTER_ADDR"] == "gpu07"


@pytest.mark.parametrize("flag", ["True", "true", "1"])
def test_accelerate_launch_with_cpu_hides_the_gpus(flag):
    environ = {"ACCELERATE_USE_CPU": flag, "CUDA_VISIBLE_DEVICES": "0,1"}
    adopt_launcher(environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == ""
    environ = {"ACCELERATE_USE_CPU": "False", "CUDA_VISIBLE_DEVICES": "0,1"}
    adopt_launcher(environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-09,12],login", "gpu07"),
        ("login,gpu[1-2]", "login"),
        ("a[1-2]b[3,4]", "a1b3"),
        ("one", "one"),
        ("n[003]", "n003"),
    ],
)
def test_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def test_variable_that_is_no_number_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match=r"^environment variable WORLD_SIZE = 'two' is no whole number\."):
        rank_facts()


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ({"RANK": "1"}, "RANK = '1' is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = '2' is set and RANK is not"),
        ({"MASTER_PORT": "many"}, "MASTER_PORT = 'many' is no whole number"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT = 65536: must be 0 to 65535"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 and WORLD_SIZE = 2: the rank must be below"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK = '1': a launcher has started several ranks, and nothing reports how many"),
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID = '3': a launcher has started several ranks"),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
            "WORLD_SIZE = '1' and OMPI_COMM_WORLD_SIZE = '2': each process would train alone",
        ),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "many"}, "WORLD_SIZE = 'many' is no whole number"),
    ],
)
def test_no_rank_of_several_trains_alone_in_silence(reported, words, monkeypatch: pytest.MonkeyPatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.setenv(name, "")  # so that monkeypatch takes away what is set
        monkeypatch.delenv(name)
    for name, value in reported.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^environment variables? .*{words}"):
        rank_facts()


@pytest.mark.parametrize(
    "reported",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},  # a batch script
        # deepspeed --num_gpus 1 as each of four tasks: four runs
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"},
    ],
)
def test_rank_that_was_started_alone_trains_alone(reported, monkeypatch: pytest.MonkeyPatch):
    for name, value in reported.items():
        monkeypatch.setenv(name, value)
    assert rank_facts() == Ranks()


def test_variables_of_slurm_that_are_no_numbers_are_passed_over():
    facts = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "x", "SLURM_JOB_ID": "5_3"}
    adopt_launcher(facts)
    assert (facts["RANK"], facts["MASTER_PORT"]) == ("1", "29500")


def test_flux_and_jsm_start_ranks():
    for rank, size in (("FLUX_TASK_RANK", "FLUX_JOB_SIZE"), ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE")):
        environ = {rank: "1", size: "2", "MASTER_ADDR": "node1"}
        adopt_launcher(environ)
        assert (environ["RANK"], environ["WORLD_SIZE"]) == ("1", "2")
