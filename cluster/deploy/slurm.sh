#!/usr/bin/env bash
# What it is for: one of our commands on the nodes of a SLURM job; Ray starts with it and ends with it.
# The command, with the project installed in the environment that it is sent from:
#   sbatch --nodes=3 cluster/deploy/slurm.sh train backbone=sdxl resources=cluster runs_dir=/shared/runs
# The last node has the reward models, the others denoise; a single node does both. The exit code is the
# command's. runs_dir has to be on a file system that all nodes see.
#SBATCH --job-name=addiffusion
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=24:00:00
set -euo pipefail

if (($# == 0)); then
    echo "error: no command; for example: sbatch slurm.sh train resources=cluster runs_dir=/shared/runs" >&2
    exit 2
fi

node_names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${node_names%%$'\n'*}
export head_node
export ADDRESS="$head_node:${RAY_PORT:-6379}"
export RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(openssl rand -hex 32) # of this job alone: whoever reaches Ray's ports may run anything
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds for all nodes to come up; Ray's own are 30

# The same on every node; what a node offers follows from its place in the job.
on_each_node() {
    local resources='{"addiffusion_denoiser": 1}'
    if ((SLURM_NNODES == 1)); then
        resources='{"addiffusion_denoiser": 1, "addiffusion_rewards": 1}'
    elif ((SLURM_NODEID == SLURM_NNODES - 1)); then
        resources='{"addiffusion_rewards": 1}'
    fi
    local begun
    begun=$(mktemp -u) # there once the command has begun, which is on the first node only
    # shellcheck disable=SC2016  # for the inner shell
    ray symmetric-run --address "$ADDRESS" --min-nodes "$SLURM_NNODES" \
        --num-cpus="$SLURM_CPUS_PER_TASK" --resources="$resources" --disable-usage-stats \
        -- bash -c 'touch "$0" && exec addiffusion "$@"' "$begun" "$@" || return
    # Where Ray itself cannot start, symmetric-run says so and exits with 0.
    if ((SLURM_NODEID == 0)) && [[ ! -e $begun ]]; then
        echo "error: Ray did not start on $head_node; nothing was run" >&2
        return 1
    fi
    rm -f "$begun"
}
export -f on_each_node

# Where the time is up before the command has ended: addiffusion train --resume NAME goes on from the newest
# checkpoint, in another job.
# Since SLURM 22.05 srun does not take over sbatch's CPUs a task by itself.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c 'on_each_node "$@"' on_each_node "$@"
