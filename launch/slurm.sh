#!/usr/bin/env bash
# A run on the nodes of a Slurm job, over as many jobs as it takes.
#
#   sbatch --nodes 8 --ntasks-per-node 4 --gpus-per-node 4 --cpus-per-task 8 --time 24:00:00 \
#       launch/slurm.sh launch/train.py --config RUN.toml
#   sbatch --nodes 4 --cpus-per-task 8 launch/slurm.sh launch/cache_teacher.py --teacher MODEL --shards SHARDS --out CACHE
#
# Submit it where the command would be run by hand: the working directory, the checkout and every folder that is named
# must be on storage that all nodes share. One task is one rank: --ntasks-per-node is ranks per node, with GPUs as many
# as GPUs. A rank wants four cores and more (--cpus-per-task): without it srun binds each to a single one. Leave
# --gpus-per-task out: ranks that see one GPU each train too, but NCCL then finds no direct way between them.
#
# Before the time is up Slurm signals this script, which asks the ranks for a complete checkpoint by a file STOP in the run
# folder. They exit with 75, the job queues itself again under the same number, and its next start goes on with
# --resume auto. So does a job that is preempted. To stop for good: scancel, or a STOP of your own; both leave a
# complete checkpoint, and submitting again with --resume auto goes on.
#
# Settings, from the environment of sbatch:
#   CCTS_PYTHON          the interpreter (default: .venv/bin/python here, else python)
#   CCTS_IFNAME          the network interface between the nodes (default: the one that leads to another node, and
#                        NCCL finds its own)
#   CCTS_MASTER_PORT     a port that is free on the first node (default: from the job's number)
#   CCTS_MAX_REQUEUES    how often the job may queue itself again (default: 100)
#   CCTS_WAIT_S          when the first rank has left, how long the others may take (default: 300); it must cover
#                        tracking.registered_model_name, which rank 0 does alone
#
# What sbatch's own options state goes before these:
#SBATCH --job-name=ccts
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.out
# One file for all starts of the job:
#SBATCH --open-mode=append
# A node that fails, or a job of higher priority, puts the job back into the queue; this script sees to the rest.
#SBATCH --requeue
# Seconds before the end at which to ask for a checkpoint; Slurm may be a minute early. "B:" signals this script alone.
#SBATCH --signal=B:USR1@120

set -uo pipefail # not -e: what comes of the ranks decides what comes next

