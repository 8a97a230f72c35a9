#!/bin/bash
# One process per GPU on SLURM: sbatch configs/launch/slurm.sh CONFIG [--field value ...]
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
# SLURM sends SIGTERM two minutes before the end: the run saves and exits with 143, and the job is put
# back in the queue; the same command then continues from the shared run folder.
set -u
config=$1
shift
srun --kill-on-bad-exit=1 goat-jax train --quiet --coordinator auto \
    --config "$config" --mesh.fsdp -1 "$@"
code=$?
if [ "$code" -eq 143 ] || [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
