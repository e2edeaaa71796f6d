#!/bin/bash
# One run as a job of Slurm, on one node or several; what stands behind #SBATCH can be said on the command line instead:
#     sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 docs/slurm.sh recipes/mine.yaml --lora_r 32
# Preempted, or two minutes before its time is up, the run saves; the job is then queued again and resumes.

#SBATCH --job-name=sft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# One task a process; each sees all GPUs of its node and takes its own. Where one fails, srun must not end the others by
# SIGTERM: it would itself end with 143, as if the job were preempted.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 python train_sft.py "$@"
code=$?

# 75: stopped and saved. 143: SIGTERM came before there was anything to save.
if [ $code = 75 ] || [ $code = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
