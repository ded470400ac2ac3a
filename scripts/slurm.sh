#!/bin/bash
# Trains on several nodes: sbatch --nodes 4 scripts/slurm.sh configs/accelerate/fsdp2.yaml EXPERIMENT.yaml [--set a.b=c ...]
# Checkpoints must be on a file system shared by all nodes. A job that is preempted or loses a node is requeued and
# resumes from its last complete checkpoint. After an error or the time limit, the same sbatch command resumes it.
#SBATCH --job-name=alibi-gpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
if (($# < 2)); then
    echo "usage: sbatch scripts/slurm.sh ACCELERATE_CONFIG.yaml EXPERIMENT.yaml [arguments of train.py]" >&2
    exit 2
fi
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
MAIN_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Below 32768, where the range of ephemeral ports begins on Linux.
MAIN_PORT=${MAIN_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
export MAIN_NODE MAIN_PORT NUM_PROCESSES=$((SLURM_JOB_NUM_NODES * PROCESSES_PER_NODE))

# One launcher per node; each gets its rank from srun.
srun --kill-on-bad-exit=1 bash -c '
    config=$1 experiment=$2
    shift 2
    exec accelerate launch --config_file "$config" --num_machines "$SLURM_JOB_NUM_NODES" \
        --num_processes "$NUM_PROCESSES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MAIN_NODE" --main_process_port "$MAIN_PORT" \
        scripts/train.py --config "$experiment" "$@"
' bash "$@"