if [[ $# -eq 0 || -z ${SLURM_JOB_ID:-} ]]; then
  sed -n '/^# What sbatch/q; s/^# \{0,1\}//p' "$0" | tail -n +2 >&2
  exit 2
fi

# --- what Slurm may report meanwhile -----------------------------------------------------------------------------------
output='' asked=no ended=no
ask_ranks() { # by a file, since a signal ends a rank that does not listen yet
  asked=yes
  if [[ -n $output ]]; then
    echo "slurm.sh: the time is nearly up: asking for a checkpoint"
    mkdir -p "$output" && : >"$output/STOP"
  fi
}
trap ask_ranks USR1
# The job is cancelled, preempted or out of time. Slurm signals the ranks itself, by SIGTERM, and leaves them KillWait
# seconds (30 unless the administrator sets another): this script stays until they have left.
trap 'ended=yes' TERM

# --- where this start stands -----------------------------------------------------------------------------------------
# Of a job that has queued itself again: how often, and what the newest checkpoint was when it last did.
marker="$SLURM_SUBMIT_DIR/slurm-$SLURM_JOB_ID.requeue"
restarts=${SLURM_RESTART_COUNT:-0} # by this script, or by Slurm: a node failed, or a job of higher priority came
if ((restarts > 0)); then
  echo "slurm.sh: start $((restarts + 1)) of job $SLURM_JOB_ID"
  # Of a training, that is; a teacher's pass goes on by itself.
  # From its newest checkpoint, wherever the first start was asked to begin.
  if [[ ${1##*/} == train.py ]]; then
    words=()
    while (($#)); do
      case $1 in
        --resume) shift ;;
        --resume=*) ;;
        *) words+=("$1") ;;
      esac
      shift
    done
    set -- "${words[@]}" --resume auto
  fi
fi

python=${CCTS_PYTHON:-python}
if [[ -z ${CCTS_PYTHON:-} && -x .venv/bin/python ]]; then python=$PWD/.venv/bin/python; fi
PATH=$(dirname "$(command -v "$python")"):$PATH # DeepSpeed looks for ninja there
export PATH

# The run folder of a training; nothing where there is none, or where the ranks will name what is wrong with it.
if [[ ${1##*/} == train.py ]]; then
  output=$("$python" -c '
import pathlib
from ccts_dist.commands.train import parse_args
from ccts_dist.config import read_run
args = parse_args(None)
print(pathlib.Path(read_run(args.config, args.set).output_dir).absolute())' "${@:2}" 2>/dev/null)
  if [[ $asked == yes ]]; then ask_ranks; fi # it could not, before
fi

# --- how the ranks find each other -----------------------------------------------------------------------------------
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${nodes[0]}
MASTER_PORT=${CCTS_MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
if [[ -n ${SLURM_GPUS_ON_NODE:-${SLURM_JOB_GPUS:-}} ]] && ((${SLURM_CPUS_PER_TASK:-1} < 4)); then
  echo "slurm.sh: warning: ${SLURM_CPUS_PER_TASK:-1} core(s) for each rank of a GPU: it will wait for its data." \
    "Submit with --cpus-per-task 8, or as many as there are" >&2
fi
ulimit -c 0 # a rank that aborts would leave a core file as large as its memory
# srun does not take this over from sbatch by itself.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# What each task does: find its network interface, and become the rank, which reads its place from the variables of
# srun. No launcher stands between Slurm and the ranks: DeepSpeed's dies of a signal without passing it on, and Slurm
# already starts one process per rank, informs them all when to end, and reads every exit code.
# shellcheck disable=SC2016  # expanded in the task
rank='
if ((SLURM_NNODES > 1)); then
  # Left to itself, gloo takes the address of the node'"'"'s own name, which on many systems is 127.0.1.1.
  if [[ -n ${CCTS_IFNAME:-} ]]; then
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$CCTS_IFNAME}
  else
    for peer in $CCTS_NODES; do [[ $peer == "$SLURMD_NODENAME" ]] || break; done
    address=$(getent ahostsv4 "$peer" | { read -r first _ && echo "$first"; })
    CCTS_IFNAME=$(ip -4 -o route get "$address" | sed -n "s/.* dev \([^ ]*\) .*/\1/p")
  fi
  if [[ -n $CCTS_IFNAME ]]; then export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$CCTS_IFNAME}; fi
fi
exec "$@"
'
export CCTS_NODES="${nodes[*]}"

# --- the ranks -------------------------------------------------------------------------------------------------------
# Consecutive ranks on one node (block). A rank that fails does not end the others at once (--kill-on-bad-exit=0): they
# notice by themselves, and of those that leave with 75 the first would have the last ones killed.
srun --distribution=block --kill-on-bad-exit=0 --wait="${CCTS_WAIT_S:-300}" \
  bash -c "$rank" rank "$python" -u "$@" &
srun=$!
while kill -0 "$srun" 2>/dev/null; do wait "$srun"; done # a trap makes `wait` return early
wait "$srun"
code=$?
echo "slurm.sh: the ranks have ended with exit code $code"
if [[ $asked == yes && -n $output ]]; then rm -f "$output/STOP"; fi # they may have come to the end before they saw it

# --- and then --------------------------------------------------------------------------------------------------------
leave() {
  if [[ -n ${1:-} ]]; then echo "slurm.sh: not queued again: $1"; fi
  rm -f "$marker"
  exit "$code"
}

((code == 75)) || leave
[[ $ended == no ]] || leave "Slurm has ended the job, and knows whether it is to come back."
# Preempted, the ranks alone are signalled at first, by SIGTERM.
if [[ $asked == no ]] && ! scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; then
  leave "somebody asked the ranks to stop."
fi
shopt -s nullglob
checkpoints=("$output"/checkpoints/step-*[0-9])
newest=$(basename "${checkpoints[-1]:-start}")
if [[ -e $marker ]]; then read -r count before <"$marker"; else count=0 before=; fi
[[ $newest != "$before" ]] || leave "it has not come beyond $newest since it last was. Ask for more --time."
((count < ${CCTS_MAX_REQUEUES:-100})) || leave "it was $count times already (CCTS_MAX_REQUEUES)."
echo "$((count + 1)) $newest" >"$marker"
echo "slurm.sh: stopped on request at $newest: queueing the job again"
trap - TERM # Slurm now ends this script
scontrol requeue "$SLURM_JOB_ID" || leave "scontrol requeue failed. Submit it again with --resume auto to go on."
sleep 60
